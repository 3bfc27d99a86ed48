internal import Glibc
internal import RingIO
internal import Synchronization

/// Waiting for the lock of a file (flock) with a limit.
///
/// The kernel's wait has none, so a thread of its own waits and tells. When the limit comes first
/// that thread stays behind until the kernel lets it go; as the caller closes the descriptor then,
/// the lock is given back in the moment in which it is granted.
package enum FileLock {
    /// Longest name of a thread is 15 characters.
    private static let threadName: StaticString = "lock-wait"

    private final class Outcome: Sendable {
        let semaphore = Semaphore()
        let isGranted = Atomic<Bool>(false)
    }

    /// Takes the lock for this descriptor alone, at the latest at `deadline` (monotonic
    /// nanoseconds). False: it was not to be had, and the descriptor must be closed. Blocks.
    package static func exclusive(_ descriptor: Int32, until deadline: UInt64) -> Bool {
        if flock(descriptor, LOCK_EX | LOCK_NB) == 0 { return true }
        guard errno == EWOULDBLOCK else { return false }
        let outcome = Outcome()
        do throws(RingError) {
            try ServiceThread.start(threadName) {
                var result = flock(descriptor, LOCK_EX)
                while result != 0 && errno == EINTR { result = flock(descriptor, LOCK_EX) }
                outcome.isGranted.store(result == 0, ordering: .releasing)
                outcome.semaphore.signal()
            }
        } catch {
            // Without a thread there is nobody to wait; who asks is told that it is taken.
            return false
        }
        return outcome.semaphore.wait(until: deadline)
            && outcome.isGranted.load(ordering: .acquiring)
    }
}
