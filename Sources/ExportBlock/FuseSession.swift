internal import BlockModel
internal import CLinux
internal import Glibc
internal import RingIO

// One FUSE filesystem with one file, served on the loop of the target it shows.
//
//   kernel ─readv─► message ─submit─► target ─finished─► reply ─ring─► kernel
//
// Reading: the ring polls for messages (`FuseChannel.watch`); when something waits, messages are
// read by plain calls that cannot block until none is left (the descriptor is O_NONBLOCK). A read
// through the ring would have to be armed with a buffer of 1 MiB each, or may block the loop when a
// request is taken back between the poll and the read. An idle session owns no buffer: one of 2 MiB
// is leased while messages are read, the payload of a write lands page-aligned at its start. Small
// payloads are copied to a buffer of their size, a large one keeps the buffer and another is
// leased.
// What messages ask of the disk, and replies, go to the kernel some at a time: reading a message is
// a system call, and a turn can have many.
//
// Invariants
// - A message is read only while there are a reply place, a request slot and a buffer for it, so
//   nothing that was read ever has to wait for room.
// - Each request is answered once; the kernel waits forever for one that is not.
// - Nothing here allocates after start.

/// A FUSE session; see the head of this file.
final class FuseSession: RequestOwner, TargetUser {
    enum Phase {
        case open
        /// Requests under way finish and are answered, then the descriptor closes.
        case closing
        case ended
    }

    /// Payloads up to this are copied.
    static let copyByteCountMax = 128 << 10
    /// Bytes of the buffer messages are read into: the largest payload, and room to move it where
    /// an unaligned write must lie.
    private static let receiveByteCount = 2 << 20
    /// Messages read in one step, and bytes of them after which it ends: then others have their turn.
    private static let messageCountMax = 64
    private static let messageByteCountMax = 512 << 10

    let loop: EventLoop
    let requests: RequestPool
    let target: BlockTarget
    let isReadOnly: Bool
    /// Name of the file.
    let name: [UInt8]
    let replies = FuseReplies()
    private let channel: FuseChannel
    private let blocking: BlockingPool
    private let handler = FuseSessionHandler()
    private let ended: @Sendable () -> Void
    private let closeWaiters = CloseWaiters()
    private let killPoint = KillPoint.armed()
    private let vectors: UnsafeMutablePointer<iovec>
    private let head: UnsafeMutableRawPointer

    private(set) var phase = Phase.open
    /// The next service continues: what was begun is brought to its end.
    private var isHandedOver = false
    private var isPolling = false
    private var submittedCount = 0
    private var heldByteCount = 0
    private var slotCount = 0
    /// Only while messages are read.
    private var receiveLease: BufferLease?
    private var spare: RequestIndex?
    /// Seeks that continue at the end of the turn.
    private let seeks: UnsafeMutablePointer<RequestIndex>
    private var seekCount = 0
    /// Seconds of the clock when the session began: the times of the file.
    let startSeconds = UInt64(max(time(nil), 0))

    /// Takes over `channel`. `ended` is called once, when it has closed.
    init(
        channel: FuseChannel, name: String, target: BlockTarget, isReadOnly: Bool, loop: EventLoop,
        blocking: BlockingPool, ended: @escaping @Sendable () -> Void
    ) {
        self.channel = channel
        self.name = Array(name.utf8)
        self.target = target
        self.isReadOnly = isReadOnly
        self.loop = loop
        self.blocking = blocking
        self.ended = ended
        requests = loop.requests
        vectors = .allocate(capacity: 2)
        vectors.initialize(repeating: iovec(), count: 2)
        head = .allocate(byteCount: Fuse.headByteCountMax, alignment: 16)
        seeks = .allocate(capacity: FuseReplies.count)
        super.init()
        handler.session = self
    }

    deinit {
        vectors.deallocate()
        head.deallocate()
        seeks.deallocate()
    }

    /// Begins to serve; false when the loop is full or the target is closing, and then the channel
    /// is the caller's.
    func start() -> Bool {
        guard loop.register(handler) else {
            handler.session = nil
            return false
        }
        guard target.addUser(self) else {
            loop.remove(handler)
            handler.session = nil
            return false
        }
        poll()
        return true
    }

