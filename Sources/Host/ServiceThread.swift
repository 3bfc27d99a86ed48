internal import CLinux
internal import Glibc

/// A thread of its own, for work that may block for long.
package struct ServiceThread: Sendable {
    /// What passes to the new thread.
    private final class Start: Sendable {
        let name: String
        let blocksSignals: Bool
        let body: @Sendable () -> Void

        init(_ name: String, blocksSignals: Bool, _ body: @escaping @Sendable () -> Void) {
            self.name = name
            self.blocksSignals = blocksSignals
            self.body = body
        }

        func run() {
            if blocksSignals { cl_block_signals() }
            cl_name_thread(name)
            body()
        }
    }

    private let handle: pthread_t

    /// Starts a thread that nobody joins; it ends when `body` returns. `name`: at most 15
    /// characters. `blocksSignals`: false keeps the signal mask of the calling thread.
    package static func start(
        _ name: String, blocksSignals: Bool = true, _ body: @escaping @Sendable () -> Void
    ) throws(HostError) {
        try startJoinable(name, blocksSignals: blocksSignals, body).detach()
    }

    /// Starts a thread that must be joined or detached.
    package static func startJoinable(
        _ name: String, blocksSignals: Bool = true, _ body: @escaping @Sendable () -> Void
    ) throws(HostError) -> ServiceThread {
        var handle = pthread_t()
        let context = Unmanaged.passRetained(Start(name, blocksSignals: blocksSignals, body))
        let result = pthread_create(
            &handle, nil,
            { context in
                guard let context else { preconditionFailure("a thread without its work") }
                // SAFETY: the context was retained for this thread, which takes it once.
                Unmanaged<Start>.fromOpaque(context).takeRetainedValue().run()
                return nil
            }, context.toOpaque())
        guard result == 0 else {
            context.release()
            throw HostError("pthread_create", result)
        }
        return ServiceThread(handle: handle)
    }

    /// Waits for its end. Blocks.
    package func join() { pthread_join(handle, nil) }

    /// Lets it end by itself.
    package func detach() { pthread_detach(handle) }
}
