internal import CLinux
internal import Glibc

/// A thread beside the loops and the pool, for one piece of work that may block for long and that
/// nobody may wait for without a limit. It ends by itself when `body` returns.
package enum ServiceThread {
    private final class Body: Sendable {
        let run: @Sendable () -> Void
        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }

    /// Starts it. `name`: at most 15 characters.
    package static func start(
        _ name: StaticString, _ body: @escaping @Sendable () -> Void
    ) throws(RingError) {
        var attributes = pthread_attr_t()
        pthread_attr_init(&attributes)
        defer { pthread_attr_destroy(&attributes) }
        pthread_attr_setdetachstate(&attributes, Int32(PTHREAD_CREATE_DETACHED))
        var handle = pthread_t()
        let context = Unmanaged.passRetained(
            Body {
                name.withUTF8Buffer { bytes in
                    // A static string ends with a zero.
                    bytes.withMemoryRebound(to: CChar.self) { cl_name_thread($0.baseAddress) }
                }
                body()
            })
        let result = pthread_create(
            &handle, &attributes,
            { context in
                guard let context else { preconditionFailure("a thread without its work") }
                cl_block_signals()
                Unmanaged<Body>.fromOpaque(context).takeRetainedValue().run()
                return nil
            }, context.toOpaque())
        guard result == 0 else {
            context.release()
            throw RingError(operation: .startThread, errnoValue: result)
        }
    }
}

/// Time slices of 0.1 ms for the calling thread where the scheduler would give it 1.4 ms or more:
/// on a busy machine a loop gets the processor sooner, and a thread that makes memory resident or
/// reserves space keeps loops and clients from it for less long at a time.
func requestShortTimeSlices() {
    // Refused (by a filter of system calls): latencies on a busy machine are longer, nothing else.
    _ = cl_take_short_turns(100_000)
}
