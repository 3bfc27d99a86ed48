/// Reads the fields of an option's data; nil when they are not there.
package struct NBDOptionReader {
    private var bytes: ArraySlice<UInt8>

    /// Reads `bytes`, the data of one option.
    package init(_ bytes: ArraySlice<UInt8>) { self.bytes = bytes }

    /// Bytes not read yet.
    package var count: Int { bytes.count }
    package var isEmpty: Bool { bytes.isEmpty }

    /// The next two bytes.
    package mutating func uint16() -> UInt16? { integer() }

    /// The next four bytes.
    package mutating func uint32() -> UInt32? { integer() }

    private mutating func integer<Value: FixedWidthInteger>() -> Value? {
        let byteCount = MemoryLayout<Value>.size
        guard bytes.count >= byteCount else { return nil }
        let value = bytes.prefix(byteCount).reduce(Value(0)) { $0 << 8 | Value($1) }
        bytes = bytes.dropFirst(byteCount)
        return value
    }

    /// UTF-8 without NUL, at most as long as a name may be.
    package mutating func text(byteCount: Int) -> String? {
        guard byteCount <= NBD.nameByteCountMax, bytes.count >= byteCount,
            !bytes.prefix(byteCount).contains(0),
            let text = String(validating: bytes.prefix(byteCount), as: UTF8.self)
        else { return nil }
        bytes = bytes.dropFirst(byteCount)
        return text
    }

    /// The queries of a meta context option.
    package mutating func queries(count: UInt32) -> [String]? {
        // Each takes four bytes at least, so a larger count cannot be true.
        guard UInt64(count) * 4 <= UInt64(bytes.count) else { return nil }
        var queries: [String] = []
        for _ in 0..<count {
            guard let byteCount = uint32(), byteCount <= NBD.nameByteCountMax,
                let query = text(byteCount: Int(byteCount))
            else { return nil }
            queries.append(query)
        }
        return queries
    }
}
