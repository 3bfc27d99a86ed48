package import Host

/// Why a disk in use cannot be tracked.
package typealias LiveError = DescribedError<LiveFailure>

/// What kind of failure a `LiveError` is.
package enum LiveFailure: Sendable {
    /// It cannot be tracked as it is.
    case unsuitable
    /// The system refused.
    case failed
}
