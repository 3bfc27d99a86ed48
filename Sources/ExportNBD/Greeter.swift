internal import BlockModel
internal import Glibc
internal import RingIO

/// Accepts clients and bounds their handshakes.
///
/// Invariants
/// - At most `handshakeLimit` handshakes are under way: one more ends the oldest, so that idle
///   ones cannot keep others out.
/// - An accept that fails for want of descriptors or memory is tried again after a pause.
final class Greeter: RingHandler {
    /// A socket that clients connect to.
    struct Listener {
        var descriptor: Int32
        var isTCP: Bool
        var isAccepting = false
        var isClosed = false
    }

    struct Limits: Sendable {
        var connections = 1000
        var handshakes = 64
        var handshakeNanoseconds: UInt64 = 10_000_000_000
    }

    private enum Tag {
        static let accept: UInt8 = 0
        static let cancel: UInt8 = 1
    }

    /// Pause after an accept that failed.
    private static let retryNanoseconds: UInt64 = 100_000_000

    private unowned(unsafe) let loop: EventLoop
    private let directory: any ExportDirectory
    private let counters: ConnectionCounters
    private let limits: Limits
    private let registries: [Int: LoopConfined<ConnectionRegistry>]
    private var listeners: [Listener] = []
    /// Oldest first.
    private var greetings: [Greeting] = []
    private var isStopping = false
    private var isFinished = false
    private var whenStopped: (@Sendable () -> Void)?

    init(
        loop: EventLoop, directory: any ExportDirectory, counters: ConnectionCounters,
        limits: Limits, registries: [Int: LoopConfined<ConnectionRegistry>]
    ) {
        self.loop = loop
        self.directory = directory
        self.counters = counters
        self.limits = limits
        self.registries = registries
        super.init()
    }

    /// Begins to accept; false when the loop is full.
    func start(_ sockets: [ListeningSocket]) -> Bool {
        guard loop.register(self) else { return false }
        listeners = sockets.map { Listener(descriptor: $0.descriptor, isTCP: $0.isTCP) }
        for index in listeners.indices { accept(index) }
        return true
    }

    /// Closes the listeners, ends all handshakes and calls `finished` when that is done.
    func stop(_ finished: @escaping @Sendable () -> Void) {
        isStopping = true
        whenStopped = finished
        for index in listeners.indices {
            guard listeners[index].isAccepting else {
                closeListener(index)
                continue
            }
            loop.cancel(
                self, targetTag: Tag.accept, targetToken: UInt32(index), tag: Tag.cancel,
                token: UInt32(index))
        }
        for greeting in greetings { greeting.breakOff() }
        loop.callAtEndOfTurn(self)
    }

    override func completed(tag: UInt8, token: UInt32, result: Int32, flags: UInt32) {
        loop.callAtEndOfTurn(self)
        guard tag == Tag.accept else { return }
        let index = Int(token)
        listeners[index].isAccepting = false
        guard !isStopping else {
            if result >= 0 { close(result) }
            closeListener(index)
            return
        }
        if result >= 0 {
            accept(index)
            greet(result, isTCP: listeners[index].isTCP)
        } else if [ECONNABORTED, EINTR, EAGAIN, EPROTO].contains(-result) {
            accept(index)
        } else {
            _ = loop.schedule(after: Self.retryNanoseconds, self, token: token)
        }
    }

    override func timerFired(token: UInt32) {
        guard !isStopping, !isFinished else { return }
        accept(Int(token))
    }

    override func turnEnded() {
        guard isStopping, !isFinished, operationsInFlight == 0, greetings.isEmpty else { return }
        isFinished = true
        loop.remove(self)
        whenStopped?()
        whenStopped = nil
    }

    /// A handshake has opened an export: the connection moves to the loop of its device.
    func opened(_ greeting: Greeting, _ session: NBDSession, rest: ArraySlice<UInt8>) {
        greetings.removeAll { $0 === greeting }
        loop.callAtEndOfTurn(self)
        let descriptor = greeting.descriptor
        guard !isStopping, let registry = registries[session.export.loop.index] else {
            return drop(descriptor)
        }
        let accepted = session.export.loop.mailbox.post { loop in
            registry.get(on: loop).adopt(descriptor, session, rest: rest)
        }
        if !accepted { drop(descriptor) }
    }

    /// A handshake has failed; its descriptor is closed.
    func ended(_ greeting: Greeting) {
        greetings.removeAll { $0 === greeting }
        counters.open.subtract(1, ordering: .relaxed)
        loop.callAtEndOfTurn(self)
    }

    private func drop(_ descriptor: Int32) {
        close(descriptor)
        counters.open.subtract(1, ordering: .relaxed)
    }

    private func accept(_ index: Int) {
        listeners[index].isAccepting = true
        loop.accept(
            self, tag: Tag.accept, token: UInt32(index), descriptor: listeners[index].descriptor)
    }

    private func closeListener(_ index: Int) {
        guard !listeners[index].isClosed else { return }
        listeners[index].isClosed = true
        close(listeners[index].descriptor)
    }

    private func greet(_ descriptor: Int32, isTCP: Bool) {
        counters.accepted.add(1, ordering: .relaxed)
        let open = counters.open.add(1, ordering: .relaxed).newValue
        guard open <= limits.connections else {
            counters.refused.add(1, ordering: .relaxed)
            return drop(descriptor)
        }
        if isTCP { ListeningSocket.tuneTCP(descriptor) }
        if greetings.count >= limits.handshakes { greetings[0].breakOff() }
        let greeting = Greeting(
            loop: loop, greeter: self, directory: directory, descriptor: descriptor)
        guard greeting.start(limitNanoseconds: limits.handshakeNanoseconds) else {
            return drop(descriptor)
        }
        greetings.append(greeting)
    }
}
