package import BlockModel
internal import Glibc
internal import Host

// The ranges of an answer about changes, between its first page and their use. Nothing may be done
// with them before the last page has come, and there can be a hundred million: they are kept as
// differences, two bytes each where every second block changed, and beyond a few mebibytes in an
// unnamed file.
//
//   number = value << 1, or value / 4096 << 1 | 1, as LEB128; a range is (offset - end of the
//   range before) and length, both as such numbers
//
// Invariants
// - One thread adds ranges until `finish`; after that nothing changes, and any thread reads.

/// Keeps ranges in order; see the head of this file.
package final class RangeSpool: @unchecked Sendable {
    // SAFETY: the second half of the invariant replaces the compiler.

    /// Bytes that stay in memory.
    private static let memoryByteCountMax = 4 << 20

    /// Ranges that were added.
    package private(set) var count: UInt64 = 0
    /// Their bytes.
    package private(set) var byteCount: UInt64 = 0
    private var pending: ByteRange?
    private var lastEnd: UInt64 = 0
    private var bytes: [UInt8] = []
    /// Where the last range ends; 0 when there is none.
    package var end: UInt64 { lastEnd }
    private var file: Int32 = -1
    private var fileByteCount = 0
    private var isFinished = false

    package init() {}

    /// No range at all.
    package static let none: RangeSpool = {
        let spool = RangeSpool()
        spool.isFinished = true
        return spool
    }()

    /// These ranges, which ascend and lie apart.
    package init(_ ranges: [ByteRange]) throws(CopyError) {
        for range in ranges { try add(range) }
        try finish()
    }

    deinit { if file >= 0 { close(file) } }

    /// Adds the next range; one that begins where the last one ends is merged with it.
    package func add(_ range: ByteRange) throws(CopyError) {
        precondition(!isFinished, "a spool that is read takes no more")
        guard let last = pending else {
            pending = range
            return
        }
        guard last.end <= range.offset else {
            throw CopyError(.failed, "the service's answer is out of order")
        }
        if last.end == range.offset {
            pending = ByteRange(offset: last.offset, length: last.length + range.length)
        } else {
            try keep(last)
            pending = range
        }
    }

    /// No range follows.
    package func finish() throws(CopyError) {
        if let last = pending { try keep(last) }
        pending = nil
        isFinished = true
    }

    private func keep(_ range: ByteRange) throws(CopyError) {
        count += 1
        byteCount += range.length
        encode(range.offset - lastEnd)
        encode(range.length)
        lastEnd = range.end
        if bytes.count >= Self.memoryByteCountMax { try spill() }
    }

    private func encode(_ value: UInt64) {
        var rest = value % 4096 == 0 ? (value / 4096) << 1 | 1 : value << 1
        while rest >= 0x80 {
            bytes.append(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        bytes.append(UInt8(rest))
    }

    private func spill() throws(CopyError) {
        if file < 0 {
            let directory = getenv("TMPDIR").map { String(cString: $0) } ?? "/var/tmp"
            var template = Array("\(directory)/stillpoint-ranges-XXXXXX".utf8CString)
            file = mkstemp(&template)
            guard file >= 0 else { throw Self.failure("made in \(directory)") }
            unlink(template)
            guard fcntl(file, F_SETFD, FD_CLOEXEC) == 0 else { throw Self.failure("kept") }
        }
        var written = 0
        while written < bytes.count {
            let got = bytes.withUnsafeBytes {
                write(file, $0.baseAddress.unsafelyUnwrapped + written, $0.count - written)
            }
            if got < 0 && errno == EINTR { continue }
            guard got > 0 else { throw Self.failure("written") }
            written += got
        }
        fileByteCount += bytes.count
        bytes.removeAll(keepingCapacity: true)
    }

    private static func failure(_ what: String) -> CopyError {
        CopyError(
            .failed,
            "a temporary file for the ranges cannot be \(what): \(SystemFile.errorText(errno)); free some "
                + "space, or name another directory with TMPDIR")
    }

    // MARK: Reading

    /// Calls `body` with every range in order.
    package func forEach(_ body: (ByteRange) throws -> Void) throws {
        var cursor = Cursor(self)
        while let range = try cursor.next() { try body(range) }
    }

    /// A place among the ranges of a spool.
    package struct Cursor: Sendable {
        private let spool: RangeSpool
        private var piece: [UInt8] = []
        private var place = 0
        /// Where the piece after this one begins, of the file and the memory behind it.
        private var following = 0
        private var lastEnd: UInt64 = 0

        private static let pieceByteCount = 64 << 10

        /// Before the first range of a spool that is finished.
        package init(_ spool: RangeSpool) {
            precondition(spool.isFinished, "a spool is read when it is finished")
            self.spool = spool
        }

        /// The next range; nil behind the last one.
        package mutating func next() throws(CopyError) -> ByteRange? {
            guard let gap = try number() else { return nil }
            guard let length = try number() else {
                preconditionFailure("a range has an offset and a length")
            }
            let range = ByteRange(offset: lastEnd + gap, length: length)
            lastEnd = range.end
            return range
        }

        private mutating func number() throws(CopyError) -> UInt64? {
            var value: UInt64 = 0
            var shift: UInt64 = 0
            while true {
                if place == piece.count {
                    guard try fill() else {
                        precondition(shift == 0, "a number has its end")
                        return nil
                    }
                }
                let byte = piece[place]
                place += 1
                value |= UInt64(byte & 0x7F) << shift
                shift += 7
                if byte < 0x80 { return value & 1 == 1 ? (value >> 1) << 12 : value >> 1 }
            }
        }

        /// Gets the next piece; false when there is none.
        private mutating func fill() throws(CopyError) -> Bool {
            place = 0
            guard following < spool.fileByteCount else {
                let start = following - spool.fileByteCount
                guard start < spool.bytes.count else {
                    piece = []
                    return false
                }
                // What is in memory is shared, not copied.
                piece = spool.bytes
                place = start
                following = spool.fileByteCount + piece.count
                return true
            }
            let wanted = min(Self.pieceByteCount, spool.fileByteCount - following)
            piece = [UInt8](repeating: 0, count: wanted)
            var got = 0
            while got < wanted {
                let count = piece.withUnsafeMutableBytes {
                    pread(
                        spool.file, $0.baseAddress.unsafelyUnwrapped + got, wanted - got,
                        off_t(following + got))
                }
                if count < 0, errno == EINTR { continue }
                guard count > 0 else { throw RangeSpool.failure("read") }
                got += count
            }
            following += wanted
            return true
        }
    }
}
