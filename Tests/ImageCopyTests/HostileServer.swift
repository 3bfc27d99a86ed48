import Foundation
import Glibc
import NBDAccess
import Synchronization
import TestSupport
import Testing

/// The connection that a thread serves, which another thread ends.
private final class SharedConnection: Sendable {
    private struct State {
        var client: Int32?
        var isEnded = false
    }
    private let state = Mutex(State())

    /// False once all were ended.
    func begin(_ client: Int32) -> Bool {
        state.withLock {
            if !$0.isEnded { $0.client = client }
            return !$0.isEnded
        }
    }

    /// Closes it; under the lock, so that no other descriptor of its number is ever shut down.
    func end(_ client: Int32) {
        state.withLock {
            $0.client = nil
            close(client)
        }
    }

    func endAll() {
        state.withLock {
            $0.isEnded = true
            if let client = $0.client { shutdown(client, Int32(SHUT_RDWR)) }
        }
    }
}

/// An NBD server that says what a test wants, to one client after the other.
final class HostileServer: Sendable {
    /// A request of a client, in extended headers.
    struct Request: Sendable {
        let command: UInt16
        let cookie: UInt64
        let offset: UInt64
        let length: UInt64
    }

    private let directory: TemporaryDirectory
    private let listener: Int32
    private let ended: Background<Void>
    /// The connection that is served, until it is closed, and whether none may be served any more.
    private let served: SharedConnection

    var address: NBDServerAddress { .unix(path: directory.path("sock")) }

    /// Says `handshake` at once, then `reply` to each request; nil ends the connection, and so does
    /// the handshake when it `endsThere`.
    init(
        handshake: [UInt8], endsThere: Bool = false,
        reply: @escaping @Sendable (Request) -> [UInt8]? = { _ in nil }
    ) throws {
        directory = try TemporaryDirectory()
        let made = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        var name = sockaddr_un()
        name.sun_family = sa_family_t(AF_UNIX)
        let path = directory.path("sock")
        withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: path.utf8) }
        let bound = withUnsafePointer(to: &name) { name in
            name.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(made, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard made >= 0, bound == 0, listen(made, 8) == 0 else {
            throw TestFailure("no socket for a server: \(errno)")
        }
        listener = made
        let served = SharedConnection()
        self.served = served
        ended = Background {
            while true {
                let client = accept(made, nil, nil)
                // The listener was shut down.
                guard client >= 0 else { return }
                if served.begin(client) { Self.serve(client, handshake, endsThere, reply) }
                served.end(client)
            }
        }
    }

    deinit {
        shutdown(listener, Int32(SHUT_RDWR))
        // A client may live longer: the optimiser decides which of two objects goes first.
        served.endAll()
        #expect(throws: Never.self, "the server ends with its test") {
            try ended.value(within: 300)
        }
        close(listener)
    }

    private static func serve(
        _ client: Int32, _ handshake: [UInt8], _ endsThere: Bool,
        _ reply: (Request) -> [UInt8]?
    ) {
        guard sendAll(client, handshake) else { return }
        if endsThere { shutdown(client, Int32(SHUT_WR)) }
        // What a client says in a handshake that goes well has this length, and is not looked at.
        guard receive(client, handshakeByteCount) != nil else { return }
        while let bytes = receive(client, 32) {
            let request = Request(
                command: bytes.big(at: 6), cookie: bytes.big(at: 8), offset: bytes.big(at: 16),
                length: bytes.big(at: 24))
            guard let answer = reply(request), sendAll(client, answer) else { return }
        }
    }

    private static func sendAll(_ client: Int32, _ bytes: [UInt8]) -> Bool {
        var sent = 0
        while sent < bytes.count {
            let count = bytes.withUnsafeBytes {
                send(client, $0.baseAddress! + sent, $0.count - sent, Int32(MSG_NOSIGNAL))
            }
            guard count > 0 else { return false }
            sent += count
        }
        return true
    }

    private static func receive(_ client: Int32, _ byteCount: Int) -> [UInt8]? {
        var bytes = [UInt8](repeating: 0, count: byteCount)
        let count = recv(client, &bytes, byteCount, Int32(MSG_WAITALL))
        return count == byteCount ? bytes : nil
    }

    // MARK: What a proper server says

    static let exportName = "disk"
    /// Flags; three options: extended headers, a context for the export, the export.
    private static let handshakeByteCount =
        4 + 16 + (16 + 4 + 4 + 4 + 4 + "base:allocation".utf8.count) + (16 + 4 + 4 + 2)

    static func greeting() -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.append(big: NBD.passwordMagic)
        bytes.append(big: NBD.optionMagic)
        bytes.append(big: UInt16(3))
        return bytes
    }

    static func answer(_ option: UInt32, _ type: UInt32, _ data: [UInt8] = []) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.append(big: NBD.optionReplyMagic)
        bytes.append(big: option)
        bytes.append(big: type)
        bytes.append(big: UInt32(data.count))
        return bytes + data
    }

    /// The handshake for an export of that size.
    static func handshake(byteCount: UInt64, hasAllocation: Bool = false) -> [UInt8] {
        let done = NBD.OptionReply.acknowledged
        var bytes = greeting() + answer(NBD.Option.extendedHeaders, done)
        if hasAllocation {
            bytes += answer(
                NBD.Option.setMetaContext, NBD.OptionReply.metaContext,
                [0, 0, 0, 1] + Array("base:allocation".utf8))
        }
        bytes += answer(NBD.Option.setMetaContext, done)
        var facts: [UInt8] = [0, 0]
        facts.append(big: byteCount)
        facts.append(big: NBD.TransmissionFlag.hasFlags)
        return bytes + answer(NBD.Option.go, NBD.OptionReply.info, facts)
            + answer(NBD.Option.go, done)
    }

    /// A chunk of an extended reply.
    static func chunk(
        _ type: UInt16, cookie: UInt64, isLast: Bool = true, _ body: [UInt8] = []
    ) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.append(big: NBD.extendedReplyMagic)
        bytes.append(big: UInt16(isLast ? 1 : 0))
        bytes.append(big: type)
        bytes.append(big: cookie)
        bytes.append(big: UInt64(0))
        bytes.append(big: UInt64(body.count))
        return bytes + body
    }

    static func data(
        cookie: UInt64, offset: UInt64, count: Int, isLast: Bool = true
    ) -> [UInt8] {
        var body: [UInt8] = []
        body.append(big: offset)
        return chunk(
            NBD.ChunkType.offsetData, cookie: cookie, isLast: isLast,
            body + [UInt8](repeating: 0xda, count: count))
    }

    static func hole(
        cookie: UInt64, offset: UInt64, count: UInt32, isLast: Bool = true
    ) -> [UInt8] {
        var body: [UInt8] = []
        body.append(big: offset)
        body.append(big: count)
        return chunk(NBD.ChunkType.offsetHole, cookie: cookie, isLast: isLast, body)
    }

    /// A whole and proper reply to a read.
    static func proper(_ request: Request) -> [UInt8] {
        data(cookie: request.cookie, offset: request.offset, count: Int(request.length))
    }
}
