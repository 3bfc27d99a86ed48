internal import BlockModel
internal import CLinux
internal import Glibc
internal import NBDWire
internal import RingIO

// A connection in transmission, on the loop of the export it opened.
//
//   socket ─recv─► headers and payloads ─submit─► target ─finished─► replies ─sendmsg─► socket
//
// Receiving: the kernel picks a buffer when data is there, so an idle connection owns none. What
// cannot be taken on now (no slot, no buffer, too many requests unanswered) is kept in `backlog`
// and the socket is left alone until there is room.
// Sending: finished requests queue up; one sendmsg carries all of a turn.
//
// Invariants
// - Every request holds a slot of the loop's pool from its header until its reply was sent.
// - One receive and one send are in the kernel at a time at most.
// - The connection leaves the loop when both have ended and no request is with the target.
// - Closing a TCP socket with unread input would reset the connection and lose replies on their
//   way:
//   while some are, input is read and dropped until the client closes, for a bounded time.
// - Nothing here allocates after start but `backlog`, under pressure only.

/// What a connection may hold.
struct NBDSessionLimits: Sendable {
    /// Requests not yet answered.
    var requestCount = 128
    /// Time without progress of a client that owes us bytes or takes none.
    var stallNanoseconds: UInt64 = 10_000_000_000
    /// Time for the last replies to reach a client that sends on.
    var lingerNanoseconds: UInt64 = 2_000_000_000
}

/// An open connection; see the head of this file.
final class NBDSession: RequestOwner, TargetUser {
    /// Why no more requests are taken.
    enum Phase {
        case open
        /// Requests under way finish and are answered, then the connection ends.
        case draining
        /// All is answered, and the last replies are on their way: input is dropped.
        case lingering
        /// Nothing is answered any more; the connection ends when the kernel and the target let go.
        case aborting
    }

    let loop: EventLoop
    let requests: RequestPool
    let socket: Int32
    let target: BlockTarget
    let mode: NBDReplyMode
    let isReadOnly: Bool
    let canDiscard: Bool
    let contexts: [NBDNegotiation.Opening.Context]
    let limits: NBDSessionLimits
    let handler: NBDSessionHandler
    private let ended: (NBDSession) -> Void

    var phase = Phase.open
    /// True while what comes in is looked at.
    var isListening: Bool { phase == .open }
    /// Requests whose replies have not been sent completely.
    var unansweredCount = 0
    /// Requests with the target, and those in `unfinishedStatuses`.
    var submittedCount = 0
    /// Block status requests that have meta contexts left to ask the target for.
    var unfinishedStatuses = RequestQueue()
    /// Bytes of leased buffers.
    var heldByteCount = 0
    /// Bytes that were read or written through the connection and are done with, and requests
    /// answered: what it has given back of what it borrowed.
    var earnedByteCount = 0
    var earnedCount = 0
    var isReceiving = false
    var isSending = false
    /// Stopped for want of room; `backlog` or a complete header in `partialHeader` waits.
    var isBlocked = false
    /// When payload last came in, and when the client last took replies: apart, so that a client
    /// which reads nothing gains nothing by sending on.
    var lastReceive: UInt64
    var lastSend: UInt64
    private var timer: TimerID?
    private var hasEnded = false

    // Receiving.
    let headerByteCount: Int
    let partialHeader: UnsafeMutableRawPointer
    var partialHeaderByteCount = 0
    /// The write whose payload is coming in, and how much of it is there.
    var payloadRequest: RequestIndex?
    var payloadReceived = 0
    /// The request begun last came with a payload that is received straight into its buffer.
    var isPayloadLarge = false
    let payloadMessage = NBDPayloadMessage()
    /// Bytes of a refused payload still to be dropped.
    var skipByteCount = 0
    var backlog: UnsafeMutableRawPointer?
    var backlogStart = 0
    var backlogEnd = 0
    /// Bytes of reads that were begun since the turn's work was last counted, and which turn that
    /// was.
    private var begunByteCount: UInt64 = 0
    private var begunTurn: UInt64 = 0
    /// Stopped because its share of the turn is used up: the next turn continues.
    var isTurnSpent = false

    // Sending.
    let replies: NBDReplyQueue

    init(
        _ opening: NBDNegotiation.Opening, socket: Int32, loop: EventLoop,
        limits: NBDSessionLimits, ended: @escaping (NBDSession) -> Void
    ) {
        self.loop = loop
        requests = loop.requests
        self.socket = socket
        target = opening.export.target.get(on: loop)
        mode = opening.mode
        isReadOnly = opening.export.isReadOnly
        canDiscard = opening.export.canDiscard
        contexts = opening.contexts
        self.limits = limits
        self.ended = ended
        headerByteCount = NBDRequestHeader.byteCount(in: opening.mode)
        partialHeader = .allocate(byteCount: NBD.extendedRequestByteCount, alignment: 8)
        replies = NBDReplyQueue(capacity: limits.requestCount)
        lastReceive = loop.now
        lastSend = loop.now
        handler = NBDSessionHandler()
        super.init()
        handler.session = self
    }

