package import BlockModel

// Filesystems around one cut.
//
//   freezing 0, 1, ... --all--> cutting --made or not--> thawing ..., 1, 0 --all--> finished
//        | a fault, limit                                   ^
//        +--------------------------------------------------+   (best effort: the next is frozen)
//
// Invariants
// - The cut is asked for when every freeze has been answered or given up, and only then.
// - Every filesystem that was frozen, and every one whose freeze was given up while it was under
//   way, is thawed exactly once, the last one first: however the cut ended, whatever failed.
// - A thaw that does not come back in time does not keep the others from being thawed.

/// How a filesystem fared.
package enum FreezeResult: Equatable, Sendable {
    /// Its freeze was never asked for.
    case notTried
    /// Its freeze failed.
    case failed(Fault)
    /// Its freeze was not back at the limit; it is thawed when it returns.
    case tooSlow
    /// It was frozen during the cut and is thawed.
    case thawed
    /// It was frozen during the cut, and its thaw failed or was not back at the limit.
    case notThawed(Fault)
    /// Somebody else thawed it before us: whether it was frozen at the cut is unknown.
    case thawedByOthers
}

/// How freezing went.
package struct FreezeOutcome: Sendable {
    /// By filesystem, in the order of the job.
    package var results: [FreezeResult]
    /// From the first freeze until the last thaw was back or given up.
    package var microseconds: UInt64
    /// A filesystem could not be frozen, so the cut was never asked for.
    package var isCalledOff: Bool

    /// Without arguments: nothing was to be frozen.
    package init(
        results: [FreezeResult] = [], microseconds: UInt64 = 0, isCalledOff: Bool = false
    ) {
        self.results = results
        self.microseconds = microseconds
        self.isCalledOff = isCalledOff
    }
}

/// Leads freezing and thawing around a cut. Lives on the thread that makes cuts; filesystems
/// answer from threads of their own.
package struct FreezeCoordinator {
    /// What has to be done next, in order.
    package enum Effect: Equatable, Sendable {
        /// Freeze it; answer `freezeEnded`.
        case freeze(Int)
        /// Make the cut; answer `cutEnded`.
        case cut
        /// Thaw it, as soon as its freeze is back; answer `thawEnded`.
        case thaw(Int)
        /// Over. `isCalledOff`: the cut was never asked for.
        case finished(isCalledOff: Bool)
    }

    private enum Phase: Equatable { case idle, freezing(Int), cutting, thawing(Int), finished }

    private let isBestEffort: Bool
    private let freezeLimitNanoseconds: UInt64
    private let thawLimitNanoseconds: UInt64
    private var phase = Phase.idle
    private var isCalledOff = false
    /// Frozen, or being frozen without anybody waiting for it: the thaw is still to be asked for.
    private var wantsThaw: [Bool]
    private var effects: [Effect] = []
    private var freezeDeadline: UInt64 = 0
    /// What became of each filesystem.
    package private(set) var results: [FreezeResult]
    /// When what is waited for has taken too long; nil when no limit runs.
    package private(set) var deadline: UInt64?

    /// `freezeLimitNanoseconds`: longest time from the first freeze until all are frozen;
    /// `thawLimitNanoseconds`: longest wait for a thaw before the next one is asked for.
    package init(
        count: Int, isBestEffort: Bool, freezeLimitNanoseconds: UInt64,
        thawLimitNanoseconds: UInt64
    ) {
        self.isBestEffort = isBestEffort
        self.freezeLimitNanoseconds = freezeLimitNanoseconds
        self.thawLimitNanoseconds = thawLimitNanoseconds
        results = Array(repeating: .notTried, count: count)
        wantsThaw = Array(repeating: false, count: count)
    }

    /// The next thing to do, or nil.
    package mutating func nextEffect() -> Effect? {
        effects.isEmpty ? nil : effects.removeFirst()
    }

    /// It is `now`, and the cut is wanted.
    package mutating func begin(now: UInt64) {
        precondition(phase == .idle, "a freeze begins once")
        freezeDeadline = now + freezeLimitNanoseconds
        freeze(from: 0)
    }

    /// The freeze of a filesystem has ended. Answers of freezes given up are ignored: their thaw
    /// has been asked for.
    package mutating func freezeEnded(_ index: Int, fault: Fault?, now: UInt64) {
        guard phase == .freezing(index) else { return }
        if let fault {
            results[index] = .failed(fault)
            fail(at: index, now: now)
        } else {
            wantsThaw[index] = true
            freeze(from: index + 1)
        }
    }

    /// The cut was made, or could not be.
    package mutating func cutEnded(now: UInt64) {
        precondition(phase == .cutting, "a cut ends once, after it was asked for")
        thaw(from: results.count - 1, now: now)
    }

    /// The thaw of a filesystem has ended. Answers after its limit are ignored.
    package mutating func thawEnded(_ index: Int, fault: Fault?, now: UInt64) {
        guard phase == .thawing(index) else { return }
        if let fault {
            // EINVAL: it is not frozen.
            settle(index, fault.errnoValue == 22 ? .thawedByOthers : .notThawed(fault))
        } else {
            settle(index, .thawed)
        }
        thaw(from: index - 1, now: now)
    }

    /// It is `now`: what takes too long is not waited for any more.
    package mutating func timeReached(_ now: UInt64) {
        guard let deadline, deadline <= now else { return }
        switch phase {
        case .freezing(let index):
            results[index] = .tooSlow
            wantsThaw[index] = true
            fail(at: index, now: now)
        case .thawing(let index):
            settle(index, .notThawed(Fault(errnoValue: 110)))
            thaw(from: index - 1, now: now)
        case .idle, .cutting, .finished: break
        }
    }

    /// A freeze that was given up stays `tooSlow`, whatever its thaw says.
    private mutating func settle(_ index: Int, _ result: FreezeResult) {
        if results[index] != .tooSlow { results[index] = result }
    }

    private mutating func fail(at index: Int, now: UInt64) {
        if isBestEffort {
            // Without time left nothing else is frozen: all share one limit.
            freeze(from: now < freezeDeadline ? index + 1 : results.count)
        } else {
            isCalledOff = true
            thaw(from: index, now: now)
        }
    }

    private mutating func freeze(from index: Int) {
        if index < results.count {
            phase = .freezing(index)
            deadline = freezeDeadline
            effects.append(.freeze(index))
        } else {
            phase = .cutting
            deadline = nil
            effects.append(.cut)
        }
    }

    private mutating func thaw(from last: Int, now: UInt64) {
        var index = last
        while index >= 0, !wantsThaw[index] { index -= 1 }
        guard index >= 0 else {
            phase = .finished
            deadline = nil
            effects.append(.finished(isCalledOff: isCalledOff))
            return
        }
        wantsThaw[index] = false
        effects.append(.thaw(index))
        if results[index] == .tooSlow {
            // It comes when its freeze returns; nobody waits for that.
            thaw(from: index - 1, now: now)
        } else {
            phase = .thawing(index)
            deadline = now + thawLimitNanoseconds
        }
    }
}
