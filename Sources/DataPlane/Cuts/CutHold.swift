internal import CLinux
internal import RingIO
internal import Synchronization

/// Keeps filesystems frozen after a cut until somebody has read what he needs, with a limit.
package final class CutHold: Sendable {
    private struct State {
        var outcome: CutOutcome?
        var waiter: CheckedContinuation<CutOutcome?, Never>?
        var isOver = false
        var wasReleased = false
        var heldNanoseconds: UInt64 = 0
        var refusal: (any Error)?
    }

    private let limitNanoseconds: UInt64
    private let released = Semaphore()
    private let state = Mutex(State())

    /// `limitNanoseconds`: longest time after the cut.
    package init(limitNanoseconds: UInt64) { self.limitNanoseconds = limitNanoseconds }

    /// The cut was made, or could not be: the waiter is informed. Returns when it is released or
    /// the limit has passed. On the thread that makes cuts.
    func made(_ outcome: CutOutcome) {
        let start = cl_now_nanoseconds()
        let waiter = state.withLock { state in
            state.outcome = outcome
            defer { state.waiter = nil }
            return state.waiter
        }
        waiter?.resume(returning: outcome)
        if outcome.fault == nil {
            let wasReleased = released.wait(until: start + limitNanoseconds)
            state.withLock { state in
                state.isOver = true
                state.wasReleased = wasReleased
                state.heldNanoseconds = cl_now_nanoseconds() - start
            }
        }
    }

    /// The cut, once it is made and held; nil when it never will be.
    package func cut() async -> CutOutcome? {
        await withCheckedContinuation { continuation in
            let outcome = state.withLock { state -> CutOutcome?? in
                if let outcome = state.outcome { return .some(outcome) }
                if state.isOver { return .some(nil) }
                state.waiter = continuation
                return nil
            }
            if let outcome { continuation.resume(returning: outcome) }
        }
    }

    /// The cut is not made: the waiter is informed.
    package func calledOff() {
        let waiter = state.withLock { state in
            state.isOver = true
            defer { state.waiter = nil }
            return state.waiter
        }
        waiter?.resume(returning: nil)
    }

    /// Lets the filesystems go. `refusal`: why the cut is not to be remembered.
    package func release(refusal: (any Error)? = nil) {
        state.withLock { $0.refusal = refusal }
        released.signal()
    }

    /// Why it is not to be remembered, although it was released.
    package var refusal: (any Error)? { state.withLock { $0.refusal } }
    /// It was released, its limit has passed, or it never was held.
    package var isOver: Bool { state.withLock { $0.isOver } }

    /// Whether all was read before the limit passed, and how long the cut was held.
    package var wasReleasedInTime: Bool { state.withLock { $0.wasReleased } }
    package var heldNanoseconds: UInt64 { state.withLock { $0.heldNanoseconds } }
}
