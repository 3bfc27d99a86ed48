// How a copy of devices in use comes to equal them at one moment: in passes, the last one while
// their filesystems are frozen. No I/O, no clock.
//
//   cut 0 -> first copy -> | cut n -> find -> copy -> record -> forget cut n-1 | -> ...
//     -> freeze -> read what is left -> release -> write it -> complete -> forget all
//
// When passes do not get shorter and a freeze would be too long, writers can be slowed down, until the
// freeze begins: what is dirty in memory is written back by the freeze, at full speed.
//
// Invariants
// - What is found is what changed since the cut before, and is asked for after the new cut: what is
//   written from then on is found by the next pass, or by the last one.
// - A cut is forgotten only when every record names a later one, or none; a record names a cut only
//   when all that changed before it is on the target's disk.
// - Everything that is left is read between freeze and release. The service refuses the release
//   when somebody wrote meanwhile.
// - Passes and freezes have a bound each.

/// Decides how a copy of devices in use continues; see the head of this file.
package struct LiveCopyMachine: Sendable {
    /// What is to be done next. The performer reports the end by the corresponding event.
    package enum Effect: Equatable, Sendable {
        /// Make a cut without freezing, filesystems written back before.
        case cut
        /// Copy all, or what changed since the base.
        case copyFirst
        /// Ask what changed since the cut before the newest, read it and write it to the targets.
        case copyChanges
        /// Bring the targets to their disks, and record that they lack only what changed since the
        /// newest cut.
        case record
        /// Delete the cuts before the newest.
        case forgetFormer
        /// Limit how fast the devices are written to.
        case limitWriters
        /// Lift that limit.
        case liftLimit
        /// Make the last cut, and hold it frozen so long.
        case freeze(holdMilliseconds: UInt64)
        /// Ask what changed since the newest unfrozen cut, and read it into memory.
        case readFrozen
        /// Thaw; the checkpoint is remembered then.
        case release
        /// Write what was read to the targets.
        case writeHeld
        /// Bring the targets to their disks, and record that they equal the last cut.
        case complete
        /// The copy is made. Nobody needs the unfrozen cuts any longer.
        case finished
        /// The copy cannot be made now.
        case giveUp(LiveCopyObstacle)
    }

    /// How a freeze went.
    package enum HoldOutcome: Equatable, Sendable {
        /// The last cut is remembered.
        case kept
        /// It took longer than the limit, so it was thawed.
        case tooSlow
        /// Live devices were written to beside their filesystems while these were frozen.
        case writtenBeside(String)
    }

    /// What may be asked of freezes and passes.
    package struct Limits: Equatable, Sendable {
        package static let freezeSecondsRange = 0.02...15.0

        /// The expected freeze must be shorter.
        package var freezeSeconds = 1.0
        /// Most passes after the first copy, those after a freeze that failed not counted.
        package var passCountMax = 10
        /// Most freezes.
        package var freezeCountMax = 3
        /// Writers may be slowed down. The copy has `passCountMax` passes more then.
        package var mayLimitWriters = false

        package init(freezeSeconds: Double = 1) { self.freezeSeconds = freezeSeconds }
    }

    /// A pass that has ended.
    package struct Pass: Equatable, Sendable {
        /// Bytes that had changed.
        package var byteCount: UInt64
        /// From the cut before to this pass's own.
        package var secondsSinceFormer: Double
        /// From its cut until the targets had all of it.
        package var seconds: Double
        /// For asking what had changed.
        package var askSeconds: Double
        /// For reading it.
        package var readSeconds: Double

        package init(
            byteCount: UInt64, secondsSinceFormer: Double, seconds: Double, askSeconds: Double,
            readSeconds: Double
        ) {
            self.byteCount = byteCount
            self.secondsSinceFormer = secondsSinceFormer
            self.seconds = seconds
            self.askSeconds = askSeconds
            self.readSeconds = readSeconds
        }
    }

    /// What a freeze itself takes, in seconds: 20 to 55 ms were measured under any load.
    private static let freezeCallSeconds = 0.055
    /// Fewer bytes than these are not worth another pass.
    private static let littleByteCount: UInt64 = 1 << 20
    /// From this length on a reading tells how fast the disk is.
    private static let telltaleByteCount: UInt64 = 1 << 20
    /// Bytes a second that are expected of a disk that told nothing yet.
    private static let readRateStandard = 50.0 * 1_048_576

    private enum Phase: Equatable {
        case idle, firstCut, firstCopy
        case cut, copying, recording, forgetting
        case limiting, lifting
        case freezing, readingFrozen, releasing
        case writing, completing, over
    }

    private let limits: Limits
    private var phase = Phase.idle
    /// Passes after the first copy.
    package private(set) var passCount = 0
    package private(set) var freezeCount = 0
    /// What the next freeze is expected to take.
    package private(set) var estimate: LiveCopyEstimate?
    private var former: Pass?
    private var latest: Pass?
    private var readRate: Double?
    private var slowPassCount = 0
    private var mustPass = false
    private var passCountMax: Int
    /// The copy needs slower writers: they are slowed down for every pass from then on.
    private var needsLimit = false

    package init(_ limits: Limits) {
        self.limits = limits
        passCountMax = limits.passCountMax
    }

    // MARK: Events

    /// Begins. `isResumed`: every target continues from a cut that its record names, so none is
    /// made.
    package mutating func begun(isResumed: Bool) -> Effect {
        expect(.idle)
        return enter(isResumed ? .firstCopy : .firstCut, isResumed ? .copyFirst : .cut)
    }

    /// A cut was made.
    package mutating func cutMade() -> Effect {
        if phase == .firstCut { return enter(.firstCopy, .copyFirst) }
        expect(.cut)
        passCount += 1
        return enter(.copying, .copyChanges)
    }

    /// All, or what changed since the base, is in the targets: so many bytes in so many seconds.
    package mutating func firstCopied(byteCount: UInt64, seconds: Double) -> Effect {
        expect(.firstCopy)
        learn(byteCount, seconds)
        // What changed meanwhile is not known, nor how fast it changes.
        return enter(.cut, .cut)
    }

    /// What had changed is in the targets.
    package mutating func changesCopied(_ pass: Pass) -> Effect {
        expect(.copying)
        learn(pass.byteCount, pass.readSeconds)
        former = latest
        latest = pass
        if let former {
            slowPassCount = pass.byteCount > former.byteCount / 2 ? slowPassCount + 1 : 0
        }
        estimate = expectation(after: pass)
        return enter(.recording, .record)
    }

    /// Records name the newest cut.
    package mutating func recorded() -> Effect {
        expect(.recording)
        return enter(.forgetting, .forgetFormer)
    }

    /// Only the newest cut is left.
    package mutating func formerForgotten() -> Effect {
        expect(.forgetting)
        guard let estimate else { preconditionFailure("a pass gives an expectation") }
        let isLittle = estimate.byteCount <= Self.littleByteCount
        // Two passes that did not shrink by half: more of them will not help.
        let isSettled = isLittle || slowPassCount >= 2 || passCount >= passCountMax
        if isSettled || mustPass, estimate.seconds <= limits.freezeSeconds {
            mustPass = false
            return needsLimit ? enter(.lifting, .liftLimit) : freeze()
        }
        if limits.mayLimitWriters, !needsLimit, slowPassCount >= 2 || passCount >= passCountMax {
            needsLimit = true
            slowPassCount = 0
            passCountMax = passCount + limits.passCountMax
            return enter(.limiting, .limitWriters)
        }
        guard passCount < passCountMax else {
            return enter(.over, .giveUp(.tooLong(estimate, passCount: passCount)))
        }
        return enter(.cut, .cut)
    }

    /// Writers are slow from now on.
    package mutating func writersLimited() -> Effect {
        expect(.limiting)
        return enter(.cut, .cut)
    }

    /// Writers are as fast as they can be again.
    package mutating func limitLifted() -> Effect {
        expect(.lifting)
        return freeze()
    }

    private mutating func freeze() -> Effect {
        freezeCount += 1
        return enter(.freezing, .freeze(holdMilliseconds: holdMilliseconds))
    }

    /// The last cut is made and held.
    package mutating func frozen() -> Effect {
        expect(.freezing)
        return enter(.readingFrozen, .readFrozen)
    }

    /// What was left is in memory.
    package mutating func frozenRead() -> Effect {
        expect(.readingFrozen)
        return enter(.releasing, .release)
    }

    /// A freeze has ended: at its release, or before.
    package mutating func holdEnded(_ outcome: HoldOutcome) -> Effect {
        switch outcome {
        case .kept:
            expect(.releasing)
            return enter(.writing, .writeHeld)
        case .tooSlow, .writtenBeside:
            precondition(
                phase == .releasing || phase == .readingFrozen || phase == .freezing,
                "a hold ends while it is one")
            guard freezeCount < limits.freezeCountMax else {
                return enter(.over, .giveUp(.notHeld(outcome, freezeCount: freezeCount)))
            }
            mustPass = true
            return needsLimit ? enter(.limiting, .limitWriters) : enter(.cut, .cut)
        }
    }

    /// What was read while everything was frozen is in the targets.
    package mutating func heldWritten() -> Effect {
        expect(.writing)
        return enter(.completing, .complete)
    }

    /// Records say that the targets equal the last cut.
    package mutating func completed() -> Effect {
        expect(.completing)
        return enter(.over, .finished)
    }

    // MARK: Helpers

    private func expect(_ expected: Phase) {
        precondition(phase == expected, "an event of \(expected) came in \(phase)")
    }

    private mutating func enter(_ next: Phase, _ effect: Effect) -> Effect {
        phase = next
        return effect
    }

    private mutating func learn(_ byteCount: UInt64, _ seconds: Double) {
        guard byteCount >= Self.telltaleByteCount else { return }
        readRate = Double(byteCount) / max(seconds, 0.001)
    }

    /// Filesystems are thawed after this time, whatever happens: an expectation may be wrong by
    /// half.
    private var holdMilliseconds: UInt64 {
        UInt64(min(30, max(0.2, limits.freezeSeconds * 2)) * 1000)
    }

    /// As much is left as gets dirty in the time that the pass before took.
    private func expectation(after pass: Pass) -> LiveCopyEstimate {
        let bytesPerSecond = Double(pass.byteCount) / max(pass.secondsSinceFormer, 0.001)
        let left = bytesPerSecond * (pass.seconds + Self.freezeCallSeconds)
        let seconds =
            Self.freezeCallSeconds + pass.askSeconds
            + left / (readRate ?? Self.readRateStandard)
        return LiveCopyEstimate(byteCount: UInt64(min(left, 1e18)), seconds: seconds)
    }
}

/// What a freeze is expected to come to.
package struct LiveCopyEstimate: Equatable, Sendable {
    /// Bytes to be read while filesystems are frozen.
    package var byteCount: UInt64
    package var seconds: Double

    package init(byteCount: UInt64, seconds: Double) {
        self.byteCount = byteCount
        self.seconds = seconds
    }
}

/// Why a copy of devices in use cannot be made now.
package enum LiveCopyObstacle: Equatable, Sendable {
    /// The freeze would be longer than the limit, after so many passes.
    case tooLong(LiveCopyEstimate, passCount: Int)
    /// Every freeze ended like this.
    case notHeld(LiveCopyMachine.HoldOutcome, freezeCount: Int)
}
