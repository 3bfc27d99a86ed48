/// Aligned memory for partial sectors: a slot for each request that is being merged, given out by
/// `RangeLocks`.
package final class SectorScratch {
    /// Bytes of a slot: a block.
    package static let slotByteCount = 4096
    /// Slots, and so partial-sector requests at one time on one origin.
    package static let slotCount = 64

    private let memory: UnsafeMutableRawPointer

    /// All slots.
    package init() {
        memory = .allocate(byteCount: Self.slotByteCount * Self.slotCount, alignment: 4096)
    }

    deinit { memory.deallocate() }

    /// The memory of a slot.
    package func address(of slot: Int) -> UnsafeMutableRawPointer {
        memory + slot * Self.slotByteCount
    }
}