    deinit {
        partialHeader.deallocate()
        backlog?.deallocate()
    }

    /// Begins to serve; `input` came in with the handshake. False when the loop is full or the
    /// target is closing.
    func start(input: [UInt8]) -> Bool {
        guard loop.register(handler) else {
            handler.session = nil
            return false
        }
        guard target.addUser(self) else {
            loop.remove(handler)
            handler.session = nil
            return false
        }
        if !input.isEmpty {
            input.withUnsafeBytes { take($0.baseAddress.unsafelyUnwrapped, $0.count) }
        }
        receiveMore()
        return true
    }

    // MARK: End

    /// Takes no more requests: the client has no more. Those under way are answered.
    func drain() {
        guard isListening else { return }
        phase = .draining
        dropUnstarted()
        loop.callAtEndOfTurn(handler)
    }

    /// Answers the requests under way and ends. What was asked and not begun gets no answer: a client that
    /// connects again, as QEMU does, asks for it then, but hands an error on to its user. A receive that
    /// waits in the kernel is called back rather than ended by a shutdown, after which the kernel would
    /// reset the connection at the next byte.
    func leave() {
        guard phase == .open else { return }
        drain()
        guard isReceiving else { return }
        for step in [NBDSessionHandler.Step.receive, .receivePayload] {
            loop.cancel(
                handler, targetTag: step.rawValue, targetToken: 0,
                tag: NBDSessionHandler.Step.cancel.rawValue, token: 0)
        }
    }

    func targetIsClosing() { leave() }

    /// Ends the connection without another word: it broke the protocol, or it is gone.
    func abort() {
        guard phase != .aborting else { return }
        phase = .aborting
        dropUnstarted()
        shutdown(socket, Int32(SHUT_RDWR))
        loop.callAtEndOfTurn(handler)
    }

    /// Forgets what was received and not yet submitted.
    private func dropUnstarted() {
        isBlocked = false
        partialHeaderByteCount = 0
        backlogStart = 0
        backlogEnd = 0
        skipByteCount = 0
        // A receive into the payload may still be in the kernel: the buffer must wait for it.
        if !isReceiving { dropPayload() }
    }

    func dropPayload() {
        guard let index = payloadRequest else { return }
        payloadRequest = nil
        release(index)
    }

    /// Reads that one connection may begin in a turn; one longer read goes alone. Where the origin
    /// answers at once, as tmpfs does, a turn would otherwise last as long as all that was asked.
    private static let turnByteCountMax: UInt64 = 1 << 20

    /// Counts a read in; false, with nothing counted, when it must wait for the next turn.
    func countRead(_ byteCount: UInt64) -> Bool {
        if begunTurn != loop.now {
            begunTurn = loop.now
            begunByteCount = 0
        }
        isTurnSpent =
            begunByteCount > 0 && begunByteCount + byteCount > Self.turnByteCountMax
        if !isTurnSpent { begunByteCount += byteCount }
        return !isTurnSpent
    }

    /// Has `unblock` called when it may be of use.
    func waitToGoOn() {
        if isTurnSpent { loop.callAtEndOfTurn(handler) } else { loop.callWhenRoom(handler) }
    }

    func turnEnded() {
        continueStatuses()
        if isTurnSpent {
            isTurnSpent = false
            begunByteCount = 0
            unblock()
        }
        if phase == .aborting { dropReplies() }
        if !isSending { sendReplies() }
        endIfDone()
    }

    private func endIfDone() {
        guard !isListening, !hasEnded, !isReceiving, !isSending, submittedCount == 0,
            unansweredCount == 0, handler.operationsInFlight == 0
        else { return }
        if phase == .draining, cl_undelivered(socket) > 0 { return linger() }
        hasEnded = true
        if let timer { loop.cancel(timer) }
        loop.remove(handler)
        handler.session = nil
        close(socket)
        target.removeUser(self)
        ended(self)
    }

    /// Says that nothing more comes, and drops input until the client has closed too.
    private func linger() {
        phase = .lingering
        shutdown(socket, Int32(SHUT_WR))
        if let timer { loop.cancel(timer) }
        timer = loop.schedule(after: limits.lingerNanoseconds, handler, token: 0)
        receiveMore()
    }

    // MARK: Stalls

    /// A client that owes bytes or takes none holds buffers of others: it has a time limit. The
    /// timer runs only while it may be needed, and looks again when it fires.
    func watchForStall() {
        guard timer == nil else { return }
        timer = loop.schedule(after: limits.stallNanoseconds, handler, token: 0)
    }

    func timerFired() {
        timer = nil
        guard phase != .aborting else { return }
        if phase == .lingering { return abort() }
        var since = UInt64.max
        if payloadRequest != nil { since = lastReceive }
        if isSending { since = min(since, lastSend) }
        let waitsForClient = since != .max
        if waitsForClient, loop.now - since >= limits.stallNanoseconds { return abort() }
        if heldByteCount > 0 || isSending {
            let start = waitsForClient ? since : loop.now
            timer = loop.schedule(at: start + limits.stallNanoseconds, handler, token: 0)
        }
    }

