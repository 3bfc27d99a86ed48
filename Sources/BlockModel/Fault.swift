/// Why a request failed: an errno value of Linux. Small, never allocates.
public struct Fault: Error, Hashable, Sendable, BitwiseCopyable {
    /// Positive errno value.
    package let errnoValue: Int32

    package init(errnoValue: Int32) {
        precondition(errnoValue > 0, "a fault carries a positive errno")
        self.errnoValue = errnoValue
    }

    /// EPERM: a write to something read-only.
    package static let notPermitted = Fault(errnoValue: 1)
    /// EIO: the medium failed, or an image is corrupted.
    package static let inputOutput = Fault(errnoValue: 5)
    /// ENXIO: the device is gone.
    package static let deviceGone = Fault(errnoValue: 6)
    /// EAGAIN: a no-wait request would have waited; nothing of it was done.
    package static let wouldBlock = Fault(errnoValue: 11)
    /// ENOMEM: a bound was reached.
    package static let noMemory = Fault(errnoValue: 12)
    /// EINVAL: the request makes no sense here.
    package static let invalid = Fault(errnoValue: 22)
    /// ENOSPC: no room, or a write beyond the end.
    package static let noSpace = Fault(errnoValue: 28)
    /// EOPNOTSUPP: the origin cannot do this (fast zeroing).
    package static let notSupported = Fault(errnoValue: 95)
    /// ESHUTDOWN: the service or the device is closing.
    package static let shutdown = Fault(errnoValue: 108)
}
