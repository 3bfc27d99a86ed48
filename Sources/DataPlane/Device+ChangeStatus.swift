internal import BlockModel
internal import ChangeTracking
internal import SnapshotCore

// Block status that says what changed: a slice of the change map, answered at once on the loop.
//
// Invariants
// - An answer begins at the request's offset, has no gap, ends at its end at the latest and
//   describes at least one byte. Neighbouring extents differ.
// - What is not known is a fault, never an answer that is too short.

/// Bounds of one answer: its time on the loop. A client goes on where an answer ends.
private enum ChangeStatusLimit {
    /// Bytes of the device it describes where nothing was ever changed.
    static let byteCount: UInt64 = 1 << 40
    /// Entries of the map it looks at: 1 MiB of them.
    static let chunkCount: UInt64 = 131_072
}

extension Device {
    /// Fills the request's buffer with what changed after the cut `base`, until the cut of
    /// `snapshot` or until now. Returns why it cannot.
    func tellChanges(
        _ index: RequestIndex, since base: TrackingBase, until snapshot: SnapshotIndex?
    ) -> Fault? {
        guard base.generation == generation else { return .invalid }
        let request = requests.pointer(to: index)
        guard let buffer = request.pointee.buffer else {
            preconditionFailure("a block status request without room for the answer")
        }
        let room = request.pointee.bufferByteCount / MemoryLayout<StatusExtent>.stride
        // Ranges are written into the last third and become at most twice as many extents and
        // one, which never catch up with the ranges they are made of.
        let rangeCount = (room - 1) / 3
        precondition(rangeCount > 0, "a block status request has room for a few extents")
        let extents = buffer.bindMemory(to: StatusExtent.self, capacity: room - rangeCount)
        let ranges = UnsafeMutableBufferPointer(
            start: (buffer + (room - rangeCount) * MemoryLayout<StatusExtent>.stride)
                .bindMemory(to: ByteRange.self, capacity: rangeCount),
            count: rangeCount)
        let range = request.pointee.range
        let end = range.offset + min(range.length, ChangeStatusLimit.byteCount)
        let outcome = engine.changes(
            since: base.epoch.rawValue, baseSize: base.size, until: snapshot, from: range.offset,
            to: end, chunkBudget: ChangeStatusLimit.chunkCount, into: ranges)
        switch outcome {
        case .unknown:
            let isLost = snapshot.map { engine.report(on: $0).isCorrupted } ?? false
            return isLost ? .inputOutput : .invalid
        case .damaged: return .inputOutput
        case .ranges(let count, let resumeOffset):
            let extentCount = Self.describe(
                ranges.prefix(count), from: range.offset, to: min(resumeOffset, end),
                into: extents)
            let isOne = request.pointee.flags.contains(.oneExtent)
            request.pointee.resultByteCount =
                (isOne ? 1 : extentCount) * MemoryLayout<StatusExtent>.stride
            return nil
        }
    }

    /// Turns changed ranges into extents that cover `start ..< end`; returns how many.
    private static func describe(
        _ ranges: Slice<UnsafeMutableBufferPointer<ByteRange>>, from start: UInt64, to end: UInt64,
        into extents: UnsafeMutablePointer<StatusExtent>
    ) -> Int {
        var count = 0
        var position = start
        for range in ranges {
            if range.offset > position {
                extents[count] = StatusExtent(
                    length: range.offset - position, flags: ChangeFlags.unchanged)
                count += 1
            }
            extents[count] = StatusExtent(length: range.length, flags: ChangeFlags.changed)
            count += 1
            position = range.end
        }
        if position < end {
            extents[count] = StatusExtent(length: end - position, flags: ChangeFlags.unchanged)
            count += 1
        }
        return count
    }
}
