package import BlockModel
internal import CLinux
package import CopyPlanning
internal import Glibc
internal import Synchronization

// What comes of comparing a copy with an image, block by block: the image is "copied" into a sink
// that compares instead of writing.

/// Compares what it is given with a copy; see the head of this file.
package final class CompareSink: CopySink {
    /// What differs.
    package struct Differences: Equatable, Sendable {
        package var byteCount: UInt64 = 0
        /// The first ranges in the order of the copy, neighbours joined.
        package var first: [ByteRange] = []
        /// Bytes that differ and were not reported as changed.
        package var missedByteCount: UInt64 = 0
        package var firstMissed: [ByteRange] = []
    }

    /// Ranges that are kept.
    package static let rangeCountMax = 1000
    private static let bufferByteCount = 256 << 10

    private let copy: CopyReader
    private let reported: ReportedBlocks
    private let found = Mutex(Differences())

    /// `reported`: what was reported as changed of an image of `size` bytes.
    package init(
        _ copy: CopyReader, reported: RangeSpool? = nil, size: UInt64 = 0
    ) throws(CopyError) {
        self.copy = copy
        self.reported = try ReportedBlocks(reported ?? .none, size: size)
    }

    /// What was found so far.
    package var differences: Differences { found.withLock { $0 } }

    package func write(
        _ bytes: UnsafeRawPointer, _ byteCount: Int, at offset: UInt64
    ) throws(CopyError) {
        try withBuffer { buffer throws(CopyError) in
            var done = 0
            while done < byteCount {
                let count = min(byteCount - done, Self.bufferByteCount)
                let place = offset + UInt64(done)
                let there = place >= copy.size ? 0 : min(UInt64(count), copy.size - place)
                try copy.read(place, into: buffer, Int(there))
                // Beyond its end a copy holds nothing, which no byte of an image equals.
                if there < UInt64(count) {
                    note(ByteRange(offset: place + there, length: UInt64(count) - there))
                }
                if memcmp(buffer, bytes + done, Int(there)) != 0 {
                    compare(buffer, bytes + done, Int(there), at: place)
                }
                done += count
            }
        }
    }

    package func zero(_ range: ByteRange) throws(CopyError) {
        try withBuffer { buffer throws(CopyError) in
            var position = range.offset
            if range.end > copy.size {
                let begin = max(range.offset, copy.size)
                note(ByteRange(offset: begin, length: range.end - begin))
            }
            let end = min(range.end, max(copy.size, range.offset))
            while position < end {
                let rest = ByteRange(offset: position, length: end - position)
                guard let data = try copy.data(in: rest) else { return }
                position = data.offset
                while position < data.end {
                    let count = Int(min(data.end - position, UInt64(Self.bufferByteCount)))
                    try copy.read(position, into: buffer, count)
                    if !cl_is_zero(buffer, count) { compare(buffer, nil, count, at: position) }
                    position += UInt64(count)
                }
            }
        }
    }

    package func drain() throws(CopyError) {}

    private func withBuffer(
        _ body: (UnsafeMutableRawPointer) throws(CopyError) -> Void
    ) throws(CopyError) {
        let buffer = UnsafeMutableRawPointer.allocate(
            byteCount: Self.bufferByteCount, alignment: Int(blockByteCount))
        defer { buffer.deallocate() }
        try body(buffer)
    }

    /// Notes the blocks that differ; `other` nil: from zeroes.
    private func compare(
        _ bytes: UnsafeRawPointer, _ other: UnsafeRawPointer?, _ byteCount: Int, at offset: UInt64
    ) {
        var start = 0
        while start < byteCount {
            let count = min(Int(blockByteCount), byteCount - start)
            let isEqual =
                other.map { memcmp(bytes + start, $0 + start, count) == 0 }
                ?? cl_is_zero(bytes + start, count)
            if !isEqual {
                note(ByteRange(offset: offset + UInt64(start), length: UInt64(count)))
            }
            start += count
        }
    }

    private func note(_ range: ByteRange) {
        let isReported = reported.contain(range)
        found.withLock { found in
            found.byteCount += range.length
            Self.add(range, to: &found.first)
            guard !isReported else { return }
            found.missedByteCount += range.length
            Self.add(range, to: &found.firstMissed)
        }
    }

    private static func add(_ range: ByteRange, to ranges: inout [ByteRange]) {
        if let last = ranges.last, last.end == range.offset {
            ranges[ranges.count - 1] = ByteRange(
                offset: last.offset, length: last.length + range.length)
            return
        }
        if ranges.count == rangeCountMax {
            // The first in the order of the copy are the ones to keep.
            guard let last = ranges.last, range.offset < last.offset else { return }
            ranges.removeLast()
        }
        let place = ranges.firstIndex { $0.offset > range.offset } ?? ranges.count
        ranges.insert(range, at: place)
    }
}

/// Blocks that were reported as changed, a bit each: 32 MiB for a tebibyte, however many ranges.
private struct ReportedBlocks {
    private var words: [UInt64]

    init(_ ranges: RangeSpool, size: UInt64) throws(CopyError) {
        let blockCount = ranges.count == 0 ? 0 : (size + blockByteCount - 1) / blockByteCount
        words = [UInt64](repeating: 0, count: Int(blockCount + 63) / 64)
        var cursor = RangeSpool.Cursor(ranges)
        while let range = try cursor.next() {
            // Only a block that was reported whole counts; the last one of an image may be short.
            let first = (range.offset + blockByteCount - 1) / blockByteCount
            let last = range.end >= size ? blockCount : range.end / blockByteCount
            for block in first..<max(first, min(last, blockCount)) {
                words[Int(block / 64)] |= 1 << (block % 64)
            }
        }
    }

    /// Every block of the range was reported.
    func contain(_ range: ByteRange) -> Bool {
        let last = (range.end + blockByteCount - 1) / blockByteCount
        for block in range.offset / blockByteCount..<last {
            let word = Int(block / 64)
            guard word < words.count, words[word] & 1 << (block % 64) != 0 else { return false }
        }
        return true
    }
}
