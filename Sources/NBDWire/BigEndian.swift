// Integers in the byte order of the wire: in memory, for headers of requests and replies, and in arrays
// of bytes, for handshakes, where allocation is cheap.

extension UnsafeRawPointer {
    /// An integer at any byte offset.
    @inlinable
    package func loadBigEndian<Value: FixedWidthInteger & BitwiseCopyable>(
        at offset: Int
    ) -> Value {
        // SAFETY: callers check that the bytes are there; every bit pattern is an integer.
        Value(bigEndian: loadUnaligned(fromByteOffset: offset, as: Value.self))
    }
}

extension UnsafeMutableRawPointer {
    /// Writes an integer at any byte offset.
    @inlinable
    package func storeBigEndian<Value: FixedWidthInteger & BitwiseCopyable>(
        _ value: Value, at offset: Int
    ) {
        // SAFETY: callers own the bytes.
        storeBytes(of: value.bigEndian, toByteOffset: offset, as: Value.self)
    }
}

extension Array where Element == UInt8 {
    /// Appends an integer.
    @inlinable
    package mutating func append<Value: FixedWidthInteger>(wire value: Value) {
        Swift.withUnsafeBytes(of: value.bigEndian) { append(contentsOf: $0) }
    }

    /// Appends a name behind its length in bytes.
    package mutating func append(wireName name: String) {
        append(wire: UInt32(name.utf8.count))
        append(contentsOf: name.utf8)
    }

    /// The integer at `offset`, which must lie within the array.
    @inlinable
    package func wire<Value: FixedWidthInteger>(
        at offset: Int, as type: Value.Type = Value.self
    ) -> Value {
        self[offset..<offset + MemoryLayout<Value>.size].reduce(0) { $0 << 8 | Value($1) }
    }
}
