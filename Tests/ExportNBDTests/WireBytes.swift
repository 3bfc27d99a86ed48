/// Takes big-endian words from the front of bytes.
struct WireReader {
    private var bytes: ArraySlice<UInt8>

    init(_ bytes: ArraySlice<UInt8>) { self.bytes = bytes }

    var remaining: Int { bytes.count }

    mutating func take<Word: FixedWidthInteger>(_ type: Word.Type) -> Word? {
        let width = MemoryLayout<Word>.size
        guard bytes.count >= width else { return nil }
        defer { bytes = bytes.dropFirst(width) }
        return bytes.prefix(width).reduce(Word(0)) { $0 << 8 | Word($1) }
    }

    mutating func take(_ byteCount: UInt32) -> ArraySlice<UInt8>? {
        guard bytes.count >= Int(byteCount) else { return nil }
        defer { bytes = bytes.dropFirst(Int(byteCount)) }
        return bytes.prefix(Int(byteCount))
    }
}

extension [UInt8] {
    /// Appends an integer in big-endian order.
    mutating func appendWire<Word: FixedWidthInteger>(_ value: Word) {
        Swift.withUnsafeBytes(of: value.bigEndian) { append(contentsOf: $0) }
    }
}
