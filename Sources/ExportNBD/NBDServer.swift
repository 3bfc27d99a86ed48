internal import BlockModel
package import RingIO
internal import Synchronization

/// The NBD server of a service: listens, negotiates, and serves each connection on the loop of
/// the device it opens.
package final class NBDServer: Sendable {
    /// Where to listen, and the bounds.
    package struct Configuration: Sendable {
        package var listeners: [NBDListenAddress]
        /// Serve addresses other than loopback without TLS.
        package var allowsPlaintext = false
        /// Most connections, handshakes included; above it they are closed at once.
        package var connectionLimit = 1000
        /// Most handshakes under way; one more ends the oldest.
        package var handshakeLimit = 64
        package var handshakeNanoseconds: UInt64 = 10_000_000_000
        /// Most unanswered requests of a connection; 512 at most.
        package var requestLimit = 128
        /// A connection whose client neither sends payload nor reads replies ends after this.
        package var stallNanoseconds: UInt64 = 10_000_000_000
        /// Time for requests under way when the server stops or a device closes.
        package var stopNanoseconds: UInt64 = 5_000_000_000

        package init(listeners: [NBDListenAddress]) { self.listeners = listeners }
    }

    private enum Phase {
        case idle
        case running(Parts)
        case stopped
    }

    private struct Parts: Sendable {
        var sockets: [ListeningSocket]
        var greeter: LoopConfined<Greeter>
        var registries: [Int: LoopConfined<ConnectionRegistry>]
    }

    private let directory: any ExportDirectory
    private let loops: [LoopThread]
    private let configuration: Configuration
    private let counters = ConnectionCounters()
    private let phase = Mutex(Phase.idle)

    /// `loops` must contain the loop of every export; the first one accepts and negotiates.
    package init(
        directory: any ExportDirectory, loops: [LoopThread], configuration: Configuration
    ) {
        precondition(!loops.isEmpty, "a server needs a loop")
        self.directory = directory
        self.loops = loops
        self.configuration = configuration
    }

    /// Connections at this moment, handshakes included.
    package var connectionCount: Int { counters.open.load(ordering: .relaxed) }

    /// Connections accepted since the start, and those of them closed for there being too many.
    package var acceptedCounts: (accepted: Int, refused: Int) {
        (
            counters.accepted.load(ordering: .relaxed), counters.refused.load(ordering: .relaxed)
        )
    }

    /// TCP ports listened on, in the order of the configuration.
    package var ports: [UInt16] {
        phase.withLock { phase in
            guard case .running(let parts) = phase else { return [] }
            return parts.sockets.compactMap(\.port)
        }
    }

    /// Opens all listeners and begins to accept; opens none when one fails. Once only.
    package func start() async throws(NBDServerError) {
        let sockets = try await openSockets()
        guard let parts = await startParts(sockets) else {
            for socket in sockets { Self.close(socket) }
            throw NBDServerError(
                .failed, "NBD: the service's loops take no more handlers; close some connections")
        }
        phase.withLock { $0 = .running(parts) }
    }

    /// Closes the listeners, ends handshakes, lets requests under way finish and be answered, and
    /// closes all connections. Returns within the configured time and a little more.
    package func stop() async {
        let parts: Parts? = phase.withLock { phase in
            defer { phase = .stopped }
            guard case .running(let parts) = phase else { return nil }
            return parts
        }
        guard let parts else { return }
        await Self.finished { done in
            self.loops[0].mailbox.post { loop in parts.greeter.get(on: loop).stop(done) }
        }
        for socket in parts.sockets { socket.removeNode() }
        await withTaskGroup(of: Void.self) { group in
            for thread in loops {
                guard let registry = parts.registries[thread.index] else { continue }
                group.addTask {
                    await Self.finished { done in
                        thread.mailbox.post { loop in registry.get(on: loop).stop(done) }
                    }
                }
            }
        }
    }

    // MARK: Parts

    /// Opens the sockets on a thread that may block: names are looked up, directories read.
    private func openSockets() async throws(NBDServerError) -> [ListeningSocket] {
        let pool: BlockingPool
        do throws(RingError) {
            pool = try BlockingPool(threadCount: 1)
        } catch {
            throw NBDServerError(.failed, "NBD: \(error)")
        }
        let configuration = configuration
        let outcome = await pool.run { () -> Result<[ListeningSocket], NBDServerError> in
            var sockets: [ListeningSocket] = []
            do throws(NBDServerError) {
                for address in configuration.listeners {
                    sockets.append(
                        try ListeningSocket.open(
                            address, allowsPlaintext: configuration.allowsPlaintext))
                }
                return .success(sockets)
            } catch {
                for socket in sockets { Self.close(socket) }
                return .failure(error)
            }
        }
        pool.close()
        guard let outcome else { throw NBDServerError(.failed, "NBD: no thread; try again") }
        return try outcome.get()
    }

    private static func close(_ socket: ListeningSocket) {
        socket.removeNode()
        socket.closeDescriptor()
    }

    private func startParts(_ sockets: [ListeningSocket]) async -> Parts? {
        var registries: [Int: LoopConfined<ConnectionRegistry>] = [:]
        let counters = counters
        var rules = ConnectionRules()
        rules.requestLimit = configuration.requestLimit
        rules.stallNanoseconds = configuration.stallNanoseconds
        rules.stopNanoseconds = configuration.stopNanoseconds
        for thread in loops {
            let started = await thread.mailbox.run { [rules] loop in
                let registry = ConnectionRegistry(loop: loop, counters: counters, rules: rules)
                return registry.start() ? LoopConfined(registry, on: loop) : nil
            }
            guard case .some(.some(let registry)) = started else {
                await stopRegistries(registries)
                return nil
            }
            registries[thread.index] = registry
        }
        var limits = Greeter.Limits()
        limits.connections = configuration.connectionLimit
        limits.handshakes = configuration.handshakeLimit
        limits.handshakeNanoseconds = configuration.handshakeNanoseconds
        let started = await loops[0].mailbox.run { [directory, limits, registries] loop in
            let greeter = Greeter(
                loop: loop, directory: directory, counters: counters, limits: limits,
                registries: registries)
            return greeter.start(sockets) ? LoopConfined(greeter, on: loop) : nil
        }
        guard case .some(.some(let greeter)) = started else {
            await stopRegistries(registries)
            return nil
        }
        return Parts(sockets: sockets, greeter: greeter, registries: registries)
    }

    private func stopRegistries(_ registries: [Int: LoopConfined<ConnectionRegistry>]) async {
        for thread in loops {
            guard let registry = registries[thread.index] else { continue }
            await Self.finished { done in
                thread.mailbox.post { loop in registry.get(on: loop).stop(done) }
            }
        }
    }

    /// Waits until the message that `post` posts has called what it was given; not at all when
    /// the loop does not take it.
    private static func finished(
        _ post: (@escaping @Sendable () -> Void) -> Bool
    ) async {
        await withCheckedContinuation { continuation in
            if !post({ continuation.resume() }) { continuation.resume() }
        }
    }
}
