package import BlockModel
internal import RingIO
internal import SnapshotCore

/// Room for the ranges of a slice: made by who asks, filled on the loop.
package final class RangeBuffer: @unchecked Sendable {
    // SAFETY: the loop writes it while the asker waits for the loop's answer, which orders the two.
    fileprivate let ranges: UnsafeMutableBufferPointer<ByteRange>

    /// The first `count` ranges, for `body` only: the memory ends with the object.
    package func withRanges(
        _ count: Int, _ body: (Slice<UnsafeMutableBufferPointer<ByteRange>>) -> Void
    ) {
        withExtendedLifetime(self) { body(ranges.prefix(count)) }
    }

    package init(capacity: Int) {
        ranges = .allocate(capacity: capacity)
        ranges.initialize(repeating: ByteRange(offset: 0, length: 0))
    }

    deinit { ranges.deallocate() }
}

/// A part of an answer about changes, made in one step on the loop.
package struct ChangesSlice: Sendable {
    package var generation: Generation
    package var untilEpoch: UInt32
    /// Bytes of the device at the end of the question.
    package var size: UInt64
    /// Where the question ends.
    package var end: UInt64
    /// Ranges found.
    package var count = 0
    /// Everything before is answered.
    package var resumeOffset: UInt64
}

// What changed, as far as one slice goes. Runs on the loop.

extension Device {
    /// Where a question ends, when it can be answered at all.
    package func changesFrame(
        _ query: ChangesQuery, until part: SnapshotPart?
    ) -> Result<ChangesSlice, ChangesRefusal> {
        var slice = ChangesSlice(
            generation: generation, untilEpoch: engine.epoch.rawValue, size: size, end: 0,
            resumeOffset: query.offset)
        if let part {
            switch part.standing {
            case .prepared: return .failure(.notTaken)
            case .corrupted: return .failure(.corrupted)
            case .destroyed: return .failure(.notHeld)
            case .held: break
            }
            let cut = engine.cut(of: part.index)
            // A full listing needs no generation, its image is as good as ever.
            if query.sinceEpoch != nil, !cut.isOfThisGeneration {
                return .failure(.generationUnknown)
            }
            slice.untilEpoch = cut.epoch.rawValue
            slice.size = engine.imageSize(of: part.index)
        }
        let wanted = query.length.map { query.offset.addingReportingOverflow($0) }
        slice.end = min(slice.size, wanted.map { $0.overflow ? .max : $0.partialValue } ?? .max)
        return .success(slice)
    }

    /// The changes from `position` on, as far as one slice goes.
    package func changesSlice(
        _ query: ChangesQuery, until part: SnapshotPart?, from position: UInt64,
        chunkBudget: UInt64, into buffer: RangeBuffer
    ) -> Result<ChangesSlice, ChangesRefusal> {
        if engine.isTrackingLost { return .failure(.generationUnknown) }
        var base: UInt32 = 0
        var baseSize = running.header.firstSize
        if case .base(let named) = query.since {
            guard named.generation == generation else { return .failure(.generationUnknown) }
            base = named.epoch.rawValue
            baseSize = named.size
        }
        var slice: ChangesSlice
        switch changesFrame(query, until: part) {
        case .success(let frame): slice = frame
        case .failure(let refusal): return .failure(refusal)
        }
        guard base <= slice.untilEpoch else { return .failure(.sinceIsLater) }
        // Only a continuation is bound to an epoch: an answer as a whole may pass a cut, for it
        // then says rather more than less.
        if position == query.offset, !query.expected.isMet(by: slice) {
            return .failure(.changed)
        }
        guard position < slice.end else {
            slice.resumeOffset = slice.end
            return .success(slice)
        }
        switch engine.changes(
            since: base, baseSize: baseSize, until: part?.index, from: position, to: slice.end,
            chunkBudget: chunkBudget, into: buffer.ranges)
        {
        case .ranges(let count, let resumeOffset):
            slice.count = count
            slice.resumeOffset = resumeOffset
            return .success(slice)
        case .unknown: return .failure(.generationUnknown)
        case .damaged:
            mapFoundDamaged()
            return .failure(.damaged)
        }
    }
}
