package import BlockModel
package import CopyPlanning
internal import CopyTargets
internal import Glibc
internal import Synchronization

// An image as a stream of bytes: raw, or as a difference in the format of `rbd export-diff`
// (version 1: https://docs.ceph.com/en/latest/dev/rbd-diff/):
//
//   "rbd diff v1\n"  'f' name  't' name  's' size  ('w' offset length data | 'z' offset length)...  'e'
//
// Numbers are 64 bits, lengths of names 32, little-endian. 'f' is left out where everything is
// written: what no record names reads as zero.
//
// Invariants
// - Bytes leave in the order of the image, whatever order they come in: what comes early waits. One
//   worker feeds the stream, so that is no more than its reads under way.

/// How an image is written as a stream.
package enum StreamFormat: Equatable, Sendable {
    case raw
    /// `from`: the name of the cut that the stream begins at; nil for everything.
    case difference(from: String?, to: String)
}

/// Writes an image to a pipe, a terminal, a socket; see the head of this file.
package final class StreamSink: CopySink {
    private struct State {
        /// Ranges that follow `current`.
        var following: RangeSpool.Cursor
        /// What is still to be written of the range that is being written; nil when all was.
        var current: ByteRange?
        /// What came early, by its offset. Nil: zeroes.
        var early: [UInt64: (length: UInt64, bytes: [UInt8]?)] = [:]
    }

    private let descriptor: Int32
    private let format: StreamFormat
    private let state: Mutex<State>

    private static let zeroes = [UInt8](repeating: 0, count: 1 << 20)

    /// A stream of `ranges` of an image.
    package init(
        to descriptor: Int32, _ format: StreamFormat, ranges: RangeSpool
    ) throws(CopyError) {
        self.descriptor = descriptor
        self.format = format
        var cursor = RangeSpool.Cursor(ranges)
        let first = try cursor.next()
        state = Mutex(State(following: cursor, current: first))
    }

    private func send(_ bytes: UnsafeRawBufferPointer) throws(CopyError) {
        var sent = 0
        while sent < bytes.count {
            let count = Glibc.write(
                descriptor, bytes.baseAddress.unsafelyUnwrapped + sent, bytes.count - sent)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else {
                throw CopyError(
                    .failed,
                    "the stream cannot be written (\(CopyTarget.text(count < 0 ? errno : EPIPE))); "
                        + "run the command again: a stream starts over")
            }
            sent += count
        }
    }

    private func send(_ bytes: [UInt8]) throws(CopyError) {
        let outcome = bytes.withUnsafeBytes { bytes -> Result<Void, CopyError> in
            do throws(CopyError) { return .success(try send(bytes)) } catch {
                return .failure(error)
            }
        }
        try outcome.get()
    }

    // MARK: Frame

    /// What comes before the first byte of an image of `size` bytes.
    package func begin(size: UInt64) throws(CopyError) {
        guard case .difference(let from, let to) = format else { return }
        var head = Array(DifferenceFormat.banner)
        if let from { head.append(name: from, tag: DifferenceFormat.from) }
        head.append(name: to, tag: DifferenceFormat.to)
        head.append(DifferenceFormat.size)
        head.append(little: size)
        try send(head)
    }

    /// What comes after the last byte.
    package func end() throws(CopyError) {
        let isWhole = state.withLock { $0.current == nil && $0.early.isEmpty }
        precondition(isWhole, "a stream ends when all of its ranges were written")
        if case .difference = format { try send([DifferenceFormat.end]) }
    }

    // MARK: Bytes

    package func write(
        _ bytes: UnsafeRawPointer, _ byteCount: Int, at offset: UInt64
    ) throws(CopyError) {
        let data = UnsafeRawBufferPointer(start: bytes, count: byteCount)
        let isNext = state.withLock { state in
            if state.current?.offset == offset { return true }
            state.early[offset] = (UInt64(byteCount), Array(data))
            return false
        }
        guard isNext else { return }
        try put(ByteRange(offset: offset, length: UInt64(byteCount)), data)
        try putEarly()
    }

    package func zero(_ range: ByteRange) throws(CopyError) {
        let isNext = state.withLock { state in
            if state.current?.offset == range.offset { return true }
            state.early[range.offset] = (range.length, nil)
            return false
        }
        guard isNext else { return }
        try putZeroes(range)
        try putEarly()
    }

    package func drain() throws(CopyError) {}

    private func putEarly() throws(CopyError) {
        while true {
            let next = state.withLock { state in
                state.current.flatMap { current in
                    state.early.removeValue(forKey: current.offset).map { (current.offset, $0) }
                }
            }
            guard let (offset, piece) = next else { return }
            let range = ByteRange(offset: offset, length: piece.length)
            guard let bytes = piece.bytes else {
                try putZeroes(range)
                continue
            }
            let outcome = bytes.withUnsafeBytes { bytes -> Result<Void, CopyError> in
                do throws(CopyError) {
                    return .success(try put(range, bytes))
                } catch { return .failure(error) }
            }
            try outcome.get()
        }
    }

    private func put(_ range: ByteRange, _ bytes: UnsafeRawBufferPointer) throws(CopyError) {
        if case .difference = format {
            try send(DifferenceFormat.head(DifferenceFormat.write, range))
        }
        try send(bytes)
        try advance(range)
    }

    private func putZeroes(_ range: ByteRange) throws(CopyError) {
        switch format {
        // What is not named reads as zero.
        case .difference(nil, _): break
        case .difference: try send(DifferenceFormat.head(DifferenceFormat.zero, range))
        case .raw:
            var left = range.length
            while left > 0 {
                let count = min(left, UInt64(Self.zeroes.count))
                let outcome = Self.zeroes.withUnsafeBytes { bytes -> Result<Void, CopyError> in
                    do throws(CopyError) {
                        return .success(
                            try send(UnsafeRawBufferPointer(rebasing: bytes[..<Int(count)])))
                    } catch { return .failure(error) }
                }
                try outcome.get()
                left -= count
            }
        }
        try advance(range)
    }

    private func advance(_ range: ByteRange) throws(CopyError) {
        let outcome = state.withLock { state -> Result<Void, CopyError> in
            guard let current = state.current else {
                preconditionFailure("nothing is written beyond the last range")
            }
            if range.end < current.end {
                state.current = ByteRange(offset: range.end, length: current.end - range.end)
                return .success(())
            }
            do throws(CopyError) {
                state.current = try state.following.next()
                return .success(())
            } catch { return .failure(error) }
        }
        try outcome.get()
    }
}

/// The words of `rbd export-diff`; see the head of this file.
package enum DifferenceFormat {
    static let banner = "rbd diff v1\n".utf8
    static let from = UInt8(ascii: "f")
    static let to = UInt8(ascii: "t")
    static let size = UInt8(ascii: "s")
    static let write = UInt8(ascii: "w")
    static let zero = UInt8(ascii: "z")
    static let end = UInt8(ascii: "e")

    static func head(_ tag: UInt8, _ range: ByteRange) -> [UInt8] {
        var bytes = [tag]
        bytes.append(little: range.offset)
        bytes.append(little: range.length)
        return bytes
    }
}

extension [UInt8] {
    fileprivate mutating func append<Value: FixedWidthInteger>(little value: Value) {
        Swift.withUnsafeBytes(of: value.littleEndian) { append(contentsOf: $0) }
    }

    fileprivate mutating func append(name: String, tag: UInt8) {
        append(tag)
        append(little: UInt32(name.utf8.count))
        append(contentsOf: name.utf8)
    }
}
