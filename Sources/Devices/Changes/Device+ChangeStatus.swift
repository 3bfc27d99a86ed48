internal import BlockModel
internal import ChangeTracking
internal import RingIO
internal import SnapshotCore

// Block status that says what changed: answered on the loop from the change map, in slices, one of
// the device in each turn.
//
// Where a request stands between two slices lies in its slot:
//   progress     where the next slice begins, from the request's offset
//   attachment   changed ranges found, in the last third of the buffer
//   step         slices done
//
// Invariants
// - An answer begins at the request's offset, has no gap, ends at its end at the latest and
//   describes at least one byte. Neighbouring extents differ.
// - What is not known is a fault, never an answer that is too short.

/// Bounds of one answer and of one slice. A client continues where an answer ends.
private enum ChangeStatusLimit {
    /// Bytes of the device an answer describes where nothing was ever changed.
    static let byteCount: UInt64 = 1 << 40
    /// Entries of the map a slice looks at: 1 MiB of them.
    static let chunkCount: UInt64 = 131_072
    /// Slices of an answer.
    static let sliceCount = 64
}

extension Device {
    /// A client asks what changed: the marks of that range are taken first.
    func liveStatusArrived(_ index: RequestIndex) {
        guard let takeMarks else { preconditionFailure("a live device can take its marks") }
        let range = requests.pointer(to: index).pointee.range
        let back = LoopConfined(self, on: loop)
        let mailbox = loop.mailbox
        Task {
            await takeMarks(range)
            mailbox.postWhenRoom { loop in
                back.get(on: loop).changeStatusArrived(index, image: nil)
            }
        }
    }

    /// A request asks what changed after its base: until now, or until the cut of `image`.
    func changeStatusArrived(_ index: RequestIndex, image: ImageDevice?) {
        let request = requests.pointer(to: index)
        request.pointee.progress = 0
        request.pointee.attachment = 0
        request.pointee.step = 0
        if !changeStatusSlice(index, image: image) { statuses.append(index, of: image) }
    }

    /// Looks at the next part of the range; true when the request is finished.
    func changeStatusSlice(_ index: RequestIndex, image: ImageDevice?) -> Bool {
        func finish(_ fault: Fault?) -> Bool {
            if let image { image.finish(index, fault) } else { self.finish(index, fault) }
            return true
        }
        let request = requests.pointer(to: index)
        guard let base = request.pointee.statusBase, base.generation == generation else {
            return finish(.invalid)
        }
        if image?.isGone == true { return finish(.shutdown) }
        guard let buffer = request.pointee.buffer else {
            preconditionFailure("a block status request without room for the answer")
        }
        let room = request.pointee.bufferByteCount / MemoryLayout<StatusExtent>.stride
        // Ranges are written into the last third and become at most twice as many extents and
        // one, which never catch up with the ranges they are made of.
        let rangeCount = (room - 1) / 3
        precondition(rangeCount > 0, "a block status request has room for a few extents")
        // SAFETY: the buffer has room for `room` extents, a range is as large as one, and both are
        // trivial.
        let ranges = UnsafeMutableBufferPointer(
            start: (buffer + (room - rangeCount) * MemoryLayout<StatusExtent>.stride)
                .bindMemory(to: ByteRange.self, capacity: rangeCount),
            count: rangeCount)
        let range = request.pointee.range
        let end = range.offset + min(range.length, ChangeStatusLimit.byteCount)
        let start = range.offset + request.pointee.progress
        var count = Int(request.pointee.attachment)
        let outcome = engine.changes(
            since: base.epoch.rawValue, baseSize: base.size, until: image?.snapshot,
            from: start, to: end, chunkBudget: ChangeStatusLimit.chunkCount,
            into: UnsafeMutableBufferPointer(rebasing: ranges[count...]))
        switch outcome {
        case .unknown:
            let isLost = image.map { engine.report(on: $0.snapshot).isCorrupted } ?? false
            return finish(isLost ? .inputOutput : .invalid)
        case .damaged: return finish(.inputOutput)
        case .ranges(let found, let resumeOffset):
            count = Self.joined(ranges, count, with: found)
            let resume = max(min(resumeOffset, end), start)
            request.pointee.step += 1
            request.pointee.progress = resume - range.offset
            request.pointee.attachment = UInt32(count)
            let isOne = request.pointee.flags.contains(.oneExtent)
            // A device that shrank ends before its range does.
            if resume > start, resume < end, count < rangeCount, !(isOne && count > 1),
                request.pointee.step < ChangeStatusLimit.sliceCount
            {
                return false
            }
            // SAFETY: the extents end before the ranges that are still to be read, as computed
            // above.
            let extentCount = Self.describe(
                ranges.prefix(count), from: range.offset, to: resume,
                into: buffer.bindMemory(to: StatusExtent.self, capacity: room - rangeCount))
            request.pointee.resultByteCount =
                (isOne ? 1 : extentCount) * MemoryLayout<StatusExtent>.stride
            return finish(extentCount > 0 ? nil : .invalid)
        }
    }

    /// Joins what ends where the ranges of the next slice begin; returns how many there are.
    private static func joined(
        _ ranges: UnsafeMutableBufferPointer<ByteRange>, _ count: Int, with found: Int
    ) -> Int {
        guard count > 0, found > 0, ranges[count - 1].end == ranges[count].offset else {
            return count + found
        }
        ranges[count - 1] = ByteRange(
            offset: ranges[count - 1].offset,
            length: ranges[count - 1].length + ranges[count].length)
        for position in count..<count + found - 1 { ranges[position] = ranges[position + 1] }
        return count + found - 1
    }

    /// Converts changed ranges into extents that cover `start ..< end`; returns how many.
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
