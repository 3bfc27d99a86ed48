internal import CLinux
internal import CRing
internal import Glibc

// One pthread that owns one io_uring and everything reachable from it.
//
// A turn: submit what was prepared and wait, in one system call; hand out all completions; fire
// timers; run messages of other threads; call those who asked for the end of the turn. Handlers
// prepare operations at any point of the turn; they reach the kernel with the next system call.
//
// Invariants
// - Only the loop's thread touches the loop, its handlers and its pools.
// - The thread leaves only when no operation is in flight and no handler is registered but its
//   own (`stop` is asked for after everybody has closed).

/// How a loop is set up.
package struct LoopConfiguration: Sendable {
    /// Entries of the submission queue; a power of two.
    package var submissionEntries: UInt32 = 1024
    /// Bytes of the pool of payload buffers.
    package var bufferPoolBytes = 192 << 20
    /// Request slots.
    package var requestCapacity = 8192
    /// Bytes and number of the buffers the kernel receives into.
    package var receiveBufferBytes = 64 << 10
    package var receiveBufferCount = 64
    /// Optional features of io_uring to do without.
    package var without: RingFeatures = []
    /// Measure how long each call of a handler takes.
    package var measuresHolds = false

    package init() {}
}

/// Features of io_uring that the loop uses where the kernel has them.
package struct RingFeatures: OptionSet, Sendable {
    package let rawValue: Int
    package init(rawValue: Int) { self.rawValue = rawValue }

    /// IORING_SETUP_SINGLE_ISSUER, Linux 6.0.
    package static let singleIssuer = RingFeatures(rawValue: 1 << 0)
    /// IORING_SETUP_DEFER_TASKRUN, Linux 6.1; needs `singleIssuer`.
    package static let deferTaskRun = RingFeatures(rawValue: 1 << 1)
    /// IORING_SETUP_COOP_TASKRUN, Linux 5.19; used where task work is not deferred.
    package static let cooperativeTaskRun = RingFeatures(rawValue: 1 << 2)
    /// IORING_SETUP_SUBMIT_ALL, Linux 5.18.
    package static let submitAll = RingFeatures(rawValue: 1 << 3)

    /// Name of each feature, for switches and reports.
    package static let names: [(name: String, feature: RingFeatures)] = [
        ("single-issuer", .singleIssuer), ("defer-taskrun", .deferTaskRun),
        ("coop-taskrun", .cooperativeTaskRun), ("submit-all", .submitAll),
    ]
}

