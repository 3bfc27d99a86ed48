internal import BlockModel
internal import CLinux
internal import Glibc
internal import RingIO

// A client in the transmission phase, on the loop of the device it opened.
//
//   open ---------> draining ---------> lingering -----> finished
//     |  DISC, end of   |  all replied       |  end of stream, or late
//     |  stream, stop   |                    |
//     '-----------------'--------------------'---> broken -> finished
//
// Invariants
// - At most one receive and one send of the connection are in the kernel.
// - Payload buffers are released only after the operation that names them has completed, and
//   everything is released only when no operation and no device request is under way.
// - After start nothing here allocates: slots, headers and vectors are of fixed size.

/// How one connection behaves; set by the server.
struct ConnectionRules: Sendable {
    /// Most unanswered requests.
    var requestLimit = 128
    /// A connection that holds buffers while its client neither sends nor reads ends after this.
    var stallNanoseconds: UInt64 = 10_000_000_000
    /// Time for requests under way to finish, when asked to stop.
    var stopNanoseconds: UInt64 = 5_000_000_000
    /// Time for a client to close its end after the last reply.
    var lingerNanoseconds: UInt64 = 500_000_000
}

final class NBDConnection: RingHandler, TargetUser {
    enum State { case open, draining, lingering, broken, finished }

    enum Tag {
        static let receive: UInt8 = 0
        static let receivePayload: UInt8 = 1
        static let send: UInt8 = 2
    }

    enum Timer {
        static let stall: UInt32 = 0
        static let closing: UInt32 = 1
    }

    /// Where bytes that wait to be parsed lie.
    enum Source {
        case none
        case receiveBuffer(UInt16)
        /// What came with the last option of the handshake.
        case allocation(UnsafeMutableRawPointer)
        /// Parked while there is no room.
        case lease(BufferLease)
    }

    /// Replies queued while a batch is parsed that are sent before it ends, so that the client
    /// works while the rest is served.
    static let earlyReplyCount = 8
    /// Bytes in one send or one receive of payload: each must complete within the stall limit.
    static let operationByteCountMax = 1 << 20
    /// Rests of payload up to this come through a receive buffer, with the next requests.
    static let copiedRestByteCountMax = 16 << 10

    unowned(unsafe) let loop: EventLoop
    unowned(unsafe) let target: BlockTarget
    let retainedTarget: BlockTarget
    let registry: ConnectionRegistry
    let descriptor: Int32
    let rules: ConnectionRules
    let requestRules: NBDRequestRules
    let encoder: NBDReplyEncoder
    let contexts: [NBDSelectedContext]
    let headerByteCount: Int
    let alignment: UInt64
    private(set) var owner: ReplyCollector!

    var state = State.open
    var slots: ConnectionSlots
    /// Requests the device has.
    var deviceRequestCount = 0
    var heldRequestCount = 0
    var heldByteCount = 0

    // Receiving.
    let stash: UnsafeMutableRawPointer
    var stashByteCount = 0
    var source = Source.none
    var unparsed: UnsafeRawPointer?
    var unparsedByteCount = 0
    var skipByteCount: UInt64 = 0
    /// The slot whose payload is being received, or -1.
    var payloadSlot = -1
    var payloadByteCount = 0
    var payloadReceivedByteCount = 0
    var isReceiving = false
    var isParsing = false
    /// No receive before room is made: all receive buffers were in use.
    var isWaitingForBuffer = false
    var reachedEnd = false
    /// The rest of this payload does not wait for a receive buffer.
    var prefersDirect = false
    /// When the payload began, or its last part came.
    var receiveStarted: UInt64 = 0

    // Sending.
    let vectors: UnsafeMutablePointer<iovec>
    let message: UnsafeMutablePointer<msghdr>
    var isSending = false
    /// Bytes of the first queued reply that are sent.
    var sentByteCount = 0
    var sendStarted: UInt64 = 0

    private var stallTimer: TimerID?
    private var closingTimer: TimerID?

    /// A connection on `loop`, which it does not join before `start`.
    init(
        loop: EventLoop, registry: ConnectionRegistry, descriptor: Int32, session: NBDSession,
        rules: ConnectionRules
    ) {
        self.loop = loop
        self.registry = registry
        self.descriptor = descriptor
        self.rules = rules
        retainedTarget = session.export.target.get(on: loop)
        target = retainedTarget
        requestRules = NBDRequestRules(
            style: session.style, isReadOnly: session.export.isReadOnly,
            hasContexts: !session.contexts.isEmpty)
        encoder = NBDReplyEncoder(style: session.style)
        contexts = session.contexts
        headerByteCount = session.style.requestHeaderByteCount
        alignment = retainedTarget.alignment
        slots = ConnectionSlots(capacity: rules.requestLimit)
        stash = .allocate(byteCount: 64, alignment: 16)
        vectors = .allocate(capacity: 2 * rules.requestLimit)
        message = .allocate(capacity: 1)
        message.initialize(to: msghdr())
        super.init()
        owner = ReplyCollector(connection: self)
    }

