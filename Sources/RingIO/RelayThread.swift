internal import Synchronization

/// A thread that calls what others hand it, for threads that must not do so themselves: one with a
/// table of descriptors of its own may wake a task only through here. Waking a task can start a
/// thread of the cooperative pool, and that thread would inherit the table, which has nothing in
/// it.
package final class RelayThread: Sendable {
    private let calls = Mutex<[(@Sendable () -> Void)?]>([])
    private let available = Semaphore()

    package init() throws(RingError) {
        try ServiceThread.start("relay") { [self] in work() }
    }

    /// Calls `body` soon, in turn.
    package func post(_ body: @escaping @Sendable () -> Void) { add(body) }

    /// Ends the thread when all that was posted is done. The last call.
    package func close() { add(nil) }

    private func add(_ call: (@Sendable () -> Void)?) {
        calls.withLock { $0.append(call) }
        available.signal()
    }

    private func work() {
        while true {
            available.wait()
            guard let call = calls.withLock({ $0.removeFirst() }) else { return }
            call()
        }
    }
}
