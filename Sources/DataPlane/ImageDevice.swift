internal import BlockModel
internal import CopyOnWrite
internal import RingIO
internal import SnapshotCore

/// An image of a device: what exports of `DEVICE@SNAPSHOT` (and `:rw`) submit requests to. It
/// lives on the loop of its device and gives its requests to that device's engine.
final class ImageDevice: BlockTarget {
    private let device: Device
    private let snapshot: SnapshotIndex
    private let isWritable: Bool
    /// The snapshot was destroyed: its index may belong to another one by now.
    private var isGone = false

    /// Bytes that one block status request describes: bounds its time on the loop.
    static let statusByteCountMax: UInt64 = 256 << 20

    init(of device: Device, snapshot: SnapshotIndex, isWritable: Bool) {
        self.device = device
        self.snapshot = snapshot
        self.isWritable = isWritable
        super.init(size: device.engine.imageSize(of: snapshot), alignment: blockByteCount)
    }

    /// The snapshot goes: requests fail from now on, users are sent away.
    func snapshotDestroyed() {
        isGone = true
        closeUsers()
    }

    override func submit(_ index: RequestIndex) {
        let request = device.requests.pointer(to: index)
        request.pointee.submittedNanoseconds = device.loop.now
        guard !isGone else { return finish(index, .shutdown) }
        if let fault = faultBeyondEnd(of: request.pointee) { return finish(index, fault) }
        guard request.pointee.length > 0 || request.pointee.operation == .flush else {
            return finish(index, nil)
        }
        switch request.pointee.operation {
        case .read:
            request.pointee.image = Unmanaged.passUnretained(self)
            admitted(
                index,
                device.engine.imageReadArrived(
                    index, snapshot: snapshot, overlay: isWritable,
                    offset: request.pointee.offset, length: request.pointee.length,
                    now: device.loop.now))
        case .write, .writeZeroes:
            guard isWritable else { return finish(index, .notPermitted) }
            request.pointee.image = Unmanaged.passUnretained(self)
            admitted(
                index,
                device.engine.imageWriteArrived(
                    index, snapshot: snapshot, operation: request.pointee.operation,
                    offset: request.pointee.offset, length: request.pointee.length,
                    now: device.loop.now))
        case .flush, .prefetch:
            // An overlay ends with the service: there is nothing that could outlive it.
            finish(index, nil)
        case .discard: finish(index, .notSupported)
        case .blockStatus:
            guard let base = request.pointee.statusBase else { return statusArrived(index) }
            // What was written through the image is no change of the device: it cannot be told.
            guard !isWritable else { return finish(index, .invalid) }
            finish(index, device.tellChanges(index, since: base, until: snapshot))
        }
    }

    /// Tells the owner.
    private func finish(_ index: RequestIndex, _ fault: Fault?) {
        device.imageMeter.finished(
            device.requests[index], now: device.loop.now, isFailure: fault != nil)
        device.requests.finish(index, fault)
    }

    private func admitted(_ index: RequestIndex, _ admission: Admission) {
        switch admission {
        case .taken: device.engineTouched()
        case .refused(let fault): finish(index, fault)
        case .issue: preconditionFailure("an image request never goes to the origin as it is")
        }
    }

    override func engineFinished(_ index: RequestIndex, _ fault: Fault?) {
        finish(index, fault)
    }

    // MARK: Block status

    /// The origin is asked first; its answer lies in the second half of the buffer while the
    /// image's is made in the first.
    private func statusArrived(_ index: RequestIndex) {
        let request = device.requests.pointer(to: index)
        let range = ByteRange(
            offset: request.pointee.offset,
            length: min(request.pointee.length, Self.statusByteCountMax))
        guard let buffer = request.pointee.buffer else {
            preconditionFailure("a block status request without room for the answer")
        }
        let half = Self.halfRoom(request.pointee)
        device.origin.scan(
            range,
            into: UnsafeMutableBufferPointer(
                start: buffer.bindMemory(to: StatusExtent.self, capacity: half * 2) + half,
                count: half),
            for: index, image: self)
    }

    private static func halfRoom(_ request: BlockRequest) -> Int {
        request.bufferByteCount / MemoryLayout<StatusExtent>.stride / 2
    }

    /// The origin answered: what the engine now says is unchanged was so at the cut too.
    func statusScanned(_ index: RequestIndex, count: Int, fault: Fault?) {
        if let fault { return finish(index, fault) }
        guard !isGone else { return finish(index, .shutdown) }
        let request = device.requests.pointer(to: index)
        guard let buffer = request.pointee.buffer else {
            preconditionFailure("a block status request without room for the answer")
        }
        let half = Self.halfRoom(request.pointee)
        let extents = buffer.bindMemory(to: StatusExtent.self, capacity: half * 2)
        let isOne = request.pointee.flags.contains(.oneExtent)
        var output = ExtentWriter(extents, room: isOne ? 1 : half)
        var position = request.pointee.offset
        for extent in UnsafeBufferPointer(start: extents + half, count: count) {
            let end = position + extent.length
            while position < end, !output.isFull {
                guard
                    let (run, length) = device.engine.imageRun(
                        of: snapshot, overlay: isWritable, offset: position,
                        length: end - position)
                else { return finish(index, .inputOutput) }
                switch run {
                case .data: output.add(length, AllocationFlags.data)
                case .zero: output.add(length, AllocationFlags.hole | AllocationFlags.zero)
                case .origin: output.add(length, extent.flags)
                }
                position += length
            }
        }
        request.pointee.resultByteCount = output.count * MemoryLayout<StatusExtent>.stride
        finish(index, nil)
    }
}

/// Collects extents, merging neighbours of the same kind, until there is no room.
private struct ExtentWriter {
    private let extents: UnsafeMutablePointer<StatusExtent>
    private let room: Int
    private(set) var count = 0
    private(set) var isFull = false

    init(_ extents: UnsafeMutablePointer<StatusExtent>, room: Int) {
        self.extents = extents
        self.room = room
    }

    mutating func add(_ length: UInt64, _ flags: UInt64) {
        guard !isFull else { return }
        if count > 0, extents[count - 1].flags == flags {
            extents[count - 1].length += length
        } else if count == room {
            isFull = true
        } else {
            extents[count] = StatusExtent(length: length, flags: flags)
            count += 1
        }
    }
}
