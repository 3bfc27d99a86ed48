internal import CLinux
internal import Glibc
internal import NBDWire
package import RingIO
internal import Synchronization

// The NBD server: listeners and handshakes on the first loop, open connections on the loops of
// the exports they opened.
//
// Invariants
// - `connectionCount` counts sockets accepted and not yet closed, on all loops.
// - After `stop` has returned, no listener, handshake or session is left on any loop.

/// Where clients connect.
package indirect enum NBDEndpoint: Sendable, Equatable {
    /// A Unix socket, mode 0600.
    case unix(path: String)
    case tcp(host: String, port: UInt16)
    /// A socket that somebody else opened there and that listens already. The descriptor is the
    /// server's from now on, the name is not.
    case passed(descriptor: Int32, at: NBDEndpoint)
}

/// How the server behaves.
package struct NBDServerConfiguration: Sendable {
    package var endpoints: [NBDEndpoint]
    /// Why TCP on other than loopback addresses is refused; nil: it is served.
    package var exposureRefusal: NBDExposureRefusal? = .withoutTLS
    /// TLS, where it is offered. Clients over Unix sockets may use it and need not.
    package var encryption: NBDEncryption?
    /// Most connections at a time, handshakes included.
    package var connectionCountMax = 1000
    /// Most handshakes at a time: the oldest makes room for the newest.
    package var handshakeCountMax = 128
    /// Longest handshake.
    package var handshakeNanoseconds: UInt64 = 10_000_000_000
    /// How long `stop` lets requests under way finish.
    package var stopNanoseconds: UInt64 = 10_000_000_000
    /// How long `start` waits for a TCP port that is in use.
    var busyPortNanoseconds: UInt64 = 3_000_000_000
    /// What one open connection may hold.
    var session = NBDSessionLimits()

    package init(endpoints: [NBDEndpoint]) { self.endpoints = endpoints }
}

/// Why the server could not start, for people.
package struct NBDServerError: Error, CustomStringConvertible {
    package enum Kind: Sendable {
        /// Another server listens there.
        case busy
        /// It is not allowed, or makes no sense.
        case refused
        /// The system refused.
        case failed
    }

    package let kind: Kind
    package let message: String

    package var description: String { message }
}

