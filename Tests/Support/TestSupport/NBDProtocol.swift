// Independent of the product on purpose: the tests' own client shares nothing with `NBDWire`, so that
// a wrong number there is found.

/// The numbers of the NBD specification, as the tests' own client writes them on the wire.
package enum NBD {
    package static let passwordMagic: UInt64 = 0x4e42_444d_4147_4943
    package static let optionMagic: UInt64 = 0x4948_4156_454f_5054
    package static let optionReplyMagic: UInt64 = 0x0003_e889_0455_65a9
    package static let requestMagic: UInt32 = 0x2560_9513
    package static let simpleReplyMagic: UInt32 = 0x6744_6698
    package static let structuredReplyMagic: UInt32 = 0x668e_33ef
    package static let extendedRequestMagic: UInt32 = 0x21e4_1c71
    package static let extendedReplyMagic: UInt32 = 0x6e8a_278c

    package enum Option {
        package static let exportName: UInt32 = 1
        package static let abort: UInt32 = 2
        package static let list: UInt32 = 3
        package static let startTLS: UInt32 = 5
        package static let info: UInt32 = 6
        package static let go: UInt32 = 7
        package static let structuredReply: UInt32 = 8
        package static let listMetaContext: UInt32 = 9
        package static let setMetaContext: UInt32 = 10
        package static let extendedHeaders: UInt32 = 11
    }

    package enum OptionReply {
        package static let acknowledged: UInt32 = 1
        package static let server: UInt32 = 2
        package static let info: UInt32 = 3
        package static let metaContext: UInt32 = 4
        package static let unsupported: UInt32 = 0x8000_0001
        package static let policy: UInt32 = 0x8000_0002
        package static let invalid: UInt32 = 0x8000_0003
        package static let tlsRequired: UInt32 = 0x8000_0005
        package static let unknown: UInt32 = 0x8000_0006
        package static let tooBig: UInt32 = 0x8000_0009
        package static let extendedHeadersRequired: UInt32 = 0x8000_000a
    }

    package enum TransmissionFlag {
        package static let hasFlags: UInt16 = 1 << 0
        package static let readOnly: UInt16 = 1 << 1
        package static let sendFlush: UInt16 = 1 << 2
        package static let sendFUA: UInt16 = 1 << 3
        package static let sendTrim: UInt16 = 1 << 5
        package static let sendWriteZeroes: UInt16 = 1 << 6
        package static let sendDF: UInt16 = 1 << 7
        package static let canMultiConn: UInt16 = 1 << 8
        package static let sendCache: UInt16 = 1 << 10
        package static let sendFastZero: UInt16 = 1 << 11
        package static let blockStatusPayload: UInt16 = 1 << 12
    }

    package enum Command: UInt16, Sendable {
        case read = 0
        case write = 1
        case disconnect = 2
        case flush = 3
        case trim = 4
        case cache = 5
        case writeZeroes = 6
        case blockStatus = 7
        case unknown = 0x77
    }

    package enum CommandFlag {
        package static let fua: UInt16 = 1 << 0
        package static let noHole: UInt16 = 1 << 1
        package static let dontFragment: UInt16 = 1 << 2
        package static let requestOne: UInt16 = 1 << 3
        package static let fastZero: UInt16 = 1 << 4
        package static let payloadLength: UInt16 = 1 << 5
    }

    package enum ChunkType {
        package static let none: UInt16 = 0
        package static let offsetData: UInt16 = 1
        package static let offsetHole: UInt16 = 2
        package static let blockStatus: UInt16 = 5
        package static let blockStatusExtended: UInt16 = 6
        package static let error: UInt16 = 0x8001
        package static let errorOffset: UInt16 = 0x8002
    }

    package enum ErrorNumber {
        package static let notPermitted: UInt32 = 1
        package static let inputOutput: UInt32 = 5
        package static let invalid: UInt32 = 22
        package static let noSpace: UInt32 = 28
        package static let overflow: UInt32 = 75
        package static let notSupported: UInt32 = 95
    }
}

/// What an NBD client asks for.
package struct NBDRequest: Sendable {
    package var command: NBD.Command
    package var flags: UInt16
    package var cookie: UInt64
    package var offset: UInt64
    package var length: UInt64
    package var payload: [UInt8]
    /// Leaves the payload flag of a write with extended headers out, as QEMU does.
    package var omitsPayloadFlag = false

    package init(
        _ command: NBD.Command, flags: UInt16 = 0, cookie: UInt64 = 1, offset: UInt64 = 0,
        length: UInt64 = 0, payload: [UInt8] = []
    ) {
        self.command = command
        self.flags = flags
        self.cookie = cookie
        self.offset = offset
        self.length = length
        self.payload = payload
    }

    /// The request as it goes over the wire.
    package func encoded(_ headers: NBDClient.Headers) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(32 + payload.count)
        switch headers {
        case .simple, .structured:
            bytes.append(big: NBD.requestMagic)
            bytes.append(big: flags)
            bytes.append(big: command.rawValue)
            bytes.append(big: cookie)
            bytes.append(big: offset)
            bytes.append(big: UInt32(truncatingIfNeeded: length))
        case .extended:
            bytes.append(big: NBD.extendedRequestMagic)
            let implied =
                command == .write && !omitsPayloadFlag ? NBD.CommandFlag.payloadLength : 0
            bytes.append(big: flags | implied)
            bytes.append(big: command.rawValue)
            bytes.append(big: cookie)
            bytes.append(big: offset)
            bytes.append(big: length)
        }
        bytes += payload
        return bytes
    }
}

