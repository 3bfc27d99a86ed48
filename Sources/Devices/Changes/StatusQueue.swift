internal import BlockModel
internal import RingIO

/// Block status requests of a device and its images that are answered in slices: one slice in each
/// turn of the loop, the requests in turn.
final class StatusQueue: RingHandler {
    private unowned let device: Device
    private var waiting: [(index: RequestIndex, image: ImageDevice?)] = []

    init(_ device: Device) {
        self.device = device
        super.init()
        waiting.reserveCapacity(128)
    }

    var isEmpty: Bool { waiting.isEmpty }

    /// `image`: whose request it is, nil for the device's.
    func append(_ index: RequestIndex, of image: ImageDevice?) {
        waiting.append((index, image))
        device.loop.callAtEndOfTurn(self)
    }

    override func turnEnded() {
        guard !waiting.isEmpty else { return }
        // The last request that is finished may be what keeps it.
        let device = device
        let next = waiting.removeFirst()
        // A finished request may bring the next one along.
        if !slice(next.index, next.image) { waiting.append(next) }
        if !waiting.isEmpty { return device.loop.callAtEndOfTurn(self) }
        // A closing device waits for the last.
        device.usersChanged()
    }

    private func slice(_ index: RequestIndex, _ image: ImageDevice?) -> Bool {
        if let image, device.requests[index].statusBase == nil { return image.statusSlice(index) }
        return device.changeStatusSlice(index, image: image)
    }
}
