// Numbers of the NBD protocol that a client needs, and integers in its byte order (big endian):
// https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md

enum NBDWire {
    static let greetingMagic: UInt64 = 0x4E42_444D_4147_4943
    static let optionMagic: UInt64 = 0x4948_4156_454F_5054
    static let optionReplyMagic: UInt64 = 0x0003_E889_0455_65A9
    static let requestMagic: UInt32 = 0x2560_9513
    static let extendedRequestMagic: UInt32 = 0x21E4_1C71
    static let structuredReplyMagic: UInt32 = 0x668E_33EF
    static let extendedReplyMagic: UInt32 = 0x6E8A_278C
    static let simpleReplyMagic: UInt32 = 0x6744_6698

    static let fixedNewstyle: UInt16 = 1 << 0
    static let noZeroes: UInt16 = 1 << 1

    enum Option {
        static let startTLS: UInt32 = 5
        static let go: UInt32 = 7
        static let structuredReply: UInt32 = 8
        static let setMetaContext: UInt32 = 10
        static let extendedHeaders: UInt32 = 11
    }

    enum OptionReply {
        static let acknowledge: UInt32 = 1
        static let info: UInt32 = 3
        static let metaContext: UInt32 = 4
        static let errorBit: UInt32 = 1 << 31
        static let unsupported: UInt32 = 0x8000_0001
    }

    enum Command {
        static let read: UInt16 = 0
        static let write: UInt16 = 1
        static let disconnect: UInt16 = 2
        static let flush: UInt16 = 3
        static let writeZeroes: UInt16 = 6
        static let blockStatus: UInt16 = 7
    }

    enum TransmissionFlag {
        static let readOnly: UInt16 = 1 << 1
        static let flush: UInt16 = 1 << 2
        static let zeroes: UInt16 = 1 << 6
        static let manyConnections: UInt16 = 1 << 8
    }

    /// Of a command with extended headers: data follows.
    static let commandPayloadFlag: UInt16 = 1 << 5

    enum Chunk {
        static let none: UInt16 = 0
        static let offsetData: UInt16 = 1
        static let offsetHole: UInt16 = 2
        static let blockStatus: UInt16 = 5
        static let blockStatusExtended: UInt16 = 6
        static let errorBit: UInt16 = 1 << 15
        static let doneFlag: UInt16 = 1 << 0
    }

    /// Longest reply to an option, and longest chunk without data, that is believed.
    static let byteCountMax = 32 << 20
    /// As much of a message as is repeated to people; the protocol allows no longer one.
    static let messageByteCountMax = 4096
}

/// Integers of the wire in an array of bytes.
extension Array where Element == UInt8 {
    mutating func append<Value: FixedWidthInteger>(wire value: Value) {
        Swift.withUnsafeBytes(of: value.bigEndian) { append(contentsOf: $0) }
    }

    mutating func append(wireName name: String) {
        append(wire: UInt32(name.utf8.count))
        append(contentsOf: name.utf8)
    }

    /// The integer at `offset`, which must lie within the array.
    func wire<Value: FixedWidthInteger>(at offset: Int, as type: Value.Type = Value.self) -> Value {
        self[offset..<offset + MemoryLayout<Value>.size].reduce(0) { $0 << 8 | Value($1) }
    }
}
