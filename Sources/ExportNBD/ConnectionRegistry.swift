internal import BlockModel
internal import Glibc
internal import RingIO
internal import Synchronization

/// Counts of a service's connections, over all loops.
final class ConnectionCounters: Sendable {
    let open = Atomic<Int>(0)
    let accepted = Atomic<Int>(0)
    let refused = Atomic<Int>(0)
}

/// The connections of one loop.
///
/// Invariants
/// - Every descriptor that is adopted is closed, and counted out, once.
final class ConnectionRegistry: RingHandler {
    private unowned(unsafe) let loop: EventLoop
    private let counters: ConnectionCounters
    private let rules: ConnectionRules
    private var connections: [ObjectIdentifier: NBDConnection] = [:]
    private var isStopping = false
    private var whenStopped: (@Sendable () -> Void)?
    private var stopTimer: TimerID?

    init(loop: EventLoop, counters: ConnectionCounters, rules: ConnectionRules) {
        self.loop = loop
        self.counters = counters
        self.rules = rules
        super.init()
    }

    /// Takes over a connection whose handshake is done.
    func adopt(_ descriptor: Int32, _ session: NBDSession, rest: ArraySlice<UInt8>) {
        let connection = NBDConnection(
            loop: loop, registry: self, descriptor: descriptor, session: session, rules: rules)
        guard !isStopping, connection.start(rest: rest) else {
            close(descriptor)
            counters.open.subtract(1, ordering: .relaxed)
            return
        }
        connections[ObjectIdentifier(connection)] = connection
    }

    /// A connection has closed its descriptor.
    func left(_ connection: NBDConnection) {
        connections[ObjectIdentifier(connection)] = nil
        counters.open.subtract(1, ordering: .relaxed)
        stopIfEmpty()
    }

    /// Drains all connections; calls `finished` when they are gone, or when the time is up.
    func stop(_ finished: @escaping @Sendable () -> Void) {
        isStopping = true
        whenStopped = finished
        for connection in connections.values { connection.drain() }
        let limit = rules.stopNanoseconds + rules.lingerNanoseconds + 1_000_000_000
        stopTimer = loop.schedule(after: limit, self, token: 0)
        loop.callAtEndOfTurn(self)
    }

    override func timerFired(token: UInt32) {
        stopTimer = nil
        // A device does not give its requests back: the connections stay until it does.
        whenStopped?()
        whenStopped = nil
    }

    override func turnEnded() { stopIfEmpty() }

    private func stopIfEmpty() {
        guard isStopping, connections.isEmpty, let slotHolder else { return }
        self.slotHolder = nil
        if let stopTimer { loop.cancel(stopTimer) }
        loop.remove(slotHolder)
        whenStopped?()
        whenStopped = nil
    }

    /// This object, while it is registered on the loop.
    private var slotHolder: ConnectionRegistry?

    /// Joins the loop; false when that is full.
    func start() -> Bool {
        guard loop.register(self) else { return false }
        slotHolder = self
        return true
    }
}