    /// Answers what is under way and closes the descriptor, which somebody else holds too: what the
    /// kernel wants from now on waits for the next service.
    func handOver(_ whenClosed: @escaping @Sendable () -> Void) {
        isHandedOver = true
        close(whenClosed)
    }

    // MARK: End

    /// Answers what is under way, closes the descriptor, and calls `whenClosed` on the loop. What
    /// the kernel still wants then fails.
    func close(_ whenClosed: @escaping @Sendable () -> Void) {
        guard phase != .ended else { return whenClosed() }
        closeWaiters.list.append(whenClosed)
        targetIsClosing()
    }

    func targetIsClosing() {
        guard phase == .open else { return }
        phase = .closing
        if isPolling {
            loop.cancel(
                handler, targetTag: FuseSessionHandler.Step.poll.rawValue, targetToken: 0,
                tag: FuseSessionHandler.Step.cancel.rawValue, token: 0)
        }
        loop.callAtEndOfTurn(handler)
    }

    private func endIfDone() {
        guard phase == .closing, submittedCount == 0, handler.operationsInFlight == 0,
            seekCount == 0
        else { return }
        phase = .ended
        releaseReceiving()
        loop.remove(handler)
        handler.session = nil
        target.removeUser(self)
        let (channel, waiters, ended) = (channel, closeWaiters.list, ended)
        closeWaiters.list = []
        // Closing fails everything the kernel still waits for; only a pool that has ended refuses.
        let close: @Sendable () -> Void = {
            channel.close()
            ended()
            for waiter in waiters { waiter() }
        }
        if !blocking.require(.housekeeping, close) { close() }
    }

    /// Those who wait for the end; a list of its own so that the session is not captured.
    private final class CloseWaiters {
        var list: [@Sendable () -> Void] = []
    }

    // MARK: Loop iterations

    fileprivate func turnEnded() {
        continueSeeks()
        if phase == .open, !isPolling { receive() }
        endIfDone()
    }

    private func poll() {
        isPolling = true
        loop.poll(
            handler, tag: FuseSessionHandler.Step.poll.rawValue, token: 0,
            descriptor: channel.watch, events: UInt32(POLLIN))
    }

    fileprivate func pollCompleted(_ result: Int32) {
        isPolling = false
        if phase == .open { receive() } else { loop.callAtEndOfTurn(handler) }
    }

    fileprivate func roomMade() {
        if phase == .open, !isPolling { receive() }
    }

    // MARK: Reading

    /// Reads messages until none is left, there is no room, or others should have their turn.
    private func receive() {
        var byteCount = 0
        for _ in 0..<Self.messageCountMax where byteCount < Self.messageByteCountMax {
            guard replies.freeCount > 0 else { return releaseReceiving() }
            guard let receiving = readyToReceive() else {
                releaseReceiving()
                return loop.callWhenRoom(handler)
            }
            // A kill while the kernel copies to a page that is not there ends the request with EIO.
            guard loop.buffers.makeResident(receiving, byteCount: Fuse.dataByteCountMax) else {
                return loop.callAtEndOfTurn(handler)
            }
            vectors[0] = iovec(iov_base: head, iov_len: Fuse.writeHeadByteCount)
            vectors[1] = iovec(
                iov_base: loop.buffers.address(of: receiving), iov_len: Fuse.dataByteCountMax)
            let count = readv(channel.descriptor, vectors, 2)
            if count < 0 {
                switch errno {
                // ENOENT: the request was taken back before it was read.
                case EINTR, ENOENT: continue
                case EAGAIN:
                    releaseReceiving()
                    return poll()
                // ENODEV: unmounted; ECONNABORTED: aborted. Whatever else, the kernel speaks no
                // more.
                default:
                    releaseReceiving()
                    return targetIsClosing()
                }
            }
            take(count)
            byteCount += count
            if phase != .open { return releaseReceiving() }
        }
        loop.callAtEndOfTurn(handler)
    }

