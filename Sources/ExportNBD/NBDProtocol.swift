// The numbers of the NBD protocol (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md,
// extended headers from its branch extension-ext-header). Everything on the wire is big-endian.

/// Magic numbers.
package enum NBDMagic {
    /// "NBDMAGIC": the server's first word.
    package static let greeting: UInt64 = 0x4E42_444D_4147_4943
    /// "IHAVEOPT": the server's second word, and the head of every option.
    package static let option: UInt64 = 0x4948_4156_454F_5054
    package static let optionReply: UInt64 = 0x0003_E889_0455_65A9
    package static let request: UInt32 = 0x2560_9513
    package static let extendedRequest: UInt32 = 0x21E4_1C71
    package static let simpleReply: UInt32 = 0x6744_6698
    package static let structuredReply: UInt32 = 0x668E_33EF
    package static let extendedReply: UInt32 = 0x6E8A_278C
}

/// Bounds of what this server takes and gives.
package enum NBDLimits {
    /// Longest option; a longer one ends the connection.
    package static let optionByteCountMax = 64 << 10
    /// Longest export name, description or context name.
    package static let nameByteCountMax = 4096
    /// Most options in one handshake.
    package static let optionCountMax = 1024
    /// Most queries in one meta context option.
    package static let queryCountMax = 256
    /// Most meta contexts selected at once: they are held as bits of a word.
    package static let selectedContextCountMax = 64
    /// Largest payload of a read or a write.
    package static let payloadByteCountMax: UInt64 = 32 << 20
    /// Largest payload that is read and thrown away, so that its sender gets an error instead of
    /// the end of the connection.
    package static let skippedByteCountMax: UInt64 = 64 << 20
    /// What the block size information says.
    package static let minimumBlock: UInt32 = 1
    package static let preferredBlock: UInt32 = 4096
    /// Bytes for the status records of one reply: 4096 extents.
    package static let statusByteCount = 64 << 10
}

/// Flags of the handshake.
package enum NBDHandshakeFlags {
    package static let fixedNewstyle: UInt16 = 1 << 0
    package static let noZeroes: UInt16 = 1 << 1
    package static let clientFixedNewstyle: UInt32 = 1 << 0
    package static let clientNoZeroes: UInt32 = 1 << 1
}

/// What an export offers.
package struct NBDTransmissionFlags: OptionSet, Sendable {
    package let rawValue: UInt16

    package init(rawValue: UInt16) { self.rawValue = rawValue }

    package static let hasFlags = NBDTransmissionFlags(rawValue: 1 << 0)
    package static let readOnly = NBDTransmissionFlags(rawValue: 1 << 1)
    package static let sendFlush = NBDTransmissionFlags(rawValue: 1 << 2)
    package static let sendForceUnitAccess = NBDTransmissionFlags(rawValue: 1 << 3)
    package static let rotational = NBDTransmissionFlags(rawValue: 1 << 4)
    package static let sendTrim = NBDTransmissionFlags(rawValue: 1 << 5)
    package static let sendWriteZeroes = NBDTransmissionFlags(rawValue: 1 << 6)
    package static let sendDontFragment = NBDTransmissionFlags(rawValue: 1 << 7)
    package static let canMultiConnect = NBDTransmissionFlags(rawValue: 1 << 8)
    package static let sendCache = NBDTransmissionFlags(rawValue: 1 << 10)
    package static let sendFastZero = NBDTransmissionFlags(rawValue: 1 << 11)
    package static let blockStatusPayload = NBDTransmissionFlags(rawValue: 1 << 12)
}

/// Options a client may send in the handshake.
package enum NBDOption: UInt32, Sendable {
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

/// Replies to options.
package enum NBDOptionReply: UInt32, Sendable {
    case acknowledge = 1
    case server = 2
    case info = 3
    case metaContext = 4
    case unsupported = 0x8000_0001
    case policy = 0x8000_0002
    case invalid = 0x8000_0003
    case platform = 0x8000_0004
    case tlsRequired = 0x8000_0005
    case unknown = 0x8000_0006
    case shutdown = 0x8000_0007
    case blockSizeRequired = 0x8000_0008
    case tooBig = 0x8000_0009
    case extendedHeadersRequired = 0x8000_000A
}

/// Items of the answer to INFO and GO.
package enum NBDInfo: UInt16, Sendable {
    case export = 0
    case name = 1
    case description = 2
    case blockSize = 3
}

/// Commands of the transmission phase.
package enum NBDCommand: UInt16, Sendable {
    case read = 0
    case write = 1
    case disconnect = 2
    case flush = 3
    case trim = 4
    case cache = 5
    case writeZeroes = 6
    case blockStatus = 7
}

/// Flags of a command.
package struct NBDCommandFlags: OptionSet, Sendable {
    package let rawValue: UInt16

    package init(rawValue: UInt16) { self.rawValue = rawValue }

    package static let forceUnitAccess = NBDCommandFlags(rawValue: 1 << 0)
    package static let noHole = NBDCommandFlags(rawValue: 1 << 1)
    package static let dontFragment = NBDCommandFlags(rawValue: 1 << 2)
    package static let requestOne = NBDCommandFlags(rawValue: 1 << 3)
    package static let fastZero = NBDCommandFlags(rawValue: 1 << 4)
    package static let payloadLength = NBDCommandFlags(rawValue: 1 << 5)
}

/// Types of reply chunks.
package enum NBDChunkType: UInt16, Sendable {
    case none = 0
    case offsetData = 1
    case offsetHole = 2
    case blockStatus = 5
    case blockStatusExtended = 6
    case error = 0x8001
    case errorOffset = 0x8002
}

/// Flag of the last chunk of a reply.
package let nbdChunkDone: UInt16 = 1 << 0

/// How replies are framed; the negotiation decides.
package enum NBDReplyStyle: UInt8, Sendable {
    case simple
    case structured
    case extended

    /// Bytes of a request's header.
    package var requestHeaderByteCount: Int { self == .extended ? 32 : 28 }
}
