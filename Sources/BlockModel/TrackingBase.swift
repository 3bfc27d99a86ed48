/// A cut of one device that is remembered: what later queries of changes name as their base.
package struct TrackingBase: Hashable, Sendable {
    /// The generation the cut belongs to: in another one nothing is known about it.
    package var generation: Generation
    /// The epoch that ended at the cut.
    package var epoch: Epoch
    /// Bytes of the device at the cut: what grew since counts as changed.
    package var size: UInt64

    package init(generation: Generation, epoch: Epoch, size: UInt64) {
        self.generation = generation
        self.epoch = epoch
        self.size = size
    }
}
