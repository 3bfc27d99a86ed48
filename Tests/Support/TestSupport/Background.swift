import Foundation

/// A function that runs on a thread of its own.
package final class Background<Value: Sendable>: @unchecked Sendable {
    // Written by the thread before the semaphore is signalled, read after it was waited for.
    private var result: Result<Value, any Error>?
    private let done = DispatchSemaphore(value: 0)

    package init(_ body: @escaping @Sendable () throws -> Value) {
        let thread = Thread { [self] in
            result = Result { try body() }
            done.signal()
        }
        thread.stackSize = 4 << 20
        thread.start()
    }

    /// Waits for its end, once; the limit only detects hangs.
    package func value(within seconds: Double = 300) throws -> Value {
        guard done.wait(timeout: .now() + seconds) == .success, let result else {
            throw TestFailure("a thread of the test hangs")
        }
        return try result.get()
    }
}