    deinit {
        stash.deallocate()
        vectors.deallocate()
        message.deallocate()
    }

    /// Begins with what came behind the last option; false when the loop is full.
    func start(rest: ArraySlice<UInt8>) -> Bool {
        guard loop.register(self) else { return false }
        target.addUser(self)
        if !rest.isEmpty {
            let memory = UnsafeMutableRawPointer.allocate(byteCount: rest.count, alignment: 16)
            rest.withUnsafeBytes { bytes in
                if let base = bytes.baseAddress {
                    memory.copyMemory(from: base, byteCount: bytes.count)
                }
            }
            source = .allocation(memory)
            unparsed = UnsafeRawPointer(memory)
            unparsedByteCount = rest.count
            parse()
        }
        loop.callAtEndOfTurn(self)
        return true
    }

    // MARK: Events

    override func completed(tag: UInt8, token: UInt32, result: Int32, flags: UInt32) {
        switch tag {
        case Tag.receive: received(result, flags)
        case Tag.receivePayload: payloadReceived(result)
        default: sent(result)
        }
    }

    override func turnEnded() {
        guard state != .finished else { return }
        if state != .broken {
            sendReplies()
            closeIfDrained()
        }
        if state != .broken { receive() }
        if state == .broken { finishIfQuiet() }
    }

    override func roomMade() {
        guard state != .broken, state != .finished else { return }
        isWaitingForBuffer = false
        parse()
        loop.callAtEndOfTurn(self)
    }

    override func timerFired(token: UInt32) {
        if token == Timer.stall {
            stallTimer = nil
            checkStall()
        } else {
            closingTimer = nil
            breakOff()
        }
    }

    func targetIsClosing() { drain() }

    // MARK: Ending

    /// Takes no more requests; those under way finish and are answered.
    func drain() {
        guard state == .open else { return }
        state = .draining
        startClosingTimer(rules.stopNanoseconds)
        loop.callAtEndOfTurn(self)
    }

    /// Ends at once: the protocol is broken, or the client is gone.
    func breakOff() {
        guard state != .broken, state != .finished else { return }
        state = .broken
        // Wakes the operations in the kernel; they complete and are counted out.
        shutdown(descriptor, Int32(SHUT_RDWR))
        loop.callAtEndOfTurn(self)
    }

    /// The client's stream is at its end, or what else it says is of no interest.
    func inputEnded() {
        reachedEnd = true
        dropInput()
        if state == .lingering { return breakOff() }
        drain()
        loop.callAtEndOfTurn(self)
    }

    private func closeIfDrained() {
        guard state == .draining, deviceRequestCount == 0, slots.queuedCount == 0, !isSending
        else { return }
        guard !reachedEnd else { return breakOff() }
        // Closing with unread requests would reset the connection and lose the last replies.
        state = .lingering
        dropInput()
        shutdown(descriptor, Int32(SHUT_WR))
        startClosingTimer(rules.lingerNanoseconds)
    }

    private func finishIfQuiet() {
        guard operationsInFlight == 0, deviceRequestCount == 0 else { return }
        dropInput()
        while slots.queuedCount > 0 { release(slots.dequeue()) }
        precondition(slots.usedCount == 0, "a connection ends with a request")
        precondition(
            heldByteCount == 0 && heldRequestCount == 0, "a connection ends with a buffer")
        if let stallTimer { loop.cancel(stallTimer) }
        if let closingTimer { loop.cancel(closingTimer) }
        state = .finished
        target.removeUser(self)
        close(descriptor)
        // The turn that called keeps the object alive until it returns.
        loop.remove(self)
        registry.left(self)
    }

    private func startClosingTimer(_ nanoseconds: UInt64) {
        if let closingTimer { loop.cancel(closingTimer) }
        closingTimer = loop.schedule(after: nanoseconds, self, token: Timer.closing)
    }

    // MARK: Stalls

    /// Runs while the client is waited for with buffers held; one timer for all of it.
    func armStallTimer() {
        guard stallTimer == nil else { return }
        stallTimer = loop.schedule(after: rules.stallNanoseconds, self, token: Timer.stall)
    }

    private func checkStall() {
        guard state != .broken, state != .finished else { return }
        var since = UInt64.max
        if isSending { since = min(since, sendStarted) }
        if isReceiving, payloadSlot >= 0 { since = min(since, receiveStarted) }
        guard since != .max else { return }
        let deadline = since &+ rules.stallNanoseconds
        guard loop.now < deadline else { return breakOff() }
        stallTimer = loop.schedule(at: deadline, self, token: Timer.stall)
    }
}

/// Told by the device when a request of the connection is finished.
final class ReplyCollector: RequestOwner {
    // The connection owns its collector and outlives every request it has submitted.
    private unowned(unsafe) let connection: NBDConnection

    init(connection: NBDConnection) {
        self.connection = connection
        super.init()
    }

    override func requestFinished(_ index: RequestIndex) { connection.requestFinished(index) }
}
