package import BlockModel
internal import CLinux
internal import Glibc
internal import Synchronization

// What comes of comparing a copy with an image, block by block: the image is "copied" into a sink that
// compares instead of writing.

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
    /// What was reported as changed, ascending.
    private let reported: [ByteRange]
    private let found = Mutex(Differences())

    package init(_ copy: CopyReader, reported: [ByteRange] = []) {
        self.copy = copy
        self.reported = reported
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
        let isReported = isReported(range)
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

    /// The whole range lies in one that was reported.
    private func isReported(_ range: ByteRange) -> Bool {
        var low = 0
        var high = reported.count
        while low < high {
            let middle = (low + high) / 2
            if reported[middle].end <= range.offset { low = middle + 1 } else { high = middle }
        }
        return low < reported.count && reported[low].offset <= range.offset
            && range.end <= reported[low].end
    }
}
