internal import Host
internal import CLinux
internal import Glibc
internal import Synchronization

// A wait for a flock that others hold, with a limit. The kernel's own wait has none, so it is done
// on a thread of its own: the end of the others' lock is an event, and nobody asks again and again.
//
// Invariants
// - The thread waits through a descriptor of its own for the same open file, which is closed before
//   the wait is said to be over. So the lock is that of the caller's descriptor alone: it ends
//   when that is closed.
// - A wait that was abandoned ends with the others' lock, or with the process. What it
//   gets then it gives up at once if the caller has closed its descriptor.

/// A wait for a flock; see the head of this file.
package final class LockWait: Sendable {
    private let isLocked = Mutex(false)
    private let ended = Semaphore()

    /// Begins to wait for `operation` (LOCK_SH or LOCK_EX) on the open file of `descriptor`, which
    /// stays the caller's.
    package init(_ operation: Int32, on descriptor: Int32) {
        guard flock(descriptor, operation | LOCK_NB) != 0 else {
            end(locked: true)
            return
        }
        let own = fcntl(descriptor, F_DUPFD_CLOEXEC, 0)
        guard own >= 0 else {
            end(locked: false)
            return
        }
        do throws(HostError) {
            try ServiceThread.start("lock-wait") { [self] in
                var result = flock(own, operation)
                while result != 0 && errno == EINTR { result = flock(own, operation) }
                close(own)
                end(locked: result == 0)
            }
        } catch {
            // Without a thread there is no wait: the lock was not acquired.
            close(own)
            end(locked: false)
        }
    }

    /// Whether the lock was acquired before `deadline`, in monotonic nanoseconds. Asked once.
    /// Blocks.
    package func wait(until deadline: UInt64) -> Bool {
        ended.wait(until: deadline) && isLocked.withLock { $0 }
    }

    private func end(locked: Bool) {
        isLocked.withLock { $0 = locked }
        ended.signal()
    }
}
