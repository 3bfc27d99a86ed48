internal import BlockModel
internal import CopyOnWrite
internal import RingIO
internal import SnapshotCore

// Block status of an image: the origin is asked first, on the blocking pool; then the engine says
// which parts are not as in the origin any more. That may take long, so it is done in slices, one
// of the device in each turn of the loop.
//
// Where a request stands between two slices lies in its slot:
//   progress         bytes described
//   attachment       extents written, in the first half of the buffer
//   resultByteCount  extents of the origin's answer, in the second half, in bytes
//   part.length      those of them that are used up
//   part.offset      bytes used up of the next one

extension ImageDevice {
    /// Bytes that one request describes: bounds how long it takes.
    static let statusByteCountMax: UInt64 = 16 << 30
    /// Records looked for in layers in one slice: each may cost a miss or two in the cache.
    static let statusLookupCountMax = 4096

    func statusArrived(_ index: RequestIndex) {
        let request = device.requests.pointer(to: index)
        let range = ByteRange(
            offset: request.pointee.offset,
            length: min(request.pointee.length, Self.statusByteCountMax))
        let half = Self.halfRoom(request.pointee)
        device.origin.scan(
            range,
            into: UnsafeMutableBufferPointer(
                start: extents(of: index, room: half * 2) + half, count: half),
            for: index, image: self)
    }

    private static func halfRoom(_ request: BlockRequest) -> Int {
        request.bufferByteCount / MemoryLayout<StatusExtent>.stride / 2
    }

    private func extents(
        of index: RequestIndex, room: Int
    ) -> UnsafeMutablePointer<StatusExtent> {
        guard let buffer = device.requests.pointer(to: index).pointee.buffer else {
            preconditionFailure("a block status request without room for the answer")
        }
        // SAFETY: the buffer of a block status request has room for `room` extents, which are
        // trivial.
        return buffer.bindMemory(to: StatusExtent.self, capacity: room)
    }

    /// The origin answered: what the engine says is unchanged, now or later, was so at the cut too.
    func statusScanned(_ index: RequestIndex, count: Int, fault: Fault?) {
        if let fault { return finish(index, fault) }
        let request = device.requests.pointer(to: index)
        request.pointee.progress = 0
        request.pointee.attachment = 0
        request.pointee.resultByteCount = count * MemoryLayout<StatusExtent>.stride
        request.pointee.part = ByteRange(offset: 0, length: 0)
        device.statuses.append(index, of: self)
    }

    /// Describes the next part of the range; true when the request is finished.
    func statusSlice(_ index: RequestIndex) -> Bool {
        guard !isGone else {
            finish(index, .shutdown)
            return true
        }
        let request = device.requests.pointer(to: index)
        let half = Self.halfRoom(request.pointee)
        let extents = extents(of: index, room: half * 2)
        let isOne = request.pointee.flags.contains(.oneExtent)
        var output = ExtentWriter(
            extents, room: isOne ? 1 : half, count: Int(request.pointee.attachment))
        let scannedCount = request.pointee.resultByteCount / MemoryLayout<StatusExtent>.stride
        var number = Int(request.pointee.part.length)
        var used = request.pointee.part.offset
        var budget = Self.statusLookupCountMax
        while number < scannedCount, !output.isFull, budget > 0 {
            let extent = extents[half + number]
            guard
                let (run, length) = device.engine.imageRun(
                    of: snapshot, overlay: isWritable,
                    offset: request.pointee.offset + request.pointee.progress,
                    length: extent.length - used, lookupBudget: &budget)
            else {
                finish(index, .inputOutput)
                return true
            }
            switch run {
            case .data: output.add(length, AllocationFlags.data)
            case .zero: output.add(length, AllocationFlags.hole | AllocationFlags.zero)
            case .origin: output.add(length, extent.flags)
            }
            request.pointee.progress += length
            used += length
            if used == extent.length {
                number += 1
                used = 0
            }
        }
        if number < scannedCount, !output.isFull {
            request.pointee.attachment = UInt32(output.count)
            request.pointee.part = ByteRange(offset: used, length: UInt64(number))
            return false
        }
        request.pointee.resultByteCount = output.count * MemoryLayout<StatusExtent>.stride
        finish(index, nil)
        return true
    }
}

/// Collects extents, merging neighbours of the same kind, until there is no room.
private struct ExtentWriter {
    private let extents: UnsafeMutablePointer<StatusExtent>
    private let room: Int
    private(set) var count: Int
    private(set) var isFull = false

    /// `count` extents are there already.
    init(_ extents: UnsafeMutablePointer<StatusExtent>, room: Int, count: Int) {
        self.extents = extents
        self.room = room
        self.count = count
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
