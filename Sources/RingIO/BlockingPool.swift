internal import Host
internal import CLinux
internal import Glibc
internal import Synchronization

/// A piece of blocking work that is done again and again, so that doing it allocates nothing: the
/// object is kept by its owner and used by one job at a time.
///
/// Public because only `open` classes may be subclassed by other rooms.
open class BlockingWork: @unchecked Sendable {
    // SAFETY: between `BlockingPool.submit` and `finished` only the pool's thread touches the
    // object, before and after it only the loop's: the mailbox orders the two.
    let mailbox: LoopMailbox

    /// `mailbox`: of the loop that owns the work.
    package init(mailbox: LoopMailbox) { self.mailbox = mailbox }

    /// Does the work; on a thread of the pool.
    open func perform() {
        preconditionFailure("blocking work must say what it does")
    }

    /// The work is done; on the loop.
    open func finished() {
        preconditionFailure("blocking work must say what follows")
    }
}

/// Threads for system calls that can block: open, stat, lseek for holes, large frees. A loop hands
/// work over and gets a message when it is done; nothing blocks on a loop. `LaneSchedule` decides
/// what runs when.
package final class BlockingPool: Sendable {
    private enum Job {
        case closure(@Sendable () -> Void)
        case work(BlockingWork)
    }

    private struct State {
        var schedule: LaneSchedule
        /// By lane, the oldest first from `heads` on.
        var jobs: [[Job?]]
        var heads: [Int]
        var isClosed = false
        /// Threads that have not ended.
        var threadCount = 0

        mutating func append(_ job: Job, to lane: BlockingLane) {
            jobs[lane.rawValue].append(job)
        }

        /// Takes the oldest job of the lane out.
        mutating func removeFirst(of lane: BlockingLane) -> Job {
            let head = heads[lane.rawValue]
            guard let job = jobs[lane.rawValue][head] else {
                preconditionFailure("a lane has the jobs that wait in it")
            }
            jobs[lane.rawValue][head] = nil
            heads[lane.rawValue] = head + 1
            if head + 1 == jobs[lane.rawValue].count {
                jobs[lane.rawValue].removeAll(keepingCapacity: true)
                heads[lane.rawValue] = 0
            } else if head >= 1024, head * 2 > jobs[lane.rawValue].count {
                jobs[lane.rawValue].removeFirst(head + 1)
                heads[lane.rawValue] = 0
            }
            return job
        }
    }

    private let state: Mutex<State>
    private let available = Semaphore()
    /// A thread has ended.
    private let threadEnded = Semaphore()
    private let threads: Mutex<[ServiceThread]>

    /// Longest time that `close` waits for calls that may never end, nanoseconds.
    private static let hangingNanoseconds: UInt64 = 2_000_000_000

    /// A pool of the service, with its lanes.
    package static func service() throws(RingError) -> BlockingPool {
        let schedule = LaneSchedule.service()
        return try BlockingPool(schedule, threadCount: schedule.threadCount)
    }

    /// A pool for one kind of work: each lane may use all its threads.
    package convenience init(
        threadCount: Int = 4, waitingMax: Int = 8192
    ) throws(RingError) {
        let schedule = LaneSchedule { _ in
            LaneSchedule.Bounds(threadCount: threadCount, waitingMax: waitingMax)
        }
        try self.init(schedule, threadCount: threadCount)
    }

    /// A pool whose jobs run as `schedule` says, on so many threads.
    package init(_ schedule: LaneSchedule, threadCount: Int) throws(RingError) {
        threads = Mutex([])
        let laneCount = BlockingLane.allCases.count
        state = Mutex(
            State(
                schedule: schedule, jobs: Array(repeating: [], count: laneCount),
                heads: Array(repeating: 0, count: laneCount)))
        for _ in 0..<threadCount {
            do throws(RingError) {
                try startThread()
            } catch {
                close()
                throw error
            }
        }
    }

    private func startThread() throws(RingError) {
        state.withLock { $0.threadCount += 1 }
        do throws(HostError) {
            let thread = try ServiceThread.startJoinable("blocking") { [self] in
                requestShortTimeSlices()
                run()
            }
            threads.withLock { $0.append(thread) }
        } catch {
            state.withLock { $0.threadCount -= 1 }
            throw RingError(operation: .startThread, errnoValue: error.errnoValue)
        }
    }

    /// Queues a job; false when as many of its lane wait as may, or the pool is closed.
    package func submit(
        _ lane: BlockingLane, _ job: @escaping @Sendable () -> Void
    ) -> Bool {
        add(.closure(job), lane, isOwed: false)
    }

    /// Queues a job that has to be done, however many wait: what is given back, and ends of things
    /// that are bounded themselves. False only when the pool is closed.
    package func require(
        _ lane: BlockingLane, _ job: @escaping @Sendable () -> Void
    ) -> Bool {
        add(.closure(job), lane, isOwed: true)
    }

    /// Queues work, whose `finished` runs on its loop afterwards. False only when the pool is
    /// closed:
    /// the owner of the work bounds it.
    package func submit(_ lane: BlockingLane, work: BlockingWork) -> Bool {
        add(.work(work), lane, isOwed: true)
    }

    /// The same in the lane of the service's own.
    package func submit(_ job: @escaping @Sendable () -> Void) -> Bool {
        submit(.housekeeping, job)
    }

    /// The same in the lane of the service's own.
    package func require(_ job: @escaping @Sendable () -> Void) -> Bool {
        require(.housekeeping, job)
    }

    private func add(_ job: Job, _ lane: BlockingLane, isOwed: Bool) -> Bool {
        let accepted = state.withLock { state in
            guard !state.isClosed, state.schedule.arrived(in: lane, isOwed: isOwed) else {
                return false
            }
            state.append(job, to: lane)
            return true
        }
        guard accepted else { return false }
        if state.withLock({ $0.schedule.wantsThread(for: lane) }) { addThread(to: lane) }
        available.signal()
        return true
    }

    /// All threads of the lane are held: it gets another one. Where no thread can be started its
    /// jobs wait for one of those.
    private func addThread(to lane: BlockingLane) {
        do throws(RingError) {
            try startThread()
        } catch { return }
        let isWanted = state.withLock { state in
            // Another thread may have been started for it meanwhile.
            guard state.schedule.wantsThread(for: lane) else { return false }
            state.schedule.threadStarted(for: lane)
            return true
        }
        if isWanted { available.signal() }
    }

    /// Runs `body` on the pool and returns what it returned; nil when the pool does not take it.
    package func run<Value: Sendable>(
        _ lane: BlockingLane, _ body: @escaping @Sendable () -> Value
    ) async -> Value? {
        await withCheckedContinuation { continuation in
            let accepted = submit(lane) { continuation.resume(returning: body()) }
            if !accepted { continuation.resume(returning: nil) }
        }
    }

    /// The same in the lane of the service's own.
    package func run<Value: Sendable>(_ body: @escaping @Sendable () -> Value) async -> Value? {
        await run(.housekeeping, body)
    }

    /// Finishes what waits, ends the threads and waits for them: without a limit for calls that
    /// end, for a moment for those that may hang, which are left behind.
    package func close() {
        let handles = threads.withLock { threads in
            defer { threads = [] }
            return threads
        }
        state.withLock { $0.isClosed = true }
        for _ in handles { available.signal() }
        let deadline = cl_now_nanoseconds() + Self.hangingNanoseconds
        var isHanging = false
        while state.withLock({ $0.threadCount > 0 }) {
            let next = max(deadline, cl_now_nanoseconds() + 100_000_000)
            if threadEnded.wait(until: next) { continue }
            isHanging = state.withLock { $0.threadCount > 0 && $0.schedule.hasOnlyHanging }
            if isHanging { break }
        }
        for handle in handles {
            // Which of them hang is not known: those that have ended lose only their status.
            if isHanging { handle.detach() } else { handle.join() }
        }
    }

    private func run() {
        while true {
            available.wait()
            // What was held back by a bound of its lane is taken by the thread that ends a job of
            // it.
            while let (lane, job) = nextJob() {
                switch job {
                case .closure(let body): body()
                case .work(let work):
                    work.perform()
                    work.mailbox.post(finished: work)
                }
                state.withLock { $0.schedule.ended(in: lane) }
            }
            let isOver = state.withLock { state in
                if state.isClosed { state.threadCount -= 1 }
                return state.isClosed
            }
            guard !isOver else { return threadEnded.signal() }
        }
    }

    private func nextJob() -> (BlockingLane, Job)? {
        state.withLock { state in
            guard let lane = state.schedule.threadFree() else { return nil }
            return (lane, state.removeFirst(of: lane))
        }
    }
}

