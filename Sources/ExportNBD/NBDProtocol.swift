// Numbers of the NBD protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md,
// extended headers from its branch extension-ext-header. Everything on the wire is big endian.

/// Magic numbers, flags and limits.
enum NBD {
    static let greetingMagic: UInt64 = 0x4E42_444D_4147_4943
    static let optionMagic: UInt64 = 0x4948_4156_454F_5054
    static let optionReplyMagic: UInt64 = 0x0003_E889_0455_65A9
    static let requestMagic: UInt32 = 0x2560_9513
    static let extendedRequestMagic: UInt32 = 0x21E4_1C71
    static let simpleReplyMagic: UInt32 = 0x6744_6698
    static let structuredReplyMagic: UInt32 = 0x668E_33EF
    static let extendedReplyMagic: UInt32 = 0x6E8A_278C

    static let requestByteCount = 28
    static let extendedRequestByteCount = 32
    static let simpleReplyByteCount = 16
    static let structuredReplyByteCount = 20
    static let extendedReplyByteCount = 32

    /// Longest payload of a request or reply.
    static let payloadByteCountMax = 32 << 20
    /// Longest name of an export or meta context.
    static let nameByteCountMax = 4096
    /// Longest option; the connection of a longer one ends.
    static let optionByteCountMax = 65536
    static let preferredBlockByteCount: UInt32 = 4096

    /// Handshake flags of server and client.
    enum HandshakeFlag {
        static let fixedNewstyle: UInt16 = 1 << 0
        static let noZeroes: UInt16 = 1 << 1
    }

    /// Transmission flags.
    enum ExportFlag {
        static let hasFlags: UInt16 = 1 << 0
        static let readOnly: UInt16 = 1 << 1
        static let sendFlush: UInt16 = 1 << 2
        static let sendForceUnitAccess: UInt16 = 1 << 3
        static let rotational: UInt16 = 1 << 4
        static let sendTrim: UInt16 = 1 << 5
        static let sendWriteZeroes: UInt16 = 1 << 6
        static let sendDontFragment: UInt16 = 1 << 7
        static let canMultiConnect: UInt16 = 1 << 8
        static let sendCache: UInt16 = 1 << 10
        static let sendFastZero: UInt16 = 1 << 11
        static let blockStatusPayload: UInt16 = 1 << 12
    }

    enum Option: UInt32 {
        case exportName = 1
        case abort = 2
        case list = 3
        case startTLS = 5
        case info = 6
        case go = 7
        case structuredReply = 8
        case listMetaContext = 9
        case setMetaContext = 10
        case extendedHeaders = 11
    }

    enum OptionReply: UInt32 {
        case acknowledge = 1
        case server = 2
        case info = 3
        case metaContext = 4
        case unsupported = 0x8000_0001
        case invalid = 0x8000_0003
        case encryptionRequired = 0x8000_0005
        case unknown = 0x8000_0006
        case tooBig = 0x8000_0009
        case extendedHeadersRequired = 0x8000_000A
    }

    enum Info: UInt16 {
        case export = 0
        case name = 1
        case description = 2
        case blockSize = 3
    }

    enum Command: UInt16 {
        case read = 0
        case write = 1
        case disconnect = 2
        case flush = 3
        case trim = 4
        case cache = 5
        case writeZeroes = 6
        case blockStatus = 7
    }

    enum CommandFlag {
        static let forceUnitAccess: UInt16 = 1 << 0
        static let noHole: UInt16 = 1 << 1
        static let dontFragment: UInt16 = 1 << 2
        static let requestOne: UInt16 = 1 << 3
        static let fastZero: UInt16 = 1 << 4
        static let payloadLength: UInt16 = 1 << 5
    }

    enum Chunk: UInt16 {
        case none = 0
        case offsetData = 1
        case blockStatus = 5
        case blockStatusExtended = 6
        case error = 0x8001
    }

    static let chunkDone: UInt16 = 1 << 0

    /// Error numbers on the wire.
    enum ErrorNumber: UInt32 {
        case notPermitted = 1
        case inputOutput = 5
        case noMemory = 12
        case invalid = 22
        case noSpace = 28
        case overflow = 75
        case notSupported = 95
        case shutdown = 108
    }
}

/// How replies of a connection look.
enum NBDReplyMode: Sendable {
    case simple
    case structured
    case extended
}

/// A request as it came in.
struct NBDRequestHeader: Equatable {
    var flags: UInt16
    var type: UInt16
    var cookie: UInt64
    var offset: UInt64
    var length: UInt64

    /// Decodes a header of the mode's size; nil when the magic number is wrong.
    init?(decoding bytes: UnsafeRawPointer, mode: NBDReplyMode) {
        let isExtended = mode == .extended
        let magic: UInt32 = bytes.loadBigEndian(at: 0)
        guard magic == (isExtended ? NBD.extendedRequestMagic : NBD.requestMagic) else {
            return nil
        }
        flags = bytes.loadBigEndian(at: 4)
        type = bytes.loadBigEndian(at: 6)
        cookie = bytes.loadBigEndian(at: 8)
        offset = bytes.loadBigEndian(at: 16)
        if isExtended {
            length = bytes.loadBigEndian(at: 24)
        } else {
            let short: UInt32 = bytes.loadBigEndian(at: 24)
            length = UInt64(short)
        }
    }

    /// Whether `length` bytes follow the header. Those of a write do, whatever its flags: QEMU up
    /// to 10 at least leaves the payload flag out, and its data must never be taken for requests.
    func hasPayload(in mode: NBDReplyMode) -> Bool {
        type == NBD.Command.write.rawValue
            || mode == .extended && flags & NBD.CommandFlag.payloadLength != 0
    }

    /// Bytes of a header in the mode.
    static func byteCount(in mode: NBDReplyMode) -> Int {
        mode == .extended ? NBD.extendedRequestByteCount : NBD.requestByteCount
    }
}

extension UnsafeRawPointer {
    /// An integer at any byte offset.
    func loadBigEndian<Value: FixedWidthInteger & BitwiseCopyable>(at offset: Int) -> Value {
        // SAFETY: callers check that the bytes are there; every bit pattern is an integer.
        Value(bigEndian: loadUnaligned(fromByteOffset: offset, as: Value.self))
    }
}

extension UnsafeMutableRawPointer {
    func storeBigEndian<Value: FixedWidthInteger & BitwiseCopyable>(_ value: Value, at offset: Int)
    {
        // SAFETY: callers own the bytes.
        storeBytes(of: value.bigEndian, toByteOffset: offset, as: Value.self)
    }
}

/// Bytes to be sent, appended to field by field. For handshakes, where allocation is cheap.
struct NBDBytes {
    private(set) var bytes: [UInt8] = []

    mutating func append<Value: FixedWidthInteger>(_ value: Value) {
        withUnsafeBytes(of: value.bigEndian) { bytes.append(contentsOf: $0) }
    }

    mutating func append(_ text: String) { bytes.append(contentsOf: text.utf8) }

    mutating func append(_ other: NBDBytes) { bytes.append(contentsOf: other.bytes) }

    mutating func appendZeroes(_ count: Int) {
        bytes.append(contentsOf: repeatElement(0, count: count))
    }

    mutating func removeAll() { bytes.removeAll(keepingCapacity: true) }
}
