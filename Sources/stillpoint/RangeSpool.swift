import BlockModel
import Control
import Glibc

// The ranges of an answer between reading and printing. Nothing may be printed before the last page
// has come, and there can be a hundred million ranges: they are kept as differences, two bytes each
// where every second block changed, and beyond a few mebibytes in an unnamed file.
//
//   number = value << 1, or value / 4096 << 1 | 1, as LEB128; a range is (offset - end of the
//   range before) and length, both as such numbers

/// Keeps ranges in order; see the head of this file.
final class RangeSpool {
    /// Bytes that stay in memory.
    private static let memoryByteCountMax = 4 << 20

    /// Ranges that were added.
    private(set) var count: UInt64 = 0
    /// Their bytes.
    private(set) var byteCount: UInt64 = 0
    private var pending: ByteRange?
    private var lastEnd: UInt64 = 0
    private var bytes: [UInt8] = []
    private var file: Int32 = -1

    deinit { if file >= 0 { close(file) } }

    /// Adds the next range; one that goes on where the last one ends is one with it.
    func add(_ range: ByteRange) throws(ControlError) {
        guard let last = pending else {
            pending = range
            return
        }
        guard last.end <= range.offset else {
            throw ControlError(.failed, "the service's answer is out of order")
        }
        if last.end == range.offset {
            pending = ByteRange(offset: last.offset, length: last.length + range.length)
        } else {
            try keep(last)
            pending = range
        }
    }

    /// No range follows.
    func finish() throws(ControlError) {
        if let last = pending { try keep(last) }
        pending = nil
    }

    private func keep(_ range: ByteRange) throws(ControlError) {
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

    /// Calls `body` with every range in order.
    func forEach(_ body: (ByteRange) throws -> Void) throws {
        var reader = Reader()
        if file >= 0 {
            var piece = [UInt8](repeating: 0, count: 1 << 20)
            var offset: off_t = 0
            while true {
                let got = pread(file, &piece, piece.count, offset)
                if got < 0 && errno == EINTR { continue }
                guard got >= 0 else { throw Self.failure("read") }
                if got == 0 { break }
                try reader.read(piece[..<got], body)
                offset += off_t(got)
            }
        }
        try reader.read(bytes[...], body)
    }

    private func spill() throws(ControlError) {
        if file < 0 {
            let directory = Defaults.environment("TMPDIR") ?? "/var/tmp"
            var template = Array("\(directory)/stillpoint-ranges-XXXXXX".utf8CString)
            file = mkstemp(&template)
            guard file >= 0 else { throw Self.failure("made in \(directory)") }
            unlink(template)
        }
        var written = 0
        while written < bytes.count {
            let got = bytes.withUnsafeBytes {
                write(file, $0.baseAddress! + written, $0.count - written)
            }
            if got < 0 && errno == EINTR { continue }
            guard got > 0 else { throw Self.failure("written") }
            written += got
        }
        bytes.removeAll(keepingCapacity: true)
    }

    private static func failure(_ what: String) -> ControlError {
        ControlError(
            .failed,
            "a temporary file for the ranges cannot be \(what): \(String(cString: strerror(errno))); "
                + "free some space, or name another directory with TMPDIR")
    }

    /// Turns bytes, in any pieces, back into ranges.
    private struct Reader {
        private var value: UInt64 = 0
        private var shift: UInt64 = 0
        private var gap: UInt64?
        private var lastEnd: UInt64 = 0

        mutating func read(
            _ bytes: ArraySlice<UInt8>, _ body: (ByteRange) throws -> Void
        ) throws {
            for byte in bytes {
                value |= UInt64(byte & 0x7F) << shift
                shift += 7
                guard byte < 0x80 else { continue }
                let number = value & 1 == 1 ? (value >> 1) << 12 : value >> 1
                value = 0
                shift = 0
                guard let start = gap else {
                    gap = number
                    continue
                }
                gap = nil
                let range = ByteRange(offset: lastEnd + start, length: number)
                lastEnd = range.end
                try body(range)
            }
        }
    }
}