/// What became of a call that may hang.
package enum LimitedOutcome<Value: Sendable>: Sendable {
    case done(Value)
    /// It has not ended in time. It continues, and its end is not reported.
    case late
    /// As many of its lane wait as may, or the pool is closed.
    case refused
}

extension BlockingPool {
    /// Runs `body` on the pool, and waits for it at most so long. `whenLate` takes what comes too
    /// late, on the pool: it has to close what was opened.
    package func run<Value: Sendable>(
        _ lane: BlockingLane, limitNanoseconds: UInt64,
        whenLate: @escaping @Sendable (Value) -> Void = { _ in },
        _ body: @escaping @Sendable () -> Value
    ) async -> LimitedOutcome<Value> {
        await withCheckedContinuation { continuation in
            let race = Race(continuation)
            let limit = Task {
                // Cancelled: the call has ended.
                guard (try? await Task.sleep(nanoseconds: limitNanoseconds)) != nil else { return }
                _ = race.end(.late)
            }
            let accepted = submit(lane) {
                let value = body()
                if race.end(.done(value)) { limit.cancel() } else { whenLate(value) }
            }
            if !accepted {
                limit.cancel()
                _ = race.end(.refused)
            }
        }
    }
}

/// Resumes the waiter, once.
private final class Race<Value: Sendable>: Sendable {
    private let waiter: Mutex<CheckedContinuation<LimitedOutcome<Value>, Never>?>

    init(_ waiter: CheckedContinuation<LimitedOutcome<Value>, Never>) {
        self.waiter = Mutex(waiter)
    }

    /// False when somebody else was first.
    func end(_ outcome: LimitedOutcome<Value>) -> Bool {
        let waiter = waiter.withLock { waiter in
            defer { waiter = nil }
            return waiter
        }
        waiter?.resume(returning: outcome)
        return waiter != nil
    }
}
