internal import CLinux
internal import Glibc

/// A counting semaphore of the C library, for threads of our own: nothing on the cooperative pool
/// may wait for one.
package final class Semaphore: @unchecked Sendable {
    // SAFETY: sem_t may be used from all threads at once; the pointer never changes.
    private let semaphore: UnsafeMutablePointer<sem_t>

    package init() {
        semaphore = .allocate(capacity: 1)
        sem_init(semaphore, 0, 0)
    }

    deinit {
        sem_destroy(semaphore)
        semaphore.deallocate()
    }

    package func signal() { sem_post(semaphore) }

    package func wait() { while sem_wait(semaphore) != 0 && errno == EINTR {} }

    /// Waits until `deadline`, in monotonic nanoseconds (nil: forever); false when it passed.
    package func wait(until deadline: UInt64?) -> Bool {
        guard let deadline else {
            wait()
            return true
        }
        return cl_wait_until(semaphore, deadline) == 0
    }
}
