package import BlockModel

/// How the cuts of a service went.
package struct CutStatistics: Sendable {
    /// How long gates were closed, of cuts that were made.
    package private(set) var closed = DurationHistogram()
    /// How much of it was waiting for writes in flight.
    package private(set) var drained = DurationHistogram()
    /// Cuts that were called off with nothing changed.
    package private(set) var calledOffCount: UInt64 = 0

    package init() {}

    mutating func add(_ outcome: CutOutcome) {
        guard outcome.fault == nil, !outcome.isCalledOffByFreeze else {
            calledOffCount += 1
            return
        }
        closed.add(outcome.closedMicroseconds * 1000)
        drained.add(outcome.drainMicroseconds * 1000)
    }
}
