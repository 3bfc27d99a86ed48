package import BlockModel
internal import SnapshotCore

// Marks by hand, as far as one slice on the loop goes.

/// How far a mark of several ranges has come.
package struct MarkCursor: Sendable {
    private let ranges: [ByteRange]
    private var index = 0
    private var offset: UInt64

    /// Before the first byte of the first range.
    package init(_ ranges: [ByteRange]) {
        self.ranges = ranges
        offset = ranges.first?.offset ?? 0
    }

    /// Nothing is left.
    package var isDone: Bool { index == ranges.count }

    /// The next part, of at most so many chunks.
    mutating func next(chunkCount: UInt64) -> ByteRange {
        let start = offset
        let end = min(
            ranges[index].end, (start / chunkByteCount + chunkCount) * chunkByteCount)
        if end == ranges[index].end {
            index += 1
            offset = isDone ? 0 : ranges[index].offset
        } else {
            offset = end
        }
        return ByteRange(offset: start, length: end - start)
    }
}

extension Device {
    /// Marks on from `cursor`, as far as one slice goes.
    package func markSlice(
        from start: MarkCursor, chunkCount: UInt64
    ) -> Result<(Epoch, MarkCursor), ChangesRefusal> {
        guard !engine.isTrackingLost else { return .failure(.generationUnknown) }
        var cursor = start
        var left = max(1, chunkCount / UInt64(1 + engine.heldCount * 16))
        while left > 0, !cursor.isDone {
            let part = cursor.next(chunkCount: left)
            guard part.end <= size else { return .failure(.beyondEnd(size: size)) }
            // A new generation began since the pages were reserved: its map has others.
            guard engine.unreservedPages(of: part, countMax: 1).isEmpty else {
                return .failure(.busy)
            }
            engine.changesDeclared(in: part)
            counters.markedBlocks &+= Self.blockCount(part)
            left -= min(left, UInt64(chunks(touching: part).count))
        }
        engineTouched()
        return .success((engine.epoch, cursor))
    }
}
