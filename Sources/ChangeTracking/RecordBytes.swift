internal import BlockModel

// Fields of a record's page, little-endian. Reading checks bounds; what the values mean is checked
// by who asked for them.

extension RawSpan {
    /// 64 bits at a byte offset within the span.
    func word(at offset: Int) -> UInt64 {
        precondition(offset >= 0 && offset + 8 <= byteCount, "a field lies in its page")
        // SAFETY: the bounds were checked above and every bit pattern of an integer is valid.
        return UInt64(
            littleEndian: unsafeLoadUnaligned(fromByteOffset: offset, as: UInt64.self))
    }

    /// 32 bits at a byte offset within the span.
    func half(at offset: Int) -> UInt32 {
        precondition(offset >= 0 && offset + 4 <= byteCount, "a field lies in its page")
        // SAFETY: the bounds were checked above and every bit pattern of an integer is valid.
        return UInt32(
            littleEndian: unsafeLoadUnaligned(fromByteOffset: offset, as: UInt32.self))
    }

    /// One byte within the span.
    func byte(at offset: Int) -> UInt8 {
        precondition(offset >= 0 && offset < byteCount, "a field lies in its page")
        // SAFETY: the bounds were checked above and every bit pattern of an integer is valid.
        return unsafeLoad(fromByteOffset: offset, as: UInt8.self)
    }

    /// 128 bits at a byte offset within the span.
    func uniqueID(at offset: Int) -> UniqueID {
        UniqueID(high: word(at: offset), low: word(at: offset + 8))
    }

    /// UTF-8 text at a byte offset within the span.
    func text(at offset: Int, byteCount count: Int) throws(MapFileHeader.Damage) -> String {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(count)
        for position in 0..<count { bytes.append(byte(at: offset + position)) }
        guard let text = String(validating: bytes, as: UTF8.self), !bytes.contains(0) else {
            throw .impossible
        }
        return text
    }

    /// True when every byte from `start` up to `end` is zero.
    func isZero(from start: Int, to end: Int) -> Bool {
        var position = start
        while position < end, position % 8 != 0 {
            if byte(at: position) != 0 { return false }
            position += 1
        }
        while position + 8 <= end {
            if word(at: position) != 0 { return false }
            position += 8
        }
        while position < end {
            if byte(at: position) != 0 { return false }
            position += 1
        }
        return true
    }

    /// CRC32C of the first `count` bytes.
    func checksum(_ count: Int) -> UInt32 {
        precondition(count <= byteCount, "a checksum covers bytes of its page")
        return withUnsafeBytes { Checksum.crc32c(UnsafeRawBufferPointer(rebasing: $0[0..<count])) }
    }
}

extension MutableRawSpan {
    mutating func setWord(_ value: UInt64, at offset: Int) {
        storeBytes(of: value.littleEndian, toByteOffset: offset, as: UInt64.self)
    }

    mutating func setHalf(_ value: UInt32, at offset: Int) {
        storeBytes(of: value.littleEndian, toByteOffset: offset, as: UInt32.self)
    }

    mutating func setUniqueID(_ value: UniqueID, at offset: Int) {
        setWord(value.high, at: offset)
        setWord(value.low, at: offset + 8)
    }

    mutating func setText(_ text: String, at offset: Int) {
        for (position, byte) in text.utf8.enumerated() {
            storeBytes(of: byte, toByteOffset: offset + position, as: UInt8.self)
        }
    }

    /// Zeroes a whole page.
    mutating func clearPage() {
        for offset in stride(from: 0, to: MapFileHeader.byteCount, by: 8) {
            setWord(0, at: offset)
        }
    }

    /// Ends a page with the checksum of the bytes before.
    mutating func sealPage() {
        let end = MapFileHeader.byteCount - 4
        setHalf(bytes.checksum(end), at: end)
    }
}
