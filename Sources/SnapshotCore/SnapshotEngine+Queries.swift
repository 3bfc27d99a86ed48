package import BlockModel
package import ChangeTracking
internal import CopyOnWrite
package import EngineState

// What changed between two cuts, and how the blocks of an image lie.

/// How a query of changes ended.
package enum ChangesOutcome: Equatable, Sendable {
    /// `count` ranges were written and everything before `resumeOffset` is answered: the next
    /// page begins there, or there is none when that is the end of what was asked for.
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
    /// cut of `snapshot`, or until now. Ranges ascend from `offset`, end at `windowEnd` and fill
    /// `ranges`. At most `chunkBudget` chunks that can have changed are looked at: a range that
    /// ends at `resumeOffset` may then continue in the next answer.
    package func changes(
        since base: UInt32, baseSize: UInt64, until snapshot: SnapshotIndex?,
        from offset: UInt64, to windowEnd: UInt64 = .max, chunkBudget: UInt64 = .max,
        into ranges: UnsafeMutableBufferPointer<ByteRange>
    ) -> ChangesOutcome {
        var until = map.current.rawValue
        var end = min(size, windowEnd)
        var first = chainCount
        if let snapshot {
            let record = snapshots[snapshot]
            guard record.state == .held, record.generation == generationOrdinal else {
                return .unknown
            }
            until = record.cutEpoch
            end = min(record.size, windowEnd)
            first = firstPosition(of: record)
        }
        guard !isTrackingLost, base <= until, base < map.current.rawValue else { return .unknown }
        var result = ChangedRanges(into: ranges, from: offset, size: end)
        // What grew since counts as changed, from the block on in which the base's size lay.
        let tailStart = baseSize < end ? baseSize / blockByteCount * blockByteCount : end
        let mapEnd = (min(tailStart, size) + chunkByteCount - 1) / chunkByteCount
        var chunk = min(map.nextReserved(from: offset / chunkByteCount), mapEnd)
        var stop = chunkBudget < mapEnd - chunk ? chunk + chunkBudget : mapEnd
        // A look into the layers takes about as long as thirty entries of the map.
        var lookups = chunkBudget / 32 + 1
        while chunk < stop, !result.isFull {
            chunk = map.nextChanged(from: chunk, to: stop, since: base)
            guard chunk < stop else { break }
            var entry = map.entry(of: chunk)
            guard entry.isPossible(atEpoch: map.current.rawValue) else { return .damaged }
            if entry.epoch > until {
                entry = savedEntry(of: chunk, from: first) ?? entry
                guard entry.isPossible(atEpoch: map.current.rawValue) else { return .damaged }
                lookups -= 1
                if lookups == 0 { stop = chunk + 1 }
            }
            var blocks = entry.epoch > until ? .max : entry.blocksChanged(since: base)
            let byteStart = chunk * chunkByteCount
            if byteStart + chunkByteCount > tailStart, tailStart < end {
                blocks &=
                    tailStart > byteStart ? blockMask(of: chunk, offset: 0, end: tailStart) : 0
            }
            result.add(blocks: blocks, of: chunk)
            chunk += 1
        }
        if stop < mapEnd {
            result.finish(at: stop * chunkByteCount)
        } else {
            if tailStart < end { result.add(from: tailStart, to: end) }
            result.finish(at: end)
        }
        return .ranges(count: result.count, resumeOffset: result.resumeOffset)
    }

    /// Adds the changes until now from `chunk` on to a summary, as far as `budget` goes. Nil:
    /// nothing can be said, tracking was lost.
    package func summarizeChanges(
        into summary: inout ChangeSummary, from chunk: UInt64, budget: Int
    ) -> ChangeMap.SummaryStep? {
        guard !isTrackingLost else { return nil }
        return map.summarize(into: &summary, from: chunk, budget: budget)
    }

    /// Bytes of the change map that are resident.
    package var mapByteCount: UInt64 {
        map.reservedPageCount * ChangeMap.entriesPerPage * UInt64(MemoryLayout<UInt64>.size)
    }

    /// The epoch that ended at the cut of a snapshot that was taken, and whether it belongs to
    /// the generation of now.
    package func cut(of snapshot: SnapshotIndex) -> (epoch: Epoch, isOfThisGeneration: Bool) {
        let record = snapshots[snapshot]
        return (Epoch(record.cutEpoch), record.generation == generationOrdinal)
    }

    /// The first entry saved for the chunk in the layers from `position` on.
    func savedEntry(of chunk: UInt64, from position: Int) -> ChangeEntry? {
        for index in position..<max(chainCount, position) {
            let layer = layers.pointer(to: chain[index])
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
        var unbounded = Int.max
        return imageRun(
            of: snapshot, overlay: overlay, offset: offset, length: length,
            lookupBudget: &unbounded)
    }

    /// The same, looking for at most about `lookupBudget` records in layers, which is lessened by
    /// those looked for. A run that ends for want of them may continue as the next one.
    package func imageRun(
        of snapshot: SnapshotIndex, overlay: Bool, offset: UInt64, length: UInt64,
        lookupBudget: inout Int
    ) -> (run: ImageRun, length: UInt64)? {
        guard isReadable(snapshot, overlay: overlay) else { return nil }
        precondition(length > 0, "a run has bytes")
        let end = offset + length
        var run: ImageRun?
        var position = offset
        while position < end, lookupBudget > 0 || run == nil {
            let next = imageStep(of: snapshot, overlay, at: position, &lookupBudget)
            guard run == nil || run == next.run else { break }
            run = next.run
            position = next.end
        }
        guard let run else { preconditionFailure("a run begins with a step") }
        return (run, min(position, end) - offset)
    }

    /// How the image lies from a byte to the end of its block, or of its chunk where that is
    /// untouched, or of everything where nothing is touched.
    private func imageStep(
        of snapshot: SnapshotIndex, _ overlay: Bool, at position: UInt64, _ lookupBudget: inout Int
    ) -> (run: ImageRun, end: UInt64) {
        let record = snapshots[snapshot]
        let chunk = position / chunkByteCount
        let first = firstPosition(of: record)
        var isTouched = false
        var isChunkTouched = false
        func look(in layer: LayerIndex) {
            guard layers[layer].recordCount > 0 else { return }
            isTouched = true
            lookupBudget -= 1
            if layers[layer].find(chunk) != nil { isChunkTouched = true }
        }
        if overlay, let own = record.overlay { look(in: own) }
        for index in first..<chainCount where !isChunkTouched { look(in: chain[index]) }
        guard isTouched else { return (.origin, .max) }
        guard isChunkTouched else { return (.origin, (chunk + 1) * chunkByteCount) }
        let block = position / blockByteCount
        let run: ImageRun =
            switch resolve(block, of: snapshot, overlay: overlay) {
            case .origin: .origin
            case .zero: .zero
            case .memory, .stored: .data
            }
        return (run, (block + 1) * blockByteCount)
    }
}