    // MARK: Slots

    /// Takes a slot for a request that asks nothing of the target but will be answered.
    func release(_ index: RequestIndex) {
        releaseBuffer(of: index)
        requests.release(index)
        unansweredCount -= 1
    }

    private func releaseBuffer(of index: RequestIndex) {
        let request = requests.pointer(to: index)
        guard let lease = NBDRequestNote(request.pointee.ownerNote).lease else { return }
        request.pointee.ownerNote = NBDRequestNote(lease: nil, hasPayload: false).rawValue
        heldByteCount -= lease.byteCount
        loop.buffers.release(lease)
    }

    // MARK: Requests finish

    override func requestFinished(_ index: RequestIndex) {
        if phase != .aborting, requests[index].operation == .blockStatus, takeStatus(index) {
            unfinishedStatuses.append(index, in: requests)
            return loop.callAtEndOfTurn(handler)
        }
        submittedCount -= 1
        if phase == .aborting {
            release(index)
            loop.callAtEndOfTurn(handler)
            return
        }
        answer(index)
    }

    /// Queues a reply; it goes out at the end of the turn, or at once when many wait, so that
    /// client and server work at the same time on origins that finish requests at once.
    func answer(_ index: RequestIndex) {
        let request = requests.pointer(to: index)
        switch request.pointee.operation {
        case .read, .blockStatus:
            if request.pointee.fault != nil { releaseBuffer(of: index) }
        case .write:
            // A client that takes no replies keeps nobody waiting for this memory.
            earnedByteCount &+= Int(request.pointee.length)
            releaseBuffer(of: index)
        case .flush, .discard, .writeZeroes, .prefetch: break
        }
        replies.append(index)
        if replies.count >= NBDReplyQueue.eagerCount, !isSending {
            sendReplies()
            loop.submitNow()
        } else {
            loop.callAtEndOfTurn(handler)
        }
    }
}

/// The session's hands in the ring: a request owner cannot be a ring handler as well.
final class NBDSessionHandler: RingHandler {
    enum Step: UInt8 {
        case receive
        case receivePayload
        case send
        /// Calls a receive back; its own completion says the rest.
        case cancel
    }

    fileprivate(set) var session: NBDSession?

    override func completed(tag: UInt8, token: UInt32, result: Int32, flags: UInt32) {
        guard let session else { preconditionFailure("a session's handler has its session") }
        switch Step(rawValue: tag) {
        case .receive: session.receiveCompleted(result, flags)
        case .receivePayload: session.receivePayloadCompleted(result)
        case .send: session.sendCompleted(result)
        case .cancel: session.loop.callAtEndOfTurn(self)
        case nil: preconditionFailure("a completion of an unknown step")
        }
    }

    override func turnEnded() {
        session?.turnEnded()
    }

    override func timerFired(token: UInt32) { session?.timerFired() }

    override func roomMade() { session?.unblock() }
}

/// Where the kernel puts a payload and the header behind it.
final class NBDPayloadMessage {
    private let vectors: UnsafeMutablePointer<iovec>
    private let message: UnsafeMutablePointer<msghdr>

    init() {
        vectors = .allocate(capacity: 2)
        vectors.initialize(repeating: iovec(), count: 2)
        message = .allocate(capacity: 1)
        message.initialize(to: msghdr())
        message.pointee.msg_iov = vectors
        message.pointee.msg_iovlen = 2
    }

    deinit {
        vectors.deallocate()
        message.deallocate()
    }

    /// The message for a receive; the places and the message belong to the kernel until it is done.
    func aim(
        at payload: UnsafeMutableRawPointer, byteCount: Int,
        then header: UnsafeMutableRawPointer, byteCount headerByteCount: Int
    ) -> UnsafeMutablePointer<msghdr> {
        vectors[0] = iovec(iov_base: payload, iov_len: byteCount)
        vectors[1] = iovec(iov_base: header, iov_len: headerByteCount)
        return message
    }
}

/// What a session notes in a request's slot: its command, and the buffer it leased.
struct NBDRequestNote {
    let rawValue: UInt64

    init(_ rawValue: UInt64) { self.rawValue = rawValue }

    init(lease: BufferLease?, hasPayload: Bool) {
        var value: UInt64 = hasPayload ? 1 << 62 : 0
        if let lease { value |= 1 << 63 | UInt64(lease.order) << 32 | UInt64(lease.page) }
        rawValue = value
    }

    /// The request came with a payload.
    var hasPayload: Bool { rawValue >> 62 & 1 != 0 }

    var lease: BufferLease? {
        guard rawValue >> 63 != 0 else { return nil }
        return BufferLease(
            page: UInt32(truncatingIfNeeded: rawValue),
            order: UInt8(truncatingIfNeeded: rawValue >> 32))
    }
}
