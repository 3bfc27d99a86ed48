package import BlockModel
package import Synchronization

/// The pieces of an image that are to be copied, handed out to the workers, and what came of it.
package final class CopyWork: Sendable {
    /// What is still to be handed out: ascending ranges, the first of them from `offset` on.
    private struct Remaining {
        var ranges: [ByteRange]
        var place = 0
        var offset: UInt64
    }

    /// Most bytes of a piece: what one worker does before it asks for more.
    private let pieceByteCount: UInt64
    /// Bytes to be looked at in all.
    package let byteCount: UInt64
    private let remaining: Mutex<Remaining>
    private let failure = Mutex<CopyError?>(nil)
    /// What was copied of a whole image; nil for a list of ranges, which is done again from its
    /// beginning.
    private let done: Mutex<DoneRanges?>

    /// Bytes that are done, for progress.
    package let doneByteCount = Atomic<UInt64>(0)
    /// Bytes of data that came from the service.
    package let readByteCount = Atomic<UInt64>(0)
    /// Bytes written to the target.
    package let writtenByteCount = Atomic<UInt64>(0)
    /// Bytes made to read as zero.
    package let zeroedByteCount = Atomic<UInt64>(0)

    /// All of an image but what is done already, in ascending ranges.
    package init(wholeImage size: UInt64, done: [ByteRange] = []) {
        byteCount = size
        // Large enough to ask rarely, small enough that all workers have something to do.
        pieceByteCount = max(16 << 20, min(256 << 20, size / 64 / chunkByteCount * chunkByteCount))
        var gaps: [ByteRange] = []
        var position: UInt64 = 0
        for range in done {
            if range.offset > position {
                gaps.append(ByteRange(offset: position, length: range.offset - position))
            }
            position = max(position, range.end)
        }
        if position < size { gaps.append(ByteRange(offset: position, length: size - position)) }
        remaining = Mutex(Remaining(ranges: gaps, offset: gaps.first?.offset ?? 0))
        self.done = Mutex(DoneRanges(done))
        doneByteCount.store(done.reduce(0) { $0 + $1.length }, ordering: .relaxed)
    }

    /// These ranges, which ascend.
    package init(_ ranges: [ByteRange]) {
        byteCount = ranges.reduce(0) { $0 + $1.length }
        pieceByteCount = 16 << 20
        remaining = Mutex(Remaining(ranges: ranges, offset: ranges.first?.offset ?? 0))
        done = Mutex(nil)
    }

    /// The next piece; nil when nothing is left, or something failed.
    func next() -> ByteRange? {
        guard failure.withLock({ $0 == nil }) else { return nil }
        let limit = pieceByteCount
        return remaining.withLock { remaining in
            guard remaining.place < remaining.ranges.count else { return nil }
            let offset = remaining.offset
            let end = remaining.ranges[remaining.place].end
            let length = min(end - offset, limit)
            if offset + length < end {
                remaining.offset = offset + length
            } else {
                remaining.place += 1
                if remaining.place < remaining.ranges.count {
                    remaining.offset = remaining.ranges[remaining.place].offset
                }
            }
            return ByteRange(offset: offset, length: length)
        }
    }

    /// A range is in the target.
    func finished(_ range: ByteRange) {
        doneByteCount.add(range.length, ordering: .relaxed)
        done.withLock { $0?.add(range) }
    }

    /// What is in the target of a whole image, ascending.
    package var doneRanges: [ByteRange] { done.withLock { $0?.ranges ?? [] } }

    /// Something failed: no more pieces are handed out. The first failure counts.
    package func failed(_ error: CopyError) { failure.withLock { $0 = $0 ?? error } }

    /// Throws what failed.
    package func check() throws(CopyError) {
        if let error = failure.withLock({ $0 }) { throw error }
    }
}

/// Ranges that were copied: ascending, apart from each other. They are few: each worker goes on
/// where it was.
struct DoneRanges {
    private(set) var ranges: [ByteRange]

    init(_ ranges: [ByteRange]) { self.ranges = ranges }

    /// Adds a range that overlaps none of them.
    mutating func add(_ range: ByteRange) {
        guard !range.isEmpty else { return }
        var place = ranges.count
        while place > 0, ranges[place - 1].offset > range.offset { place -= 1 }
        var range = range
        if place < ranges.count, ranges[place].offset == range.end {
            range = ByteRange(offset: range.offset, length: range.length + ranges[place].length)
            ranges.remove(at: place)
        }
        if place > 0, ranges[place - 1].end == range.offset {
            ranges[place - 1] = ByteRange(
                offset: ranges[place - 1].offset, length: ranges[place - 1].length + range.length)
        } else {
            ranges.insert(range, at: place)
        }
    }
}
