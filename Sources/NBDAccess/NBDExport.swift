internal import Glibc
internal import NBDWire

// A connection that uses one export. Requests are gathered and sent when a reply is waited for;
// replies come in any order and in pieces.
//
// Invariants
// - Nothing the server says is believed before it was compared with what was asked: data lies
//   within its request, or the connection is given up.
// - Used by one thread at a time.

/// A connection that uses one export; see the head of this file.
package final class NBDExport {
    /// A piece of a reply.
    package struct Piece {
        /// Of the request it answers.
        package var cookie: UInt64
        /// Bytes of the request that are there now.
        package var byteCount = 0
        package var extents: [Extent] = []
        /// The request failed, with the protocol's number of the reason.
        package var errorNumber: UInt32?
        /// The request is answered.
        package var isLast: Bool
    }

    /// A run of the export's bytes.
    package struct Extent: Equatable, Sendable {
        package var length: UInt64
        /// Bits of `base:allocation`: 1 a hole, 2 reads as zero.
        package var flags: UInt64

        /// The bytes read as zero.
        package var isZero: Bool { flags & 2 != 0 }
    }

    /// Bytes of the export.
    package private(set) var size: UInt64 = 0
    /// Block status can be asked for.
    package private(set) var hasAllocation = false
    /// Writes are refused.
    package private(set) var isReadOnly = false
    /// What was written can be made to reach stable storage.
    package private(set) var canFlush = false
    /// Zeroes can be written without sending them.
    package private(set) var canZero = false
    /// A flush over one connection is one of what all have written.
    package private(set) var sharesFlushes = false
    private let stream: NBDStream
    private var isExtended = false

    /// Connects and opens `export`, for reading and writing or for writing alone, which servers of
    /// little learning do as well.
    package convenience init(
        _ address: NBDServerAddress, export: String, isForWriting: Bool = false
    ) throws(NBDAccessError) {
        try self.init(
            try NBDStream(connecting: address), export: export, isForWriting: isForWriting)
    }

    /// Opens `export` over a stream with a server at its other end. `secure` takes over its socket
    /// after the server has agreed to TLS, and returns one with the plain text.
    package init(
        _ stream: NBDStream, export: String, isForWriting: Bool = false,
        secure: ((Int32) throws(NBDAccessError) -> Int32)? = nil
    ) throws(NBDAccessError) {
        self.stream = stream
        let greeting = try stream.receive(NBD.greetingByteCount)
        guard greeting.wire(at: 0) == NBD.greetingMagic, greeting.wire(at: 8) == NBD.optionMagic,
            greeting.wire(at: 16, as: UInt16.self) & NBD.HandshakeFlag.fixedNewstyle != 0
        else { throw .notUnderstood("no NBD server of fixed newstyle") }
        var flags: [UInt8] = []
        flags.append(
            wire: UInt32(NBD.HandshakeFlag.fixedNewstyle | NBD.HandshakeFlag.noZeroes))
        stream.send(flags)
        if let secure {
            guard try negotiate(.startTLS, []) != nil else {
                throw .refused("the server has no TLS")
            }
            try stream.secure(secure)
        }
        isExtended = try negotiate(.extendedHeaders, []) != nil
        var isStructured = isExtended
        if !isExtended {
            isStructured = try negotiate(.structuredReply, []) != nil
            guard isStructured || isForWriting else {
                throw .refused("the server has no structured replies")
            }
        }
        if isStructured { try selectAllocation(export) }
        try open(export)
    }

    deinit {
        stream.send(request(.disconnect, cookie: 0, offset: 0, length: 0))
        // A server that is gone needs no goodbye.
        try? stream.flush()
    }

    // MARK: Handshake

    /// Sends an option; returns its replies before the acknowledgement, nil when the server does
    /// not know it.
    private func negotiate(
        _ option: NBD.Option, _ data: [UInt8]
    ) throws(NBDAccessError) -> [(type: UInt32, data: [UInt8])]? {
        var bytes: [UInt8] = []
        bytes.append(wire: NBD.optionMagic)
        bytes.append(wire: option.rawValue)
        bytes.append(wire: UInt32(data.count))
        stream.send(bytes + data)
        var replies: [(type: UInt32, data: [UInt8])] = []
        while true {
            let header = try stream.receive(NBD.optionReplyByteCount)
            let byteCount = Int(header.wire(at: 16, as: UInt32.self))
            guard header.wire(at: 0) == NBD.optionReplyMagic,
                header.wire(at: 8) == option.rawValue, byteCount <= NBD.payloadByteCountMax,
                replies.count < 64
            else { throw .notUnderstood("the answer to option \(option.rawValue)") }
            let type: UInt32 = header.wire(at: 12)
            let data = try stream.receive(byteCount)
            if type == NBD.OptionReply.acknowledge.rawValue { return replies }
            if type == NBD.OptionReply.unsupported.rawValue { return nil }
            guard type & NBD.optionErrorBit == 0 else {
                let text = Self.printable(data)
                throw .refused(text.isEmpty ? "error \(type & 0xFFFF) of the handshake" : text)
            }
            replies.append((type, data))
        }
    }

    /// What a server says, fit for a terminal and a log: one line of bounded length, in which
    /// nothing steers either.
    private static func printable(_ data: [UInt8]) -> String {
        let text = String(decoding: data.prefix(NBD.messageByteCountMax), as: UTF8.self)
        let scalars = text.unicodeScalars.map { scalar -> Unicode.Scalar in
            switch scalar.properties.generalCategory {
            case .control, .format, .lineSeparator, .paragraphSeparator: "?"
            default: scalar
            }
        }
        return String(String.UnicodeScalarView(scalars))
    }

    private func selectAllocation(_ export: String) throws(NBDAccessError) {
        var data: [UInt8] = []
        data.append(wireName: export)
        data.append(wire: UInt32(1))
        data.append(wireName: NBD.allocationContext)
        let replies = try negotiate(.setMetaContext, data) ?? []
        hasAllocation = replies.contains { $0.type == NBD.OptionReply.metaContext.rawValue }
    }

    private func open(_ export: String) throws(NBDAccessError) {
        var data: [UInt8] = []
        data.append(wireName: export)
        data.append(wire: UInt16(0))
        guard let replies = try negotiate(.go, data),
            let facts = replies.first(where: {
                $0.type == NBD.OptionReply.info.rawValue && $0.data.count >= 12
                    && $0.data.wire(at: 0) == NBD.Info.export.rawValue
            })
        else { throw .notUnderstood("the server does not say how large \(export) is") }
        size = facts.data.wire(at: 2)
        let flags: UInt16 = facts.data.wire(at: 10)
        isReadOnly = flags & NBD.ExportFlag.readOnly != 0
        canFlush = flags & NBD.ExportFlag.sendFlush != 0
        canZero = flags & NBD.ExportFlag.sendWriteZeroes != 0
        sharesFlushes = flags & NBD.ExportFlag.canMultiConnect != 0
        // What no file can have; offsets within it would not fit the system's own type.
        guard size <= UInt64(Int64.max) else {
            throw .notUnderstood("an export of \(size) bytes")
        }
    }

    // MARK: Requests

    private var mode: NBDReplyMode { isExtended ? .extended : .structured }

    private func request(
        _ command: NBD.Command, flags: UInt16 = 0, cookie: UInt64, offset: UInt64, length: UInt64
    ) -> [UInt8] {
        NBDRequestHeader(
            flags: flags, type: command.rawValue, cookie: cookie, offset: offset, length: length
        ).encoded(in: mode)
    }

    /// Asks for bytes; `next` brings them.
    package func requestRead(cookie: UInt64, offset: UInt64, length: Int) {
        stream.send(
            request(
                .read, cookie: cookie, offset: offset, length: UInt64(length)))
    }

    /// Asks how the bytes from `offset` on lie; `next` brings extents that describe some of them.
    package func requestStatus(cookie: UInt64, offset: UInt64, length: UInt64) {
        precondition(hasAllocation, "block status was negotiated")
        let limit: UInt64 = isExtended ? .max : 0xFFFF_0000
        stream.send(
            request(
                .blockStatus, cookie: cookie, offset: offset,
                length: min(length, limit)))
    }

    /// Sends bytes to be written; `next` tells when they are.
    package func requestWrite(
        cookie: UInt64, offset: UInt64, _ bytes: UnsafeRawBufferPointer
    ) throws(NBDAccessError) {
        // With extended headers a payload has to be announced.
        stream.send(
            request(
                .write, flags: isExtended ? NBD.CommandFlag.payloadLength : 0, cookie: cookie,
                offset: offset, length: UInt64(bytes.count)))
        try stream.flush()
        try stream.sendNow(bytes)
    }

    /// Asks for a range to read as zero, as a hole where the server can make one.
    package func requestZero(
        cookie: UInt64, offset: UInt64, length: UInt64
    ) throws(NBDAccessError) {
        stream.send(
            request(.writeZeroes, cookie: cookie, offset: offset, length: length))
        try stream.flush()
    }

    /// Asks for everything that was written to reach stable storage.
    package func requestFlush(cookie: UInt64) {
        stream.send(request(.flush, cookie: cookie, offset: 0, length: 0))
    }

    /// Everything that was acknowledged is on stable storage when this returns. No other request
    /// is under way.
    package func flush() throws(NBDAccessError) {
        guard canFlush else { return }
        requestFlush(cookie: .max)
        while true {
            let piece = try next { _, _, _ in nil }
            guard piece.cookie == .max else { throw .notUnderstood("a reply to nothing") }
            if let number = piece.errorNumber { throw .failed(number: number) }
            if piece.isLast { return }
        }
    }

    /// Reads bytes. No other request is under way.
    package func read(
        _ offset: UInt64, into place: UnsafeMutableRawPointer, _ byteCount: Int
    ) throws(NBDAccessError) {
        requestRead(cookie: .max, offset: offset, length: byteCount)
        var received = 0
        while true {
            let piece = try next { cookie, start, count in
                guard cookie == .max, start >= offset, start - offset <= UInt64(byteCount),
                    count <= byteCount - Int(start - offset)
                else { return nil }
                return place + Int(start - offset)
            }
            guard piece.cookie == .max else { throw .notUnderstood("a reply to nothing") }
            if let number = piece.errorNumber { throw .failed(number: number) }
            received += piece.byteCount
            guard piece.isLast else { continue }
            // Pieces that lie on each other would leave others out.
            guard received == byteCount else {
                throw .notUnderstood("\(received) of \(byteCount) bytes")
            }
            return
        }
    }

    /// How the bytes from `offset` on lie, for some of `length`. No other request is under way.
    package func status(_ offset: UInt64, _ length: UInt64) throws(NBDAccessError) -> [Extent] {
        requestStatus(cookie: .max, offset: offset, length: length)
        var extents: [Extent] = []
        while true {
            let piece = try next { _, _, _ in nil }
            guard piece.cookie == .max else { throw .notUnderstood("a reply to nothing") }
            if let number = piece.errorNumber { throw .failed(number: number) }
            extents += piece.extents
            guard extents.count <= Self.statusExtentCountMax else {
                throw .notUnderstood("a block status without end")
            }
            guard piece.isLast else { continue }
            guard let first = extents.first, first.length > 0 else {
                throw .notUnderstood("a block status without extents")
            }
            return extents
        }
    }

    private static let statusExtentCountMax = 1 << 20

    // MARK: Replies

    /// Waits for the next piece of a reply. `place` says where `byteCount` bytes at `offset` of
    /// the request with that cookie belong; nil when they do not belong to it.
    package func next(
        _ place: (_ cookie: UInt64, _ offset: UInt64, _ byteCount: Int) -> UnsafeMutableRawPointer?
    ) throws(NBDAccessError) -> Piece {
        let start = try stream.receive(4)
        if !isExtended, start.wire(at: 0) == NBD.simpleReplyMagic { return try simpleReply() }
        // Nothing more is waited for behind what is no header.
        guard start.wire(at: 0) == NBDChunkHeader.magic(in: mode) else {
            throw .notUnderstood("no reply to a request")
        }
        let rest = try stream.receive(NBDChunkHeader.byteCount(in: mode) - start.count)
        let header = NBDChunkHeader(decoding: start + rest, mode: mode)
        guard header.length <= UInt64(NBD.payloadByteCountMax) + 8 else {
            throw .notUnderstood("a chunk of \(header.length) bytes")
        }
        let (type, cookie, length) = (header.type, header.cookie, Int(header.length))
        var piece = Piece(cookie: cookie, isLast: header.flags & NBD.chunkDone != 0)
        switch NBD.Chunk(rawValue: type) {
        case .some(.none) where length == 0: break
        case .offsetData where length > 8:
            let offset: UInt64 = try stream.receive(8).wire(at: 0)
            piece.byteCount = length - 8
            guard let destination = place(cookie, offset, piece.byteCount) else {
                throw .notUnderstood("data that was not asked for")
            }
            try stream.receive(into: destination, piece.byteCount)
        case .offsetHole where length == 12:
            let hole = try stream.receive(12)
            piece.byteCount = Int(hole.wire(at: 8, as: UInt32.self))
            guard let destination = place(cookie, hole.wire(at: 0), piece.byteCount) else {
                throw .notUnderstood("a hole that was not asked for")
            }
            memset(destination, 0, piece.byteCount)
        case .blockStatus, .blockStatusExtended:
            piece.extents = try extents(
                try stream.receive(length),
                isExtended: type == NBD.Chunk.blockStatusExtended.rawValue)
        case _ where type & NBD.chunkErrorBit != 0 && length >= 6:
            piece.errorNumber = try stream.receive(length).wire(at: 0)
        default: throw .notUnderstood("a chunk of type \(type) and \(length) bytes")
        }
        return piece
    }

    /// What requests that bring no data may be answered with.
    private func simpleReply() throws(NBDAccessError) -> Piece {
        let rest = try stream.receive(12)
        let number: UInt32 = rest.wire(at: 0)
        return Piece(
            cookie: rest.wire(at: 4), errorNumber: number == 0 ? nil : number, isLast: true)
    }

    private func extents(
        _ body: [UInt8], isExtended: Bool
    ) throws(NBDAccessError) -> [Extent] {
        let start = isExtended ? 8 : 4
        let stride = isExtended ? 16 : 8
        guard body.count > start, (body.count - start) % stride == 0 else {
            throw .notUnderstood("extents of \(body.count) bytes")
        }
        return Swift.stride(from: start, to: body.count, by: stride).map { place in
            isExtended
                ? Extent(length: body.wire(at: place), flags: body.wire(at: place + 8))
                : Extent(
                    length: UInt64(body.wire(at: place, as: UInt32.self)),
                    flags: UInt64(body.wire(at: place + 4, as: UInt32.self)))
        }
    }
}
