// A small NBD client of the tests, independent of the product's `NBDWire`: it is written against the
// specification, with blocking sockets. It shows every header and lets a test send bytes that no
// proper client would. The time limits of its sockets only detect hangs.

import Foundation
import Glibc

/// Where an NBD server listens.
package enum NBDAddress: Sendable {
    case unix(path: String)
    case tcp(port: UInt16)
}

/// The connection ended where more was to be read.
package struct ConnectionEnded: Error {}

/// One connection of the tests' own NBD client.
package final class NBDClient: @unchecked Sendable {
    /// The three forms of headers a connection may use.
    package enum Headers: String, CaseIterable, Sendable {
        case simple, structured, extended
    }

    /// A reply to an option.
    package struct OptionReply: Sendable {
        package let option: UInt32
        package let type: UInt32
        package let data: [UInt8]
    }

    /// The limits of block sizes a server told.
    package struct BlockSizes: Equatable, Sendable {
        package let minimum: UInt32
        package let preferred: UInt32
        package let maximum: UInt32
    }

    package let descriptor: Int32
    package var headers: Headers = .simple
    package private(set) var byteCount: UInt64 = 0
    package private(set) var flags: UInt16 = 0
    package private(set) var blockSizes: BlockSizes?
    /// The ids of the selected meta contexts by name.
    package private(set) var contexts: [String: UInt32] = [:]
    private var lastCookie: UInt64 = 0x5349_0000_0000_0000

    /// Connects; says nothing yet.
    package init(_ address: NBDAddress, timeoutSeconds: Int = 120) throws {
        switch address {
        case .unix(let path):
            descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
            var name = sockaddr_un()
            name.sun_family = sa_family_t(AF_UNIX)
            let bytes = Array(path.utf8)
            precondition(bytes.count < MemoryLayout.size(ofValue: name.sun_path))
            withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: bytes) }
            try connect(&name)
        case .tcp(let port):
            descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
            var name = sockaddr_in()
            name.sin_family = sa_family_t(AF_INET)
            name.sin_port = port.bigEndian
            name.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
            try connect(&name)
            var one: Int32 = 1
            setsockopt(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, &one, 4)
        }
        var limit = timeval(tv_sec: timeoutSeconds, tv_usec: 0)
        let size = socklen_t(MemoryLayout<timeval>.size)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, size)
        setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, size)
    }

    /// Connects and opens `export`.
    package convenience init(
        _ address: NBDAddress, export: String, headers: Headers = .simple,
        contexts: [String] = []
    ) throws {
        try self.init(address)
        try greet()
        try open(export, headers: headers, contexts: contexts)
    }

    deinit { close(descriptor) }

    private func connect<Name>(_ name: inout Name) throws {
        let result = withUnsafeBytes(of: &name) {
            Glibc.connect(
                descriptor, $0.baseAddress!.assumingMemoryBound(to: sockaddr.self),
                socklen_t($0.count))
        }
        guard result == 0 else {
            let error = errno
            close(descriptor)
            throw TestFailure("cannot connect: \(String(cString: strerror(error)))")
        }
    }

    // MARK: Bytes

    /// Sends all of `bytes`; throws when the server has closed the connection.
    package func send(_ bytes: [UInt8]) throws {
        var sent = 0
        while sent < bytes.count {
            let count = bytes.withUnsafeBytes {
                Glibc.send(
                    descriptor, $0.baseAddress! + sent, bytes.count - sent,
                    Int32(MSG_NOSIGNAL))
            }
            if count < 0 && errno == EINTR { continue }
            if count < 0 && (errno == EPIPE || errno == ECONNRESET) { throw ConnectionEnded() }
            guard count > 0 else { throw TestFailure("send: \(errno)") }
            sent += count
        }
    }

    /// Receives exactly `count` bytes.
    package func receive(_ count: Int) throws -> [UInt8] {
        try [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
            while filled < count {
                let got = recv(descriptor, buffer.baseAddress! + filled, count - filled, 0)
                if got < 0 && errno == EINTR { continue }
                if got == 0 || (got < 0 && errno == ECONNRESET) { throw ConnectionEnded() }
                guard got > 0 else {
                    throw TestFailure("nothing received in time (errno \(errno))")
                }
                filled += got
            }
        }
    }

    /// Reads and drops until the server closes the connection; throws if it does not.
    package func drainUntilClosed() throws {
        do {
            while true { _ = try receive(1) }
        } catch is ConnectionEnded {}
    }

    /// Tells the server that nothing more comes.
    package func shutdownSending() {
        shutdown(descriptor, Int32(SHUT_WR))
    }

    // MARK: Handshake

    /// Reads the server's greeting and answers it.
    @discardableResult
    package func greet(clientFlags: UInt32 = 3) throws -> UInt16 {
        let greeting = try receive(18)
        guard greeting.big(at: 0) == NBD.passwordMagic, greeting.big(at: 8) == NBD.optionMagic
        else {
            throw TestFailure("this is no NBD server: \(greeting)")
        }
        var bytes: [UInt8] = []
        bytes.append(big: clientFlags)
        try send(bytes)
        return greeting.big(at: 16)
    }

    /// Sends an option.
    package func sendOption(_ option: UInt32, _ data: [UInt8] = []) throws {
        var bytes: [UInt8] = []
        bytes.append(big: NBD.optionMagic)
        bytes.append(big: option)
        bytes.append(big: UInt32(data.count))
        try send(bytes + data)
    }

    /// Receives one reply to an option.
    package func receiveOptionReply() throws -> OptionReply {
        let header = try receive(20)
        guard header.big(at: 0) == NBD.optionReplyMagic else {
            throw TestFailure("wrong magic in an option reply: \(header)")
        }
        let length: UInt32 = header.big(at: 16)
        guard length <= 1 << 20 else { throw TestFailure("an option reply of \(length) bytes") }
        return OptionReply(
            option: header.big(at: 8), type: header.big(at: 12), data: try receive(Int(length)))
    }

    /// Sends an option and gathers its replies up to the last (an acknowledgement or an error).
    package func negotiate(_ option: UInt32, _ data: [UInt8] = []) throws -> [OptionReply] {
        try sendOption(option, data)
        var replies: [OptionReply] = []
        while true {
            let reply = try receiveOptionReply()
            guard reply.option == option else { throw TestFailure("reply to another option") }
            replies.append(reply)
            if reply.type == NBD.OptionReply.acknowledged || reply.type & 0x8000_0000 != 0 {
                return replies
            }
        }
    }

    /// The data of GO and INFO.
    package static func goData(_ export: String, information: [UInt16] = [3]) -> [UInt8] {
        var data: [UInt8] = []
        data.append(big: UInt32(export.utf8.count))
        data += export.utf8
        data.append(big: UInt16(information.count))
        for item in information { data.append(big: item) }
        return data
    }

    /// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
    package static func contextData(_ export: String, _ queries: [String]) -> [UInt8] {
        var data: [UInt8] = []
        data.append(big: UInt32(export.utf8.count))
        data += export.utf8
        data.append(big: UInt32(queries.count))
        for query in queries {
            data.append(big: UInt32(query.utf8.count))
            data += query.utf8
        }
        return data
    }

    /// Negotiates headers and contexts and opens `export`.
    package func open(_ export: String, headers: Headers, contexts names: [String] = []) throws {
        switch headers {
        case .simple: break
        case .structured: try mustAcknowledge(NBD.Option.structuredReply)
        case .extended: try mustAcknowledge(NBD.Option.extendedHeaders)
        }
        self.headers = headers
        if !names.isEmpty {
            let replies = try negotiate(
                NBD.Option.setMetaContext, Self.contextData(export, names))
            try mustEnd(replies)
            for reply in replies.dropLast() {
                let name = String(decoding: reply.data.dropFirst(4), as: UTF8.self)
                contexts[name] = reply.data.big(at: 0)
            }
        }
        let replies = try negotiate(NBD.Option.go, Self.goData(export))
        try mustEnd(replies)
        for reply in replies.dropLast() where reply.type == NBD.OptionReply.info {
            let item: UInt16 = reply.data.big(at: 0)
            switch item {
            case 0:
                byteCount = reply.data.big(at: 2)
                flags = reply.data.big(at: 10)
            case 3:
                blockSizes = BlockSizes(
                    minimum: reply.data.big(at: 2), preferred: reply.data.big(at: 6),
                    maximum: reply.data.big(at: 10))
            default: break
            }
        }
    }

    private func mustAcknowledge(_ option: UInt32) throws {
        try mustEnd(try negotiate(option))
    }

    private func mustEnd(_ replies: [OptionReply]) throws {
        guard let last = replies.last, last.type == NBD.OptionReply.acknowledged else {
            let text = replies.last.map { String(decoding: $0.data, as: UTF8.self) } ?? ""
            throw TestFailure("the server refused an option: \(text)")
        }
    }

    // MARK: Transmission

    /// A cookie not used before on this connection.
    package func freshCookie() -> UInt64 {
        lastCookie += 1
        return lastCookie
    }

    /// Sends a request.
    package func send(_ request: NBDRequest) throws {
        try send(request.encoded(headers))
    }

    /// Receives one chunk; `readLength` tells how many bytes follow a simple reply without error.
    package func receiveChunk(readLength: (UInt64) -> Int = { _ in 0 }) throws -> NBDChunk {
        let first = try receive(16)
        let magic: UInt32 = first.big(at: 0)
        switch (headers, magic) {
        case (.simple, NBD.simpleReplyMagic), (.structured, NBD.simpleReplyMagic):
            let error: UInt32 = first.big(at: 4)
            let cookie: UInt64 = first.big(at: 8)
            let count = error == 0 ? readLength(cookie) : 0
            if headers == .structured && count > 0 {
                throw TestFailure("a simple reply to a read where structured ones were agreed")
            }
            return NBDChunk(
                isDone: true, type: 0, cookie: cookie, headerOffset: nil,
                payload: try receive(count), simpleError: error)
        case (.structured, NBD.structuredReplyMagic):
            let length: UInt32 = try receive(4).big(at: 0)
            return try chunk(first, payloadLength: UInt64(length), headerOffset: nil)
        case (.extended, NBD.extendedReplyMagic):
            let rest = try receive(16)
            return try chunk(first, payloadLength: rest.big(at: 8), headerOffset: rest.big(at: 0))
        default:
            throw TestFailure("magic 0x\(String(magic, radix: 16)) with \(headers) headers")
        }
    }

    private func chunk(
        _ header: [UInt8], payloadLength: UInt64, headerOffset: UInt64?
    ) throws -> NBDChunk {
        guard payloadLength <= 33 << 20 else { throw TestFailure("\(payloadLength) byte chunk") }
        let flags: UInt16 = header.big(at: 4)
        guard flags & ~1 == 0 else { throw TestFailure("unknown chunk flags \(flags)") }
        return NBDChunk(
            isDone: flags & 1 == 1, type: header.big(at: 6), cookie: header.big(at: 8),
            headerOffset: headerOffset, payload: try receive(Int(payloadLength)))
    }

    /// Sends a request and receives its whole reply; nothing else may be in flight.
    package func perform(_ request: NBDRequest) throws -> NBDReply {
        var request = request
        request.cookie = freshCookie()
        try send(request)
        var reply = NBDReply(cookie: request.cookie, chunks: [])
        repeat {
            let length = request.command == .read ? Int(clamping: request.length) : 0
            let chunk = try receiveChunk { _ in length }
            guard chunk.cookie == request.cookie else {
                throw TestFailure("a reply to cookie \(chunk.cookie), not \(request.cookie)")
            }
            if let offset = chunk.headerOffset, offset != request.offset {
                throw TestFailure(
                    "the reply to \(request.command) of \(request.length) at \(request.offset)"
                        + " repeats offset \(offset)")
            }
            reply.chunks.append(chunk)
        } while !reply.chunks.last!.isDone
        return reply
    }

    /// Reads `length` bytes at `offset`.
    package func read(_ offset: UInt64, _ length: Int, flags: UInt16 = 0) throws -> [UInt8] {
        let reply = try perform(
            NBDRequest(.read, flags: flags, offset: offset, length: UInt64(length)))
        if let error = reply.error { throw TestFailure("read at \(offset): error \(error)") }
        return try reply.data(offset: offset, length: length)
    }

    /// Writes `bytes` at `offset`.
    package func write(_ offset: UInt64, _ bytes: [UInt8], flags: UInt16 = 0) throws {
        try succeed(
            NBDRequest(
                .write, flags: flags, offset: offset, length: UInt64(bytes.count), payload: bytes))
    }

    /// Performs a request that must succeed.
    package func succeed(_ request: NBDRequest) throws {
        if let error = try perform(request).error {
            throw TestFailure("\(request.command) at \(request.offset): error \(error)")
        }
    }

    /// The extents of one context, from `offset` on.
    package func blockStatus(
        _ offset: UInt64, _ length: UInt64, context: String = "base:allocation", flags: UInt16 = 0
    ) throws -> [NBDExtent] {
        let reply = try perform(
            NBDRequest(.blockStatus, flags: flags, offset: offset, length: length))
        if let error = reply.error { throw TestFailure("block status: error \(error)") }
        guard let id = contexts[context], let extents = try reply.extents()[id] else {
            throw TestFailure("no extents of \(context)")
        }
        return extents
    }
}
