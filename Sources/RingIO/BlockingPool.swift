internal import CLinux
internal import Glibc
internal import Synchronization

/// Threads for system calls that can block: open, stat, lseek for holes, large frees. A loop hands
/// work over and gets a message when it is done; nothing blocks on a loop.
package final class BlockingPool: Sendable {
    /// Most jobs that wait.
    package static let capacity = 8192

    private struct State {
        var jobs: [@Sendable () -> Void] = []
        var isClosed = false
    }

    private let state = Mutex(State())
    private let available = Semaphore()
    private let threads: Mutex<[pthread_t]>

    package init(threadCount: Int = 4) throws(RingError) {
        threads = Mutex([])
        for _ in 0..<threadCount {
            var handle = pthread_t()
            let context = Unmanaged.passRetained(self).toOpaque()
            let result = pthread_create(
                &handle, nil,
                { context in
                    guard let context else { preconditionFailure("a thread without its pool") }
                    cl_block_signals()
                    cl_name_thread("blocking")
                    Unmanaged<BlockingPool>.fromOpaque(context).takeRetainedValue().work()
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
    package func submit(_ job: @escaping @Sendable () -> Void) -> Bool {
        let accepted = state.withLock { state in
            guard !state.isClosed, state.jobs.count < Self.capacity else { return false }
            state.jobs.append(job)
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

    private func work() {
        while true {
            available.wait()
            let job = state.withLock { state in
                state.jobs.isEmpty ? nil : state.jobs.removeFirst()
            }
            guard let job else { return }
            job()
        }
    }
}
