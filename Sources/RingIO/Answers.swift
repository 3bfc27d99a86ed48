internal import Synchronization

/// Answers of other threads to one thread that waits for them, in the order in which they come.
package final class Answers<Answer: Sendable>: Sendable {
    private let queue = Mutex<[Answer]>([])
    private let available = Semaphore()

    package init() {}

    /// Adds an answer; the waiting thread wakes up.
    package func add(_ answer: Answer) {
        queue.withLock { $0.append(answer) }
        available.signal()
    }

    /// The next answer; nil when `deadline` (monotonic nanoseconds) passes first.
    package func next(before deadline: UInt64?) -> Answer? {
        guard available.wait(until: deadline) else { return nil }
        return queue.withLock { $0.removeFirst() }
    }
}