/// Serves the exports of a directory over NBD.
package final class NBDServer: Sendable {
    let directory: any ExportDirectory
    let loops: [LoopThread]
    let configuration: NBDServerConfiguration
    private let connectionCount = Atomic<Int>(0)
    private let state = Mutex(State())

    private struct State {
        var acceptor: LoopConfined<NBDAcceptor>?
        var tables: [LoopConfined<NBDSessionTable>] = []
        var paths: [String] = []
        var whenEmpty: CheckedContinuation<Void, Never>?
    }

    package init(
        directory: any ExportDirectory, loops: [LoopThread], configuration: NBDServerConfiguration
    ) {
        precondition(!loops.isEmpty, "a server needs a loop")
        self.directory = directory
        self.loops = loops
        self.configuration = configuration
    }

    private static let busyPortPause: Duration = .milliseconds(20)

    /// A service that was killed may hold its port a little longer: the kernel ends its rings, and
    /// the accepts in them, some time after the process, and nothing tells when it has.
    private func listen(at endpoint: NBDEndpoint) async throws -> Int32 {
        let end = ContinuousClock.now + .nanoseconds(Int64(configuration.busyPortNanoseconds))
        while true {
            do {
                return try NBDSocket.listen(endpoint, configuration.exposureRefusal)
            } catch {
                guard case .tcp = endpoint, error.kind == .busy, ContinuousClock.now < end else {
                    throw error
                }
                try await Task.sleep(for: Self.busyPortPause)
            }
        }
    }

    /// Opens the listeners and begins to serve; all or nothing.
    package func start() async throws {
        var sockets: [NBDListeningSocket] = []
        var paths: [String] = []
        do {
            for endpoint in configuration.endpoints {
                sockets.append(
                    NBDListeningSocket(
                        descriptor: try await listen(at: endpoint),
                        security: security(of: endpoint)))
                if case .unix(let path) = endpoint { paths.append(path) }
            }
        } catch {
            for socket in sockets { close(socket.descriptor) }
            for path in paths { unlink(path) }
            throw error
        }
        var tables: [LoopConfined<NBDSessionTable>] = []
        for loop in loops {
            guard
                let table = await loop.mailbox.run({
                    LoopConfined(NBDSessionTable(), on: $0)
                })
            else { preconditionFailure("the loops run while the server starts") }
            tables.append(table)
        }
        let opened = sockets
        let acceptor = await loops[0].mailbox.run { loop in
            let acceptor = NBDAcceptor(server: self, loop: loop)
            return acceptor.open(opened) ? LoopConfined(acceptor, on: loop) : nil
        }
        guard let acceptor, let acceptor else {
            for path in paths { unlink(path) }
            throw NBDServerError(
                kind: .failed, message: "NBD: the loop has no room for the listeners")
        }
        let (made, known) = (tables, paths)
        state.withLock { state in
            state.acceptor = acceptor
            state.tables = made
            state.paths = known
        }
    }

    private func security(of endpoint: NBDEndpoint) -> NBDSecurity {
        if case .passed(_, let address) = endpoint { return security(of: address) }
        return switch (endpoint, configuration.encryption?.mode) {
        case (_, nil): .unavailable
        case (.tcp, .required): .required
        case (.tcp, .offered), (.unix, _), (.passed, _): .offered
        }
    }

    /// Closes the listeners, lets requests under way finish and be answered, closes all
    /// connections. Those that do not end in time are cut off.
    package func stop() async {
        let (acceptor, paths) = state.withLock { ($0.acceptor, $0.paths) }
        guard let acceptor else { return }
        _ = await loops[0].mailbox.run { acceptor.get(on: $0).close() }
        for path in paths { unlink(path) }
        await endSessions { $0.drainAll() }
        let limit = Task {
            // The one moment when time is all there is to wait for: a client that takes none
            // of its replies.
            try await Task.sleep(nanoseconds: configuration.stopNanoseconds)
            await endSessions { $0.abortAll() }
        }
        await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
            let isEmpty = state.withLock { state in
                if connectionCount.load(ordering: .acquiring) == 0 { return true }
                state.whenEmpty = continuation
                return false
            }
            if isEmpty { continuation.resume() }
        }
        limit.cancel()
    }

    /// Connections at this moment.
    package var connections: Int { connectionCount.load(ordering: .relaxed) }

    private func endSessions(_ body: @escaping @Sendable (NBDSessionTable) -> Void) async {
        let tables = state.withLock { $0.tables }
        for (loop, table) in zip(loops, tables) {
            _ = await loop.mailbox.run { body(table.get(on: $0)) }
        }
    }

    /// Leads a socket to TLS and returns the one that takes its place; nil when there is none, with
    /// `socket` left alone.
    func encrypt(_ socket: Int32, of connection: NBDConnection) -> Int32? {
        guard let gateway = configuration.encryption?.gateway else {
            preconditionFailure("TLS begins only where it is offered")
        }
        guard let (ours, plain) = NBDSocket.pair() else { return nil }
        connection.held()
        gateway.relay(socket: socket, plain: plain) { connection.released() }
        return ours
    }

    // MARK: Connections, from any loop

    /// Counts a connection in; false when there are as many as may be.
    func connectionOpened() -> Bool {
        let count = connectionCount.add(1, ordering: .acquiringAndReleasing).newValue
        if count <= configuration.connectionCountMax { return true }
        connectionClosed()
        return false
    }

    /// A connection's socket is closed.
    func connectionClosed() {
        let count = connectionCount.subtract(1, ordering: .acquiringAndReleasing).newValue
        guard count == 0 else { return }
        let waiting = state.withLock { state in
            let waiting = state.whenEmpty
            if waiting != nil, connectionCount.load(ordering: .acquiring) == 0 {
                state.whenEmpty = nil
                return waiting
            }
            return nil
        }
        waiting?.resume()
    }

    /// Brings a negotiated connection to the loop of its export. From here on the session owns
    /// the socket.
    func handOver(
        _ opening: NBDNegotiation.Opening, socket: Int32, input: [UInt8],
        of connection: NBDConnection
    ) {
        let index = opening.export.loop.index
        let table = state.withLock { state in state.tables.first { $0.loopIndex == index } }
        let accepted =
            table.map { table in
                opening.export.loop.mailbox.post { loop in
                    self.begin(opening, socket, input, connection, table.get(on: loop), loop)
                }
            } ?? false
        if !accepted {
            close(socket)
            connection.released()
        }
    }

    private func begin(
        _ opening: NBDNegotiation.Opening, _ socket: Int32, _ input: [UInt8],
        _ connection: NBDConnection, _ table: NBDSessionTable, _ loop: EventLoop
    ) {
        let session = NBDSession(
            opening, socket: socket, loop: loop, limits: configuration.session
        ) { session in
            table.remove(session)
            connection.released()
        }
        guard !table.isClosed, session.start(input: input) else {
            close(socket)
            connection.released()
            return
        }
        table.add(session)
    }
}

/// The sessions of one loop.
final class NBDSessionTable {
    private var sessions: [ObjectIdentifier: NBDSession] = [:]
    /// Set when the server stops: no session begins any more.
    private(set) var isClosed = false

    func add(_ session: NBDSession) { sessions[ObjectIdentifier(session)] = session }

    func remove(_ session: NBDSession) { sessions[ObjectIdentifier(session)] = nil }

    func drainAll() {
        isClosed = true
        for session in sessions.values { session.leave() }
    }

    func abortAll() { for session in sessions.values { session.abort() } }
}
