package import BlockModel
internal import ChangeTracking
internal import CopyOnWrite

// What changed between two cuts, and how the blocks of an image lie.

/// How a query of changes ended.
package enum ChangesOutcome: Equatable, Sendable {
    /// `count` ranges were written; the next page begins at `resumeOffset`, or there is none
    /// when that is the size.
    case ranges(count: Int, resumeOffset: UInt64)
    /// Nothing can be said: another generation, a cut of the future, or tracking was lost.
    case unknown
    /// The map holds an entry that cannot be: its generation has to end.
    case damaged
}

/// How a run of an image's blocks lies.
package enum ImageRun: Equatable, Sendable {
    /// Preserved or written data.
    case data
    /// Preserved or written, all zero.
    case zero
    /// Unchanged since the cut: as the origin.
    case origin
}

extension SnapshotEngine {
    /// Blocks changed after the cut that ended epoch `base` (then `baseSize` bytes), until the
    /// cut of `snapshot`, or until now. Ranges ascend from `offset` and fill `ranges`.
    package func changes(
        since base: UInt32, baseSize: UInt64, until snapshot: SnapshotIndex?,
        from offset: UInt64, into ranges: UnsafeMutableBufferPointer<ByteRange>
    ) -> ChangesOutcome {
        var until = map.current.rawValue
        var end = size
        var first = chainCount
        if let snapshot {
            let record = snapshots[Int(snapshot.rawValue)]
            guard record.state == .held, record.generation == generationOrdinal else {
                return .unknown
            }
            until = record.cutEpoch
            end = record.size
            first = chainPosition(of: record.layer)
        }
        guard !isTrackingLost, base <= until, base < map.current.rawValue else { return .unknown }
        var result = ChangedRanges(into: ranges, from: offset, size: end)
        let chunkEnd = (min(end, size) + chunkByteCount - 1) / chunkByteCount
        var chunk = offset / chunkByteCount
        while chunk < chunkEnd, !result.isFull {
            chunk = map.nextChanged(from: chunk, to: chunkEnd, since: base)
            guard chunk < chunkEnd else { break }
            let live = map.entry(of: chunk)
            guard live.isPossible(atEpoch: map.current.rawValue) else { return .damaged }
            let entry = live.epoch > until ? savedEntry(of: chunk, from: first) ?? live : live
            let blocks = entry.epoch > until ? .max : entry.blocksChanged(since: base)
            let byteStart = chunk * chunkByteCount
            if baseSize < end, byteStart + chunkByteCount > baseSize {
                addGrownTail(from: baseSize, to: end, blocks, chunk, &result)
                result.finish()
                return .ranges(count: result.count, resumeOffset: result.resumeOffset)
            }
            result.add(blocks: blocks, of: chunk)
            chunk += 1
        }
        if !result.isFull, baseSize < end {
            result.add(from: baseSize / blockByteCount * blockByteCount, to: end)
        }
        result.finish()
        return .ranges(count: result.count, resumeOffset: result.resumeOffset)
    }

    /// The chunk in which the base's size ends: its changed blocks before the tail, then the tail.
    private func addGrownTail(
        from baseSize: UInt64, to end: UInt64, _ blocks: UInt16, _ chunk: UInt64,
        _ result: inout ChangedRanges
    ) {
        let tailStart = baseSize / blockByteCount * blockByteCount
        let byteStart = chunk * chunkByteCount
        if tailStart > byteStart {
            let before = blockMask(of: chunk, offset: 0, end: tailStart)
            result.add(blocks: blocks & before, of: chunk)
        }
        result.add(from: tailStart, to: end)
    }

    /// The first entry saved for the chunk in the layers from `position` on.
    private func savedEntry(of chunk: UInt64, from position: Int) -> ChangeEntry? {
        for index in position..<max(chainCount, position) {
            let layer = layers + Int(chain[index])
            if let record = layer.pointee.find(chunk) {
                return ChangeEntry(rawValue: layer.pointee.record(record).pointee.savedEntry)
            }
        }
        return nil
    }

    /// How the image's bytes from `offset` on lie, at most `length` of them. Ask after the
    /// origin answered for the range: what is `origin` then is so at the cut too. Nil when the
    /// image cannot be trusted.
    package func imageRun(
        of snapshot: SnapshotIndex, overlay: Bool, offset: UInt64, length: UInt64
    ) -> (run: ImageRun, length: UInt64)? {
        guard isReadable(snapshot.rawValue, overlay: overlay) else { return nil }
        precondition(length > 0, "a run has bytes")
        let end = offset + length
        let kind = runKind(of: snapshot.rawValue, overlay, offset / blockByteCount)
        var position = (offset / blockByteCount + 1) * blockByteCount
        while position < end,
            runKind(of: snapshot.rawValue, overlay, position / blockByteCount) == kind
        {
            position += blockByteCount
        }
        return (kind, min(position, end) - offset)
    }

    private func runKind(of snapshot: UInt16, _ overlay: Bool, _ block: UInt64) -> ImageRun {
        switch resolve(block, of: snapshot, overlay: overlay) {
        case .origin: .origin
        case .zero: .zero
        case .memory, .stored: .data
        }
    }
}
