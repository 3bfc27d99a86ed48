// Big-endian words in raw memory.

extension UnsafeRawPointer {
    /// The big-endian integer `byteOffset` bytes behind the pointer.
    @inline(__always)
    func wire<Word: FixedWidthInteger & BitwiseCopyable>(
        _ byteOffset: Int, as type: Word.Type
    ) -> Word {
        Word(bigEndian: loadUnaligned(fromByteOffset: byteOffset, as: type))
    }
}

extension UnsafeMutableRawPointer {
    /// Stores an integer in big-endian order `byteOffset` bytes behind the pointer.
    @inline(__always)
    func putWire<Word: FixedWidthInteger & BitwiseCopyable>(_ byteOffset: Int, _ value: Word) {
        storeBytes(of: value.bigEndian, toByteOffset: byteOffset, as: Word.self)
    }
}

extension [UInt8] {
    /// Appends an integer in big-endian order.
    mutating func appendWire<Word: FixedWidthInteger>(_ value: Word) {
        Swift.withUnsafeBytes(of: value.bigEndian) { append(contentsOf: $0) }
    }
}

/// Takes big-endian words and texts from the front of bytes that came from outside.
///
/// Invariants
/// - Nothing is taken beyond the end: every function returns nil instead.
struct WireReader {
    private let bytes: ArraySlice<UInt8>
    private var position: Int

    init(_ bytes: ArraySlice<UInt8>) {
        self.bytes = bytes
        position = bytes.startIndex
    }

    /// Bytes not yet taken.
    var remaining: Int { bytes.endIndex - position }

    /// The next integer, nil at the end.
    mutating func take<Word: FixedWidthInteger>(_ type: Word.Type) -> Word? {
        let width = MemoryLayout<Word>.size
        guard remaining >= width else { return nil }
        let value = bytes[position..<position + width].reduce(Word(0)) { $0 << 8 | Word($1) }
        position += width
        return value
    }

    /// The next `byteCount` bytes, nil when there are fewer.
    mutating func take(_ byteCount: UInt32) -> ArraySlice<UInt8>? {
        guard remaining >= Int(byteCount) else { return nil }
        defer { position += Int(byteCount) }
        return bytes[position..<position + Int(byteCount)]
    }

    /// A text with its length before it; nil when it is too long, no UTF-8 or holds a NUL.
    mutating func takeText() -> String? {
        guard let byteCount = take(UInt32.self), byteCount <= NBDLimits.nameByteCountMax,
            let text = take(byteCount)
        else { return nil }
        return Self.text(text)
    }

    /// Bytes as text; nil when they are no UTF-8 or hold a NUL.
    static func text(_ bytes: ArraySlice<UInt8>) -> String? {
        guard !bytes.contains(0) else { return nil }
        return String(validating: bytes, as: UTF8.self)
    }
}
