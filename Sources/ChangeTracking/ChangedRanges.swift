package import BlockModel

// Merges changed blocks, given chunk by chunk in device order, into maximal byte ranges, one page
// of an answer at a time.
//
// Invariants
// - Ranges ascend, do not touch each other and lie within [start, size).
// - A page is full only between two ranges: resuming at `resumeOffset` cuts none in two.

/// Collects the changed ranges of one page of an answer.
package struct ChangedRanges {
    private let ranges: UnsafeMutableBufferPointer<ByteRange>
    private let start: UInt64
    private let size: UInt64
    private var openStart: UInt64 = 0
    private var openEnd: UInt64 = 0
    /// Ranges finished so far.
    package private(set) var count = 0
    /// True when no further range fits; the next page begins at `resumeOffset`.
    package private(set) var isFull = false
    /// Where the next page begins: behind everything that was reported, or known unchanged.
    package private(set) var resumeOffset: UInt64

    /// Writes into `ranges`, which stays the caller's; its count is the limit, at least 1.
    package init(
        into ranges: UnsafeMutableBufferPointer<ByteRange>, from start: UInt64, size: UInt64
    ) {
        precondition(ranges.count > 0, "a page holds at least one range")
        self.ranges = ranges
        self.start = start
        self.size = size
        resumeOffset = start
    }

    /// `blocks` of `chunk` changed.
    package mutating func add(blocks: UInt16, of chunk: UInt64) {
        var rest = blocks
        let base = chunk * chunkByteCount
        while rest != 0 && !isFull {
            let first = rest.trailingZeroBitCount
            let length = (~(rest >> UInt16(first))).trailingZeroBitCount
            add(
                from: base + UInt64(first) * blockByteCount,
                to: base + UInt64(first + length) * blockByteCount)
            if first + length >= 16 { break }
            rest &= ~(((1 << UInt16(length)) - 1) << UInt16(first))
        }
    }

    /// The bytes `from ..< to` changed.
    package mutating func add(from: UInt64, to: UInt64) {
        let from = max(from, start)
        let to = min(to, size)
        guard from < to, !isFull else { return }
        if openEnd > openStart && from <= openEnd {
            openEnd = max(openEnd, to)
            return
        }
        closeOpenRange()
        guard count < ranges.count else {
            isFull = true
            resumeOffset = from
            return
        }
        openStart = from
        openEnd = to
    }

    /// Everything up to `end` was given; without it, up to the size. Call once, last.
    package mutating func finish(at end: UInt64? = nil) {
        guard !isFull else { return }
        closeOpenRange()
        resumeOffset = max(min(end ?? size, size), start)
    }

    private mutating func closeOpenRange() {
        guard openEnd > openStart else { return }
        ranges.initializeElement(
            at: count, to: ByteRange(offset: openStart, length: openEnd - openStart))
        count += 1
        openStart = 0
        openEnd = 0
    }
}