    /// The buffer to read into, when there is a request slot too.
    private func readyToReceive() -> BufferLease? {
        if spare == nil {
            spare = requests.lease(
                BlockRequest(operation: .flush, owner: Unmanaged.passUnretained(self)),
                heldCount: slotCount)
            guard spare != nil else { return nil }
            slotCount += 1
        }
        if receiveLease == nil { receiveLease = lease(Self.receiveByteCount) }
        return receiveLease
    }

    private func releaseReceiving() {
        if let lease = receiveLease { release(lease) }
        receiveLease = nil
        if let index = spare { release(index) }
        spare = nil
    }

    private func take(_ count: Int) {
        let isLong = count > Fuse.writeHeadByteCount
        let header = UnsafeRawPointer(head).loadUnaligned(as: fuse_in_header.self)
        let operation = FuseOperation(rawValue: header.opcode)
        if isLong, operation != .write {
            // What is longer than the head of a write was parted; put it together again.
            guard let receiveLease else { preconditionFailure("a message without its buffer") }
            let room = Fuse.headByteCountMax - Fuse.writeHeadByteCount
            (head + Fuse.writeHeadByteCount).copyMemory(
                from: loop.buffers.address(of: receiveLease),
                byteCount: min(count - Fuse.writeHeadByteCount, room))
        }
        guard let message = FuseMessage(head, byteCount: count) else { return targetIsClosing() }
        guard let operation else {
            return reply(replies.take(unique: message.header.unique), errnoValue: ENOSYS)
        }
        if operation.isUnanswered { return }
        killPoint?.reached(.read)
        let place = replies.take(unique: message.header.unique)
        perform(operation, message, place)
    }

    // MARK: Requests to the target

    /// Submits a request that needs no buffer, or whose buffer is the place's.
    func submit(_ place: UInt32, _ request: BlockRequest) {
        guard let index = spare else { preconditionFailure("a message is read with a slot ready") }
        spare = nil
        requests[index] = request
        requests[index].ownerNote = UInt64(place)
        submittedCount += 1
        target.submit(index)
    }

    /// A buffer for `byteCount` bytes: one of that size, else the one that was read into, which
    /// is large enough for everything.
    func buffer(_ byteCount: Int, for place: UInt32) -> UnsafeMutableRawPointer {
        guard let receiving = receiveLease else {
            preconditionFailure("a message is read with a buffer ready")
        }
        precondition(byteCount <= receiving.byteCount, "a request larger than was agreed on")
        let found = lease(byteCount)
        if found == nil { receiveLease = nil }
        let lease = found ?? receiving
        replies[lease: place] = lease
        return loop.buffers.address(of: lease)
    }

    /// Puts the payload that was read where a write of `range` must have it.
    func payload(_ range: ByteRange, for place: UInt32) -> UnsafeMutableRawPointer {
        guard let receiving = receiveLease else {
            preconditionFailure("a message is read with a buffer ready")
        }
        let source = loop.buffers.address(of: receiving)
        let outer = range.roundedOutward(to: target.alignment)
        let lead = Int(range.offset - outer.offset)
        if range.length <= UInt64(Self.copyByteCountMax), let found = lease(Int(outer.length)) {
            replies[lease: place] = found
            let destination = loop.buffers.address(of: found) + lead
            destination.copyMemory(from: source, byteCount: Int(range.length))
            return destination
        }
        replies[lease: place] = receiving
        receiveLease = nil
        if lead > 0 { memmove(source + lead, source, Int(range.length)) }
        return source + lead
    }

    override func requestFinished(_ index: RequestIndex) {
        submittedCount -= 1
        killPoint?.reached(.done)
        let request = requests.pointer(to: index)
        let place = UInt32(request.pointee.ownerNote)
        if request.pointee.operation == .blockStatus, request.pointee.fault == nil,
            !seekEnded(request, place)
        {
            if phase == .open || isHandedOver {
                seeks[seekCount] = index
                seekCount += 1
                return loop.callAtEndOfTurn(handler)
            }
            request.pointee.fault = .shutdown
        }
        let (operation, fault) = (request.pointee.operation, request.pointee.fault)
        let (data, length) = (request.pointee.buffer, Int(request.pointee.length))
        release(index)
        if operation != .read || fault != nil { releaseBuffer(of: place) }
        if let fault { return reply(place, errnoValue: fault.errnoValue) }
        switch operation {
        case .read: reply(place, bodyByteCount: length, data: data)
        case .write:
            reply(place, body: fuse_write_out(size: UInt32(length), padding: 0))
        case .blockStatus: replySeek(place)
        case .flush, .writeZeroes, .discard, .prefetch: reply(place, errnoValue: 0)
        }
    }

