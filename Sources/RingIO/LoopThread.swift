internal import Host
internal import CLinux
internal import Glibc
internal import Synchronization

/// A loop on a thread of its own, as seen from other threads.
package final class LoopThread: Sendable {
    /// Number of the loop in its service.
    package let index: Int
    /// How to reach the loop.
    package let mailbox: LoopMailbox
    /// Features of io_uring in use.
    package let features: RingFeatures
    /// Its allocations never wait for I/O that it may have to serve itself.
    package let isIOFlusher: Bool

    private let thread: Mutex<ServiceThread?>

    /// Starts the thread and returns when its loop runs.
    package init(index: Int, configuration: LoopConfiguration) throws(RingError) {
        self.index = index
        let mailbox = try LoopMailbox()
        self.mailbox = mailbox
        let start = Start(index: index, configuration: configuration, mailbox: mailbox)
        let handle: ServiceThread
        do throws(HostError) {
            handle = try ServiceThread.startJoinable("loop-\(index)") { start.run() }
        } catch {
            throw RingError(operation: .startThread, errnoValue: error.errnoValue)
        }
        switch start.wait() {
        case .success(let running):
            features = running.features
            isIOFlusher = running.isIOFlusher
            thread = Mutex(handle)
        case .failure(let error):
            handle.join()
            throw error
        }
    }

    /// Asks the loop to end and waits until it has. Everything registered on it must have been
    /// closed, or closes by itself. Blocks: not for the cooperative pool.
    package func stopAndJoin() {
        let handle = thread.withLock { thread in
            defer { thread = nil }
            return thread
        }
        guard let handle else { return }
        mailbox.postWhenRoom { loop in loop.stop() }
        handle.join()
    }

    /// What passes from the starting thread to the new one and back.
    private final class Start: Sendable {
        /// What a loop says of itself when it runs.
        struct Running: Sendable {
            let features: RingFeatures
            let isIOFlusher: Bool
        }

        let index: Int
        let configuration: LoopConfiguration
        let mailbox: LoopMailbox
        private let outcome = Mutex<Result<Running, RingError>?>(nil)
        private let ready = Semaphore()

        init(index: Int, configuration: LoopConfiguration, mailbox: LoopMailbox) {
            self.index = index
            self.configuration = configuration
            self.mailbox = mailbox
        }

        func wait() -> Result<Running, RingError> {
            ready.wait()
            return outcome.withLock { outcome in
                guard let outcome else { preconditionFailure("a loop starts without an outcome") }
                return outcome
            }
        }

        private func report(_ result: Result<Running, RingError>) {
            outcome.withLock { $0 = result }
            ready.signal()
        }

        func run() {
            requestShortTimeSlices()
            // Before the ring is made: kernel workers inherit it.
            let isIOFlusher = cl_become_io_flusher() == 0
            do throws(RingError) {
                let loop = try EventLoop(
                    index: index, configuration: configuration, mailbox: mailbox)
                report(.success(Running(features: loop.features, isIOFlusher: isIOFlusher)))
                loop.run()
            } catch {
                report(.failure(error))
            }
        }
    }
}
