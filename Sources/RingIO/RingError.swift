internal import CLinux

/// Why a loop could not be set up.
package struct RingError: Error, CustomStringConvertible {
    /// The call that failed.
    package enum Operation: String, Sendable {
        case openRing = "io_uring_setup"
        case registerBuffers = "io_uring_register"
        case mapBuffers = "mmap"
        case openEvent = "eventfd"
        case startThread = "pthread_create"
        case startProcess = "posix_spawn"
    }

    package let operation: Operation
    /// Positive errno value.
    package let errnoValue: Int32

    package init(operation: Operation, errnoValue: Int32) {
        self.operation = operation
        self.errnoValue = errnoValue
    }

    package var description: String {
        let reason = String(cString: strerror(errnoValue))
        let advice =
            switch (operation, errnoValue) {
            case (.openRing, EPERM):
                "io_uring is forbidden here: set kernel.io_uring_disabled to 0, or allow "
                    + "io_uring_setup in the container's seccomp profile"
            case (.openRing, ENOSYS), (.openRing, EINVAL), (.registerBuffers, EINVAL):
                "this kernel's io_uring is too old: Linux 5.19 or later is needed"
            case (.openRing, ENOMEM), (.registerBuffers, ENOMEM):
                "raise the limit of locked memory (ulimit -l)"
            default: "free some memory or descriptors and try again"
            }
        return "\(operation.rawValue): \(reason); \(advice)"
    }
}
