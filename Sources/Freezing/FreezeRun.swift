internal import BlockModel
internal import CLinux
package import FreezePlanning
internal import RingIO

// Performs what `FreezeCoordinator` decides, on the thread that makes cuts.

/// Filesystems to freeze around a cut: prepared, and nobody else's while the cut is made.
package struct FreezeJob: Sendable {
    let freezers: [FilesystemFreezer]
    let isBestEffort: Bool
    let freezeLimitNanoseconds: UInt64
    let thawLimitNanoseconds: UInt64

    /// `freezeLimitNanoseconds`: longest time until all are frozen; `thawLimitNanoseconds`: longest
    /// wait for one thaw.
    package init(
        _ freezers: [FilesystemFreezer], isBestEffort: Bool, freezeLimitNanoseconds: UInt64,
        thawLimitNanoseconds: UInt64
    ) {
        self.freezers = freezers
        self.isBestEffort = isBestEffort
        self.freezeLimitNanoseconds = freezeLimitNanoseconds
        self.thawLimitNanoseconds = thawLimitNanoseconds
    }

    /// Freezes the filesystems, calls `makeCut` once unless one that could not be frozen calls the
    /// cut off, and thaws what was frozen. Blocks; on the thread that makes cuts.
    package func perform(_ makeCut: () -> Void) -> FreezeOutcome {
        var run = FreezeRun(self)
        return run.perform(makeCut)
    }
}

/// One cut with its filesystems on their way.
struct FreezeRun {
    private enum Answer: Sendable {
        case frozen(Int, Int32)
        case thawed(Int, Int32)
    }

    private let job: FreezeJob
    private let answers = Answers<Answer>()
    private var coordinator: FreezeCoordinator

    init(_ job: FreezeJob) {
        self.job = job
        coordinator = FreezeCoordinator(
            count: job.freezers.count, isBestEffort: job.isBestEffort,
            freezeLimitNanoseconds: job.freezeLimitNanoseconds,
            thawLimitNanoseconds: job.thawLimitNanoseconds)
    }

    /// Freezes, calls `makeCut` unless freezing failed, and thaws.
    mutating func perform(_ makeCut: () -> Void) -> FreezeOutcome {
        let startedAt = cl_now_nanoseconds()
        coordinator.begin(now: startedAt)
        while true {
            while let effect = coordinator.nextEffect() {
                let answers = answers
                switch effect {
                case .freeze(let index):
                    job.freezers[index].freeze { answers.add(.frozen(index, $0)) }
                case .cut:
                    makeCut()
                    coordinator.cutEnded(now: cl_now_nanoseconds())
                case .thaw(let index):
                    job.freezers[index].thaw { answers.add(.thawed(index, $0)) }
                case .finished(let isCalledOff):
                    return FreezeOutcome(
                        results: coordinator.results,
                        microseconds: (cl_now_nanoseconds() - startedAt) / 1000,
                        isCalledOff: isCalledOff)
                }
            }
            wait()
        }
    }

    private mutating func wait() {
        let answer = answers.next(before: coordinator.deadline)
        let now = cl_now_nanoseconds()
        switch answer {
        case .frozen(let index, let failure):
            coordinator.freezeEnded(index, fault: Self.fault(failure), now: now)
        case .thawed(let index, let failure):
            coordinator.thawEnded(index, fault: Self.fault(failure), now: now)
        case nil: coordinator.timeReached(now)
        }
    }

    private static func fault(_ failure: Int32) -> Fault? {
        failure == 0 ? nil : Fault(errnoValue: failure)
    }
}