    private func continueSeeks() {
        let count = seekCount
        seekCount = 0
        for position in 0..<count {
            let request = requests.pointer(to: seeks[position])
            submittedCount += 1
            // The end may have moved since the search began: there is nothing behind it.
            if request.pointee.offset < target.size {
                request.pointee.length = min(
                    request.pointee.length, target.size - request.pointee.offset)
                target.submit(seeks[position])
            } else {
                requests.finish(seeks[position], .deviceGone)
            }
        }
    }

    // MARK: Replies

    /// Answers with the structure `body`.
    func reply<Body: BitwiseCopyable>(_ place: UInt32, body: Body) {
        replies.body(place).storeBytes(of: body, as: Body.self)
        reply(place, bodyByteCount: MemoryLayout<Body>.size, data: nil)
    }

    /// Answers with nothing but success (0) or the reason of a failure.
    func reply(_ place: UInt32, errnoValue: Int32) {
        write(place, replies.compose(place, errnoValue: errnoValue, bodyByteCount: 0, data: nil))
    }

    /// Answers with bytes that lie in the place, or at `data`.
    func reply(_ place: UInt32, bodyByteCount: Int, data: UnsafeMutableRawPointer?) {
        write(
            place,
            replies.compose(place, errnoValue: 0, bodyByteCount: bodyByteCount, data: data))
    }

    private func write(
        _ place: UInt32, _ message: (vectors: UnsafePointer<iovec>, count: Int)
    ) {
        killPoint?.reached(.composed)
        loop.write(
            handler, tag: FuseSessionHandler.Step.reply.rawValue, token: place,
            descriptor: channel.descriptor, vectors: message.vectors, count: message.count,
            offset: 0)
    }

    fileprivate func replyCompleted(_ place: UInt32, _ result: Int32) {
        killPoint?.reached(.answered)
        releaseBuffer(of: place)
        replies.release(place)
        switch -result {
        // ENOENT: nobody waits for it any more. ENODEV, ECONNABORTED: nobody waits for anything.
        case ...0, ENOENT, ENODEV, ECONNABORTED, EPERM: break
        // The kernel did not accept a reply and would wait for it forever.
        default: targetIsClosing()
        }
        if phase != .open || !isPolling { loop.callAtEndOfTurn(handler) }
    }

    // MARK: Leases

    private func lease(_ byteCount: Int) -> BufferLease? {
        guard let lease = loop.buffers.lease(byteCount: byteCount, heldBytes: heldByteCount) else {
            return nil
        }
        heldByteCount += lease.byteCount
        return lease
    }

    private func release(_ lease: BufferLease) {
        heldByteCount -= lease.byteCount
        loop.buffers.release(lease)
    }

    private func release(_ index: RequestIndex) {
        slotCount -= 1
        requests.release(index)
    }

    private func releaseBuffer(of place: UInt32) {
        guard let lease = replies[lease: place] else { return }
        replies[lease: place] = nil
        release(lease)
    }
}

/// The session's hands in the ring: a request owner cannot be a ring handler as well.
final class FuseSessionHandler: RingHandler {
    enum Step: UInt8 {
        case poll
        case reply
        case cancel
    }

    fileprivate(set) var session: FuseSession?

    override func completed(tag: UInt8, token: UInt32, result: Int32, flags: UInt32) {
        guard let session else { preconditionFailure("a session's handler has its session") }
        switch Step(rawValue: tag) {
        case .poll: session.pollCompleted(result)
        case .reply: session.replyCompleted(token, result)
        case .cancel: session.turnAsked()
        case nil: preconditionFailure("a completion of an unknown step")
        }
    }

    override func turnEnded() { session?.turnEnded() }

    override func roomMade() { session?.roomMade() }
}

extension FuseSession {
    /// Looks at the end of the turn whether it has ended.
    fileprivate func turnAsked() { loop.callAtEndOfTurn(handler) }
}
