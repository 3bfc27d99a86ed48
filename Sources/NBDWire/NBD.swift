// Numbers of the NBD protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md,
// extended headers from its branch extension-ext-header. Everything on the wire is big endian.
//
// They are computed: a stored constant of another module is read through a call, for every request.

/// Magic numbers, flags and limits.
@usableFromInline package enum NBD {
    /// Bytes of a server's greeting, of the header of an option, and of that of a reply to one.
    @inlinable package static var greetingByteCount: Int { 18 }
    @inlinable package static var optionByteCount: Int { 16 }
    @inlinable package static var optionReplyByteCount: Int { 20 }

    @inlinable package static var greetingMagic: UInt64 { 0x4E42_444D_4147_4943 }
    @inlinable package static var optionMagic: UInt64 { 0x4948_4156_454F_5054 }
    @inlinable package static var optionReplyMagic: UInt64 { 0x0003_E889_0455_65A9 }
    @inlinable package static var requestMagic: UInt32 { 0x2560_9513 }
    @inlinable package static var extendedRequestMagic: UInt32 { 0x21E4_1C71 }
    @inlinable package static var simpleReplyMagic: UInt32 { 0x6744_6698 }
    @inlinable package static var structuredReplyMagic: UInt32 { 0x668E_33EF }
    @inlinable package static var extendedReplyMagic: UInt32 { 0x6E8A_278C }

    /// Bytes of headers.
    @inlinable package static var requestByteCount: Int { 28 }
    @inlinable package static var extendedRequestByteCount: Int { 32 }
    @inlinable package static var simpleReplyByteCount: Int { 16 }
    @inlinable package static var structuredReplyByteCount: Int { 20 }
    @inlinable package static var extendedReplyByteCount: Int { 32 }

    /// Longest payload of a request or reply.
    @inlinable package static var payloadByteCountMax: Int { 32 << 20 }
    /// Longest name of an export or meta context.
    @inlinable package static var nameByteCountMax: Int { 4096 }
    /// Longest option; the connection of a longer one ends.
    @inlinable package static var optionByteCountMax: Int { 65536 }
    /// Longest message for people.
    @inlinable package static var messageByteCountMax: Int { 4096 }
    /// The meta context that says which parts of an export are allocated.
    @inlinable package static var allocationContext: String { "base:allocation" }
    @inlinable package static var preferredBlockByteCount: UInt32 { 4096 }

    /// Handshake flags of server and client.
    @usableFromInline package enum HandshakeFlag {
        @inlinable package static var fixedNewstyle: UInt16 { 1 << 0 }
        @inlinable package static var noZeroes: UInt16 { 1 << 1 }
    }

    /// Transmission flags.
    @usableFromInline package enum ExportFlag {
        @inlinable package static var hasFlags: UInt16 { 1 << 0 }
        @inlinable package static var readOnly: UInt16 { 1 << 1 }
        @inlinable package static var sendFlush: UInt16 { 1 << 2 }
        @inlinable package static var sendForceUnitAccess: UInt16 { 1 << 3 }
        @inlinable package static var rotational: UInt16 { 1 << 4 }
        @inlinable package static var sendTrim: UInt16 { 1 << 5 }
        @inlinable package static var sendWriteZeroes: UInt16 { 1 << 6 }
        @inlinable package static var sendDontFragment: UInt16 { 1 << 7 }
        @inlinable package static var canMultiConnect: UInt16 { 1 << 8 }
        @inlinable package static var sendCache: UInt16 { 1 << 10 }
        @inlinable package static var sendFastZero: UInt16 { 1 << 11 }
        @inlinable package static var blockStatusPayload: UInt16 { 1 << 12 }
    }

    /// Options of the handshake.
    @usableFromInline package enum Option: UInt32, Sendable {
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

    /// Types of replies to an option; those from `optionErrorBit` on are refusals.
    @usableFromInline package enum OptionReply: UInt32, Sendable {
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

    /// What `info` and `go` are answered with.
    @usableFromInline package enum Info: UInt16, Sendable {
        case export = 0
        case name = 1
        case description = 2
        case blockSize = 3
    }

    /// Types of requests.
    @usableFromInline package enum Command: UInt16, Sendable {
        case read = 0
        case write = 1
        case disconnect = 2
        case flush = 3
        case trim = 4
        case cache = 5
        case writeZeroes = 6
        case blockStatus = 7
    }

    /// Flags of requests.
    @usableFromInline package enum CommandFlag {
        @inlinable package static var forceUnitAccess: UInt16 { 1 << 0 }
        @inlinable package static var noHole: UInt16 { 1 << 1 }
        @inlinable package static var dontFragment: UInt16 { 1 << 2 }
        @inlinable package static var requestOne: UInt16 { 1 << 3 }
        @inlinable package static var fastZero: UInt16 { 1 << 4 }
        @inlinable package static var payloadLength: UInt16 { 1 << 5 }
    }

    /// Types of chunks of a structured or extended reply; those with `chunkErrorBit` are refusals.
    @usableFromInline package enum Chunk: UInt16, Sendable {
        case none = 0
        case offsetData = 1
        case offsetHole = 2
        case blockStatus = 5
        case blockStatusExtended = 6
        case error = 0x8001
    }

    /// Of a chunk: it is the last one of its reply.
    @inlinable package static var chunkDone: UInt16 { 1 << 0 }
    /// Of a chunk's type: the request failed.
    @inlinable package static var chunkErrorBit: UInt16 { 1 << 15 }
    /// Of the type of a reply to an option: the option is refused.
    @inlinable package static var optionErrorBit: UInt32 { 1 << 31 }

    /// Error numbers on the wire.
    @usableFromInline package enum ErrorNumber: UInt32, Sendable {
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
