internal import CLinux
internal import Glibc
internal import Synchronization

/// A piece of blocking work that is done again and again, so that doing it allocates nothing: the
/// object is kept by its owner and used by one job at a time.
///
/// Public because only `open` classes may be subclassed by other rooms.
open class BlockingWork: @unchecked Sendable {
    // Between `BlockingPool.submit` and `finished` only the pool's thread touches the object,
    // before and after it only the loop's: the mailbox orders the two.
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
/// work over and gets a message when it is done; nothing blocks on a loop.
package final class BlockingPool: Sendable {
    /// Most jobs that wait.
    package static let capacity = 8192

    private enum Job {
        case closure(@Sendable () -> Void)
        case work(BlockingWork)
    }

    private struct State {
        /// A ring of `capacity` places.
        var jobs: [Job?] = []
        var head = 0
        var count = 0
        var isClosed = false
    }

    private let state = Mutex(State())
    private let available = Semaphore()
    private let threads: Mutex<[pthread_t]>

    /// Starts the threads.
    package init(threadCount: Int = 4) throws(RingError) {
        threads = Mutex([])
        state.withLock { $0.jobs = Array(repeating: nil, count: Self.capacity) }
        for _ in 0..<threadCount {
            var handle = pthread_t()
            let context = Unmanaged.passRetained(self).toOpaque()
            let result = pthread_create(
                &handle, nil,
                { context in
                    guard let context else { preconditionFailure("a thread without its pool") }
                    cl_block_signals()
                    cl_name_thread("blocking")
                    takeShortTurns()
                    Unmanaged<BlockingPool>.fromOpaque(context).takeRetainedValue().run()
                    return nil
                }, context)
            guard result == 0 else {
                Unmanaged<BlockingPool>.fromOpaque(context).release()
                throw RingError(operation: .startThread, errnoValue: result)
            }
            let started = handle
            threads.withLock { $0.append(started) }
        }
    }

    /// Queues a job; false when as many wait as may, or the pool is closed.
    package func submit(_ job: @escaping @Sendable () -> Void) -> Bool { add(.closure(job)) }

    /// Queues work, whose `finished` runs on its loop afterwards; false as above.
    package func submit(_ work: BlockingWork) -> Bool { add(.work(work)) }

    private func add(_ job: Job) -> Bool {
        let accepted = state.withLock { state in
            guard !state.isClosed, state.count < Self.capacity else { return false }
            state.jobs[(state.head + state.count) % Self.capacity] = job
            state.count += 1
            return true
        }
        if accepted { available.signal() }
        return accepted
    }

    /// Runs `body` on the pool and returns what it returned; nil when the pool does not take it.
    package func run<Value: Sendable>(_ body: @escaping @Sendable () -> Value) async -> Value? {
        await withCheckedContinuation { continuation in
            let accepted = submit { continuation.resume(returning: body()) }
            if !accepted { continuation.resume(returning: nil) }
        }
    }

    /// Finishes what waits, ends the threads and waits for them.
    package func close() {
        let handles = threads.withLock { threads in
            defer { threads = [] }
            return threads
        }
        state.withLock { $0.isClosed = true }
        for _ in handles { available.signal() }
        for handle in handles { pthread_join(handle, nil) }
    }

    private func run() {
        while true {
            available.wait()
            let job = state.withLock { state -> Job? in
                guard state.count > 0 else { return nil }
                let job = state.jobs[state.head]
                state.jobs[state.head] = nil
                state.head = (state.head + 1) % Self.capacity
                state.count -= 1
                return job
            }
            switch job {
            case .closure(let body): body()
            case .work(let work):
                work.perform()
                work.mailbox.post(finished: work)
            case nil: return
            }
        }
    }
}