/// One chunk of a reply; a simple reply is represented as one that is done.
package struct NBDChunk: Sendable {
    package var isDone: Bool
    package var type: UInt16
    package var cookie: UInt64
    /// Only in extended headers: the offset of the request.
    package var headerOffset: UInt64?
    package var payload: [UInt8]
    /// Of a simple reply.
    package var simpleError: UInt32?

    /// The error number in it, if it reports one.
    package var error: UInt32? {
        if let simpleError { return simpleError == 0 ? nil : simpleError }
        return type & 0x8000 == 0 ? nil : payload.big(at: 0)
    }
}

/// All chunks of one request.
package struct NBDReply: Sendable {
    package var cookie: UInt64
    package var chunks: [NBDChunk]

    package init(cookie: UInt64, chunks: [NBDChunk]) {
        self.cookie = cookie
        self.chunks = chunks
    }

    /// The first error reported in it.
    package var error: UInt32? { chunks.lazy.compactMap(\.error).first }

    /// The bytes of a read of `length` bytes at `offset`, put together from its chunks.
    package func data(offset: UInt64, length: Int) throws -> [UInt8] {
        if let first = chunks.first, first.simpleError != nil { return first.payload }
        var bytes = [UInt8](repeating: 0xee, count: length)
        var covered = 0
        for chunk in chunks {
            switch chunk.type {
            case NBD.ChunkType.offsetData:
                let at: UInt64 = chunk.payload.big(at: 0)
                let start = Int(clamping: at &- offset)
                let content = chunk.payload.dropFirst(8)
                guard start <= length - content.count else { throw TestFailure("data too long") }
                bytes.replaceSubrange(start..<start + content.count, with: content)
                covered += content.count
            case NBD.ChunkType.offsetHole:
                let at: UInt64 = chunk.payload.big(at: 0)
                let count: UInt32 = chunk.payload.big(at: 8)
                let start = Int(clamping: at &- offset)
                guard start <= length - Int(count) else { throw TestFailure("hole too long") }
                for index in start..<start + Int(count) { bytes[index] = 0 }
                covered += Int(count)
            case NBD.ChunkType.none: break
            default: throw TestFailure("chunk type \(chunk.type) in the reply to a read")
            }
        }
        guard covered == length else { throw TestFailure("\(covered) of \(length) bytes read") }
        return bytes
    }

    /// The extents of a block status reply by context id.
    package func extents() throws -> [UInt32: [NBDExtent]] {
        var result: [UInt32: [NBDExtent]] = [:]
        for chunk in chunks {
            var extents: [NBDExtent] = []
            switch chunk.type {
            case NBD.ChunkType.blockStatus:
                guard (chunk.payload.count - 4) % 8 == 0 else { throw TestFailure("odd chunk") }
                for at in stride(from: 4, to: chunk.payload.count, by: 8) {
                    let length: UInt32 = chunk.payload.big(at: at)
                    let flags: UInt32 = chunk.payload.big(at: at + 4)
                    extents.append(NBDExtent(length: UInt64(length), flags: UInt64(flags)))
                }
            case NBD.ChunkType.blockStatusExtended:
                let count: UInt32 = chunk.payload.big(at: 4)
                guard chunk.payload.count == 8 + 16 * Int(count) else {
                    throw TestFailure("\(count) extents in \(chunk.payload.count) bytes")
                }
                for at in stride(from: 8, to: chunk.payload.count, by: 16) {
                    extents.append(
                        NBDExtent(
                            length: chunk.payload.big(at: at),
                            flags: chunk.payload.big(at: at + 8)))
                }
            case NBD.ChunkType.none: continue
            default: throw TestFailure("chunk type \(chunk.type) in a block status reply")
            }
            let context: UInt32 = chunk.payload.big(at: 0)
            guard result[context] == nil else { throw TestFailure("context \(context) twice") }
            result[context] = extents
        }
        return result
    }
}

/// A range of one status.
package struct NBDExtent: Equatable, Sendable {
    package var length: UInt64
    package var flags: UInt64

    package init(length: UInt64, flags: UInt64) {
        self.length = length
        self.flags = flags
    }
}

extension [UInt8] {
    /// Appends an integer in network byte order.
    package mutating func append<Value: FixedWidthInteger>(big value: Value) {
        Swift.withUnsafeBytes(of: value.bigEndian) { append(contentsOf: $0) }
    }

    /// The integer in network byte order at `offset`.
    package func big<Value: FixedWidthInteger>(at offset: Int) -> Value {
        withUnsafeBytes {
            Value(bigEndian: $0.loadUnaligned(fromByteOffset: offset, as: Value.self))
        }
    }
}
