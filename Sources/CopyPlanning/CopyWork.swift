package import BlockModel
internal import Glibc
package import Synchronization

/// The pieces of an image that are to be copied, handed out to the workers, and what came of it.
package final class CopyWork: Sendable {
    /// What is still to be handed out.
    private struct Remaining {
        var gaps: ArraySlice<ByteRange> = []
        var spool: RangeSpool.Cursor?
        /// What is left of the range that pieces are cut from.
        var current: ByteRange?

        mutating func next() throws(CopyError) -> ByteRange? {
            if let current { return current }
            return gaps.isEmpty ? try spool?.next() : gaps.removeFirst()
        }
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
    private let pace: CopyPace?

    /// Bytes that are done, for progress.
    package let doneByteCount = Atomic<UInt64>(0)
    /// Bytes of data that came from the service.
    package let readByteCount = Atomic<UInt64>(0)
    /// Bytes written to the target.
    package let writtenByteCount = Atomic<UInt64>(0)
    /// Bytes made to read as zero.
    package let zeroedByteCount = Atomic<UInt64>(0)

    /// All of an image but what is done already, in ascending ranges.
    package init(wholeImage size: UInt64, done: [ByteRange] = [], rateLimit: UInt64? = nil) {
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
        remaining = Mutex(Remaining(gaps: gaps[...]))
        self.done = Mutex(DoneRanges(done))
        pace = rateLimit.map { CopyPace($0) }
        doneByteCount.store(done.reduce(0) { $0 + $1.length }, ordering: .relaxed)
    }

    /// These ranges.
    package init(_ ranges: RangeSpool, rateLimit: UInt64? = nil) {
        byteCount = ranges.byteCount
        pieceByteCount = 16 << 20
        remaining = Mutex(Remaining(spool: RangeSpool.Cursor(ranges)))
        done = Mutex(nil)
        pace = rateLimit.map { CopyPace($0) }
    }

    /// The next piece; nil when nothing is left, or something failed.
    package func next() -> ByteRange? {
        guard failure.withLock({ $0 == nil }) else { return nil }
        let limit = pieceByteCount
        let outcome = remaining.withLock { remaining -> Result<ByteRange?, CopyError> in
            do throws(CopyError) {
                guard let range = try remaining.next() else { return .success(nil) }
                let length = min(range.length, limit)
                remaining.current =
                    length < range.length
                    ? ByteRange(offset: range.offset + length, length: range.length - length) : nil
                return .success(ByteRange(offset: range.offset, length: length))
            } catch { return .failure(error) }
        }
        switch outcome {
        case .success(let piece): return piece
        case .failure(let error):
            failed(error)
            return nil
        }
    }

    /// Waits until so many more bytes may be moved, or something failed.
    package func wait(for byteCount: UInt64) {
        guard let pace else { return }
        pace.wait(for: byteCount) { failure.withLock { $0 != nil } }
    }

    /// A range is in the target.
    package func finished(_ range: ByteRange) {
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

/// Ranges that were copied: ascending, apart from each other. They are few: each worker continues
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
