internal import CLinux

/// How long calls of handlers hold their loop, in processor time of its thread: what others on the
/// machine take does not count. Measuring costs two system calls for each call of a handler, so it
/// is asked for (`LoopConfiguration.measuresHolds`).
package struct HoldMeter: Sendable {
    /// No call should hold a loop for longer.
    package static let limitNanoseconds: UInt64 = 1_000_000

    /// Calls measured.
    package private(set) var callCount: UInt64 = 0
    /// Of these, those above the limit.
    package private(set) var longCount: UInt64 = 0
    /// The longest of them.
    package private(set) var longestNanoseconds: UInt64 = 0

    /// Now, for `callEnded`.
    static var start: UInt64 { cl_thread_nanoseconds() }

    mutating func callEnded(since start: UInt64) {
        let duration = cl_thread_nanoseconds() - start
        callCount += 1
        if duration > Self.limitNanoseconds { longCount += 1 }
        longestNanoseconds = max(longestNanoseconds, duration)
    }
}