/// An event loop; see the head of this file.
package final class EventLoop {
    /// Number of the loop in its service, counted from 0.
    package let index: Int
    /// Request slots of the loop.
    package let requests: RequestPool
    /// Payload buffers of the loop.
    package let buffers: BufferPool
    /// Buffers the kernel receives into.
    package let receiveBuffers: ReceiveBuffers
    /// Features of io_uring in use.
    package let features: RingFeatures
    /// Monotonic nanoseconds, read once a turn.
    package private(set) var now: UInt64
    /// How other threads reach the loop.
    package let mailbox: LoopMailbox

    /// Bytes that may still be copied on the loop itself in this turn.
    private var inlineByteCountLeft = 0
    private var inlineCallByteCountLeft = 0

    /// How long calls of handlers took; nil when that is not measured.
    package private(set) var holds: HoldMeter?

    /// What a room above keeps for each loop.
    package var loopLocal: AnyObject?

    let ring: UnsafeMutablePointer<io_uring>
    var handlers: HandlerTable
    /// Operations of files and disks submitted and not yet completed.
    var fileOperations = OperationAges()
    /// Threads with which the kernel works on operations that would block, as long as none hangs;
    /// `.max` if the kernel does not tell.
    private let workerCount: Int
    private var timers = TimerHeap()
    private var deferred: [RingHandler] = []
    private var deferredSpare: [RingHandler] = []
    private var waitingForRoom: [RingHandler] = []
    /// Those before it in `waitingForRoom` were notified.
    private var notifiedCount = 0
    /// Those that wait and were not notified since room was last made.
    private var unnotifiedCount = 0
    /// Sum of the pools' release counters when it was last looked at.
    private var releasesSeen: UInt64 = 0
    private var waiting = WaitWindow()
    /// Completions that were taken from the ring inside a handler: handed out with the next ones.
    private var kept: [io_uring_cqe] = []

    /// Sets the loop up; runs on the thread that will own it.
    package init(
        index: Int, configuration: LoopConfiguration, mailbox: LoopMailbox
    ) throws(RingError) {
        self.index = index
        self.mailbox = mailbox
        holds = configuration.measuresHolds ? HoldMeter() : nil
        buffers = try BufferPool(capacityBytes: configuration.bufferPoolBytes)
        requests = RequestPool(capacity: configuration.requestCapacity)
        handlers = HandlerTable()
        ring = .allocate(capacity: 1)
        ring.initialize(to: io_uring())
        features = try Self.open(ring, configuration)
        let workerCount = cl_ring_worker_limit(ring, 0)
        self.workerCount = workerCount > 0 ? Int(workerCount) : .max
        receiveBuffers = try ReceiveBuffers(
            ring: ring, bufferBytes: configuration.receiveBufferBytes,
            count: configuration.receiveBufferCount)
        now = cl_now_nanoseconds()
        deferred.reserveCapacity(1024)
        deferredSpare.reserveCapacity(1024)
        waitingForRoom.reserveCapacity(1024)
        let reader = MailReader(loop: self)
        precondition(register(reader), "the first handler finds a slot")
        reader.arm()
    }

    /// Opens the ring with all wanted features, then with fewer: a kernel that lacks one answers
    /// EINVAL without saying which.
    private static func open(
        _ ring: UnsafeMutablePointer<io_uring>, _ configuration: LoopConfiguration
    ) throws(RingError) -> RingFeatures {
        let attempts: [RingFeatures] = [
            [.submitAll, .singleIssuer, .deferTaskRun],
            [.submitAll, .singleIssuer, .cooperativeTaskRun],
            [.submitAll, .cooperativeTaskRun], [.submitAll], [],
        ]
        var failure = EINVAL
        for attempt in attempts {
            var features = attempt.subtracting(configuration.without)
            if !features.contains(.singleIssuer) { features.remove(.deferTaskRun) }
            var flags: UInt32 = 0
            if features.contains(.submitAll) { flags |= UInt32(cl_setup_submit_all) }
            if features.contains(.singleIssuer) { flags |= UInt32(cl_setup_single_issuer) }
            if features.contains(.deferTaskRun) {
                flags |= UInt32(cl_setup_defer_taskrun) | UInt32(cl_setup_taskrun_flag)
            }
            if features.contains(.cooperativeTaskRun) {
                flags |= UInt32(cl_setup_coop_taskrun)
            }
            let entries = configuration.submissionEntries
            let result = cl_ring_open(ring, entries, entries * 8, flags)
            if result == 0 {
                let offered = cl_ring_features(ring)
                guard offered & UInt32(cl_feat_ext_arg) != 0,
                    offered & UInt32(cl_feat_nodrop) != 0
                else {
                    io_uring_queue_exit(ring)
                    throw RingError(operation: .openRing, errnoValue: EINVAL)
                }
                return features
            }
            failure = -result
            guard failure == EINVAL else { break }
        }
        throw RingError(operation: .openRing, errnoValue: failure)
    }

    // MARK: Handlers

    /// Registers a handler; false when the loop has as many as it may.
    package func register(_ handler: RingHandler) -> Bool { handlers.add(handler) }

    /// Removes a handler that has no operation in flight and runs no timer.
    package func remove(_ handler: RingHandler) { handlers.remove(handler) }

    /// Calls `turnEnded` once at the end of this turn (or of the next one, when asked for from
    /// within `turnEnded`).
    package func callAtEndOfTurn(_ handler: RingHandler) {
        guard !handler.isDeferred else { return }
        handler.isDeferred = true
        deferred.append(handler)
    }

    /// Calls `roomMade` once, at the end of a turn after a buffer or slot was given back. Handlers
    /// are called in the order they asked, a few in each turn.
    package func callWhenRoom(_ handler: RingHandler) {
        guard !handler.isWaitingForRoom else { return }
        handler.isWaitingForRoom = true
        waitingForRoom.append(handler)
    }

    // MARK: Timers

    /// Calls `timerFired(token:)` once, `nanoseconds` from now at the earliest.
    package func schedule(
        after nanoseconds: UInt64, _ handler: RingHandler, token: UInt32
    ) -> TimerID {
        schedule(at: cl_now_nanoseconds() &+ nanoseconds, handler, token: token)
    }

    /// The same at a point of monotonic time.
    package func schedule(
        at deadline: UInt64, _ handler: RingHandler, token: UInt32
    ) -> TimerID {
        timers.add(deadline: deadline, slot: handler.slot, token: token)
    }

    /// Does nothing when the timer has fired already.
    package func cancel(_ timer: TimerID) { timers.cancel(timer) }

    // MARK: Running

    /// Runs until `stop` was called and nothing is in flight.
    package func run() {
        while !(isStopping && handlers.isEmpty) { turn() }
        receiveBuffers.deallocate()
        io_uring_queue_exit(ring)
        ring.deallocate()
        handlers.deallocate()
    }

    /// Lets `run` return once every handler has been removed. Called from a message.
    package func stop() { isStopping = true }

    /// True after `stop`: the mailbox takes no more messages.
    package private(set) var isStopping = false

    /// Bytes of plain reads and writes of memory filesystems in one turn, and in one call of a
    /// handler: what goes beyond would hold the loop for too long.
    private static let inlineByteCountMax = 4 << 20
    private static let inlineCallByteCountMax = 1 << 20

    /// True when `byteCount` bytes may be read or written by a plain call on the loop, in this
    /// turn.
    @inline(__always)
    package func takeInline(byteCount: Int) -> Bool {
        guard byteCount <= inlineCallByteCountLeft, byteCount <= inlineByteCountLeft else {
            return false
        }
        inlineCallByteCountLeft -= byteCount
        inlineByteCountLeft -= byteCount
        return true
    }

    /// A handler is about to be called. Returns when, for `callEnds`.
    @inline(__always)
    private func callBegins() -> UInt64 {
        inlineCallByteCountLeft = Self.inlineCallByteCountMax
        return holds == nil ? 0 : HoldMeter.start
    }

    @inline(__always)
    private func callEnds(_ start: UInt64) {
        if holds != nil { holds?.callEnded(since: start) }
    }

    private func turn() {
        inlineByteCountLeft = Self.inlineByteCountMax
        let wait =
            deferred.isEmpty && !someWaiterHasRoom && kept.isEmpty && !buffers.isReturning
        var timeout: Int64 = -1
        if wait, let deadline = timers.nextDeadline {
            timeout = Int64(clamping: deadline - min(deadline, cl_now_nanoseconds()))
        }
        // With fewer a worker is free for the next operation, even if all of them hang.
        if wait, fileOperations.count >= workerCount {
            let look = Int64(fileOperations.nextLook - min(fileOperations.nextLook, now))
            timeout = timeout < 0 ? look : min(timeout, look)
        }
        enter(wait: wait, timeout: timeout)
        now = cl_now_nanoseconds()
        reap()
        if now >= fileOperations.nextLook { lookAtFileOperations() }
        while let timer = timers.popExpired(now: now) {
            let start = callBegins()
            handlers.handler(at: timer.slot)?.timerFired(token: timer.token)
            callEnds(start)
        }
        endTurn()
    }

    /// Raises the number of the kernel's workers by that of the operations that hang, so that the
    /// ordinary number is left for all others.
    private func lookAtFileOperations() {
        guard fileOperations.look(now: now), workerCount != .max else { return }
        let limit = UInt32(clamping: workerCount + fileOperations.hangingCount)
        guard cl_ring_worker_limit(ring, limit) >= 0, fileOperations.hangingCount > 0 else {
            return
        }
        // The kernel starts another worker only when it is handed work: each time, since what an
        // earlier look handed over may still be in the queue, behind operations that hang.
        let waker = WorkerWaker { [unowned self] in remove($0) }
        if register(waker) { wakeWorker(waker) }
    }

    /// Submits and, with `wait`, sleeps until a completion is there or `timeout` (negative: none)
    /// is over. Where only clients are waited for it looks for a completion first, as long as
    /// `waiting` says: a disk takes longer, and may need the processor to answer.
    private func enter(wait: Bool, timeout: Int64) {
        guard wait, features.contains(.deferTaskRun), fileOperations.count == 0 else {
            return check(cl_ring_turn(ring, wait, timeout))
        }
        let window = waiting.window(within: timeout)
        let start = cl_now_nanoseconds()
        if window > 0 {
            check(cl_ring_turn(ring, false, 0))
            while true {
                if cl_ring_has_news(ring) { return waiting.found() }
                if cl_now_nanoseconds() - start >= window { break }
                cl_relax()
            }
        }
        check(cl_ring_turn(ring, true, timeout < 0 ? timeout : timeout - Int64(window)))
        waiting.slept(for: cl_now_nanoseconds() - start, looked: window > 0)
    }

    private func check(_ result: Int32) {
        switch -result {
        case ETIME, EINTR, EAGAIN, EBUSY: break
        case let failure where failure > 0:
            preconditionFailure("io_uring_enter failed with errno \(failure)")
        default: break
        }
    }

    /// Most completions that are taken from the ring at a time. They are copied to the stack, where
    /// temporary memory has at most 1024 bytes; more would be allocated in every turn.
    private static let batchCount = 64

    /// Hands out what has completed, in the order of the kernel. A batch has left the ring before
    /// its first handler is called, for that may have to take others out of it.
    private func reap() {
        withUnsafeTemporaryAllocation(of: io_uring_cqe.self, capacity: Self.batchCount) { batch in
            while true {
                var position = 0
                while position < kept.count {
                    dispatch(kept[position])
                    position += 1
                }
                kept.removeAll(keepingCapacity: true)
                let count = takeCompletions { batch[$0] = $1 }
                for index in 0..<count { dispatch(batch[index]) }
                if count < Self.batchCount, kept.isEmpty { return }
            }
        }
    }

    /// Takes completions out of the ring; returns how many.
    @inline(__always)
    private func takeCompletions(_ body: (Int, io_uring_cqe) -> Void) -> Int {
        withUnsafeTemporaryAllocation(
            of: UnsafeMutablePointer<io_uring_cqe>?.self, capacity: Self.batchCount
        ) { places in
            let count = Int(cl_ring_peek(ring, places.baseAddress, UInt32(Self.batchCount)))
            for index in 0..<count { body(index, places[index].unsafelyUnwrapped.pointee) }
            cl_ring_advance(ring, UInt32(count))
            return count
        }
    }

    /// Makes room in the ring from inside a handler, which must not be called again meanwhile: what
    /// has completed waits for its turn.
    func keepCompletions() {
        check(cl_ring_turn(ring, false, 0))
        while takeCompletions({ kept.append($1) }) == Self.batchCount {}
    }

    @inline(__always)
    private func dispatch(_ completion: io_uring_cqe) {
        if completion.user_data & HandlerTable.ofFile != 0 {
            fileOperations.ended(HandlerTable.group(ofUserData: completion.user_data))
        }
        let start = callBegins()
        handlers.dispatch(
            userData: completion.user_data, result: completion.res, flags: completion.flags,
            isLast: completion.flags & UInt32(cl_cqe_f_more) == 0)
        callEnds(start)
    }

    private var releases: UInt64 {
        buffers.releaseCount &+ requests.releaseCount &+ receiveBuffers.releaseCount
    }

    private var waitingCount: Int { waitingForRoom.count - notifiedCount }

    private var someWaiterHasRoom: Bool {
        waitingCount > 0 && (unnotifiedCount > 0 || releases != releasesSeen)
    }

    /// Most waiters for room that are notified in one turn: many of them may wait in vain, and
    /// others must not wait for that.
    private static let notifiedCountMax = 8

    /// Tells those who wait that room was made, in the order in which they asked.
    private func notifyWaiting() {
        if releases != releasesSeen {
            releasesSeen = releases
            unnotifiedCount = waitingCount
        }
        for _ in 0..<min(unnotifiedCount, Self.notifiedCountMax) {
            let handler = waitingForRoom[notifiedCount]
            notifiedCount += 1
            unnotifiedCount -= 1
            handler.isWaitingForRoom = false
            // It may have left since it asked.
            let start = callBegins()
            if handler.isRegistered { handler.roomMade() }
            callEnds(start)
        }
        // The list moves up when half of it was notified, so each entry is moved once on average.
        if notifiedCount > waitingForRoom.count / 2 {
            waitingForRoom.removeSubrange(..<notifiedCount)
            notifiedCount = 0
        }
    }

    private func endTurn() {
        if buffers.isReturning { buffers.returnSlice() }
        if someWaiterHasRoom { notifyWaiting() }
        swap(&deferred, &deferredSpare)
        for handler in deferredSpare {
            handler.isDeferred = false
            let start = callBegins()
            if handler.isRegistered { handler.turnEnded() }
            callEnds(start)
        }
        deferredSpare.removeAll(keepingCapacity: true)
        handlers.releaseRemoved()
    }
}

/// Hands a worker of the kernel something to do, once.
private final class WorkerWaker: RingHandler {
    private let finish: (WorkerWaker) -> Void

    init(_ finish: @escaping (WorkerWaker) -> Void) {
        self.finish = finish
        super.init()
    }

    override func completed(tag: UInt8, token: UInt32, result: Int32, flags: UInt32) {
        finish(self)
    }
}
