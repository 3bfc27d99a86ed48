internal import BlockModel
package import CopyPlanning
internal import CopyTargets
internal import Glibc

// Reads a stream of `rbd export-diff` (see StreamSink.swift) and gives it to a target.
//
// Invariants
// - Nothing the stream says is believed before it was compared with the size that it named first,
//   and with what the target takes.
// - A stream without its end mark is an error, whatever it brought.

/// Applies a difference; see the head of this file.
package final class DifferenceReader: @unchecked Sendable {
    // SAFETY: used by one thread at a time: first for its head, then for the rest.

    /// What a stream says of itself before its first byte.
    package struct Head: Equatable, Sendable {
        /// The cut that it begins at; nil for everything.
        package var from: String?
        package var to: String?
        /// Bytes of the image.
        package var size: UInt64 = 0
    }

    /// What a stream brought.
    package struct Outcome: Equatable, Sendable {
        package var writtenByteCount: UInt64 = 0
        package var zeroedByteCount: UInt64 = 0
    }

    private static let nameByteCountMax: UInt32 = 4096
    private static let pieceByteCount: UInt64 = 1 << 20

    private let descriptor: Int32
    private let buffer: UnsafeMutableRawPointer

    /// Reads from a descriptor, which stays the caller's.
    package init(_ descriptor: Int32) {
        self.descriptor = descriptor
        buffer = .allocate(byteCount: Int(Self.pieceByteCount), alignment: Int(blockByteCount))
    }

    deinit { buffer.deallocate() }

    private static func wrong(_ what: String) -> CopyError {
        CopyError(
            .failed,
            "the stream is not in the format of `copy --format diff` or `rbd export-diff`: \(what)")
    }

    private func read(_ byteCount: Int) throws(CopyError) {
        var done = 0
        while done < byteCount {
            let count = Glibc.read(descriptor, buffer + done, byteCount - done)
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else {
                throw CopyError(
                    .failed, "the stream cannot be read (\(CopyTarget.text(errno)))")
            }
            guard count > 0 else { throw Self.wrong("it ends too early") }
            done += count
        }
    }

    private func number<Value: FixedWidthInteger>(_ type: Value.Type) throws(CopyError) -> Value {
        try read(MemoryLayout<Value>.size)
        return Value(littleEndian: buffer.loadUnaligned(as: Value.self))
    }

    private func name() throws(CopyError) -> String {
        let count = try number(UInt32.self)
        guard count <= Self.nameByteCountMax else { throw Self.wrong("a name of \(count) bytes") }
        try read(Int(count))
        return String(
            decoding: UnsafeRawBufferPointer(start: buffer, count: Int(count)), as: UTF8.self)
    }

    /// Reads what comes before the first byte.
    package func head() throws(CopyError) -> Head {
        let banner = Array(DifferenceFormat.banner)
        try read(banner.count)
        guard
            UnsafeRawBufferPointer(start: buffer, count: banner.count).elementsEqual(banner)
        else { throw Self.wrong("it begins otherwise") }
        var head = Head()
        while true {
            let tag = try number(UInt8.self)
            switch tag {
            case DifferenceFormat.from: head.from = try name()
            case DifferenceFormat.to: head.to = try name()
            case DifferenceFormat.size:
                head.size = try number(UInt64.self)
                guard head.size <= UInt64(Int64.max) else {
                    throw Self.wrong("an image of \(head.size) bytes")
                }
                return head
            default: throw Self.wrong("a record of kind \(tag) before its size")
            }
        }
    }

    /// Gives the rest to a target, which must take `head.size` bytes. What a full stream does not
    /// name is zeroed, up to `end`.
    package func apply(
        _ head: Head, to target: any CopySink, end: UInt64
    ) throws(CopyError) -> Outcome {
        var outcome = Outcome()
        // Up to here everything was written or zeroed, in a full stream.
        var position: UInt64 = 0
        while true {
            let tag = try number(UInt8.self)
            switch tag {
            case DifferenceFormat.write, DifferenceFormat.zero:
                let offset = try number(UInt64.self)
                let length = try number(UInt64.self)
                guard let range = ByteRange(checking: offset, length: length, within: head.size)
                else { throw Self.wrong("bytes beyond the end of its image") }
                if head.from == nil {
                    guard offset >= position else { throw Self.wrong("it goes backwards") }
                    try zero(position, offset, target, &outcome)
                    position = range.end
                }
                if tag == DifferenceFormat.zero {
                    try zero(range.offset, range.end, target, &outcome)
                } else {
                    try write(range, target, &outcome)
                }
            case DifferenceFormat.end:
                if head.from == nil {
                    try zero(position, max(end, head.size), target, &outcome)
                }
                try target.drain()
                return outcome
            default: throw Self.wrong("a record of kind \(tag)")
            }
        }
    }

    private func zero(
        _ start: UInt64, _ end: UInt64, _ target: any CopySink, _ outcome: inout Outcome
    ) throws(CopyError) {
        guard end > start else { return }
        try target.zero(ByteRange(offset: start, length: end - start))
        outcome.zeroedByteCount += end - start
    }

    private func write(
        _ range: ByteRange, _ target: any CopySink, _ outcome: inout Outcome
    ) throws(CopyError) {
        var offset = range.offset
        while offset < range.end {
            let count = min(range.end - offset, Self.pieceByteCount)
            try read(Int(count))
            try target.write(buffer, Int(count), at: offset)
            offset += count
        }
        outcome.writtenByteCount += range.length
    }
}
