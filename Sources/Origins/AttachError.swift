package import Host
package import RingIO

/// Why an origin could not be attached.
package typealias AttachError = DescribedError<AttachFailure>

/// What kind of failure an `AttachError` is.
package enum AttachFailure: Sendable {
    /// The origin does not exist.
    case notFound
    /// Somebody else uses it, or it is in use here.
    case busy
    /// It can never be attached like this.
    case unsuitable
    /// The system refused.
    case failed
}

extension AttachError {
    /// `what` did not answer in time.
    package static func late(_ what: String, _ limitNanoseconds: UInt64) -> AttachError {
        AttachError(
            .failed,
            "\(what) did not answer within \(limitNanoseconds / 1_000_000_000) s; see whether its "
                + "disk or filesystem hangs, and try again")
    }
}

extension BlockingPool {
    /// Longest time to wait for what a path names, nanoseconds: twice as long as an origin is
    /// waited for that a service which ended still holds.
    package static let pathNanosecondsMax: UInt64 = 60_000_000_000

    /// Runs `body` about something that a user named, whose filesystem or disk may hang: waits at
    /// most so long for it. `whenLate` closes what `body` opens too late. `what` names it in
    /// errors.
    package func runOnPath<Value: Sendable>(
        _ lane: BlockingLane, _ what: String,
        limitNanoseconds: UInt64 = BlockingPool.pathNanosecondsMax,
        whenLate: @escaping @Sendable (Value) -> Void = { _ in },
        _ body: @escaping @Sendable () throws(AttachError) -> Value
    ) async throws(AttachError) -> Value {
        let outcome = await run(
            lane, limitNanoseconds: limitNanoseconds,
            whenLate: { (outcome: Result<Value, AttachError>) in
                if case .success(let value) = outcome { whenLate(value) }
            },
            { () -> Result<Value, AttachError> in
                do throws(AttachError) {
                    return .success(try body())
                } catch { return .failure(error) }
            })
        switch outcome {
        case .done(let result): return try result.get()
        case .late: throw AttachError.late(what, limitNanoseconds)
        case .refused:
            throw AttachError(
                .busy, "\(what): too many operations wait for paths that do not answer; try again")
        }
    }
}
