internal import BlockModel

// Whether the generation of a live device continues: its marks are set by programs in the kernel,
// whether or not a service runs, so what counts is that they were never interrupted.
//
// Invariants
// - A set of marks has a token. It is another one after anything that could have lost a mark, and
//   is written down with the marks before a generation of it begins; a generation names the token
//   of its marks.
// - A restart of the machine ends a set of marks. A generation goes on over it only when nothing was
//   written between the save and the first mark of the new set: the device was at rest when the machine
//   went down, it was tracked before its first write when the machine came up, and the operator promises
//   that it was not used in between.

/// Why a mark may have been missed. Counted where it happened, in the kernel.
package enum LiveDoubt: Equatable, Sendable {
    /// Commands that pass the block layer by (SG_IO, `nvme write`).
    case passthrough(UInt64)
    case beyondEnd(UInt64)
    case discardChain(UInt64)
    /// More writes in flight than a mapped device may have.
    case flightsFull(UInt64)
    case flightTwice(UInt64)
    /// The kernel skipped a program where no other instance stood in for it.
    case skipped(UInt64)
    /// Somebody took the marks out of the programs' table, or the programs off their tracepoints.
    case detached
    /// The disk grew, and there was no memory for more marks.
    case notGrown
    /// What is behind the device's number is another disk now.
    case otherDisk

    /// The text for people, without a full stop.
    package var sentence: String {
        switch self {
        case .passthrough(let count):
            "\(count) command(s) were sent to the disk past the block layer (SG_IO or the like), and "
                + "what they wrote is not known"
        case .beyondEnd(let count):
            "\(count) write(s) beyond the size that is tracked were seen"
        case .discardChain(let count):
            "\(count) discard(s) of more parts than can be followed were seen"
        case .flightsFull(let count):
            "\(count) write(s) came while more were in flight than can be followed"
        case .flightTwice(let count):
            "\(count) write(s) were passed on in a way that hides their completion"
        case .skipped(let count):
            "the kernel skipped \(count) run(s) of the programs that mark writes"
        case .detached: "the programs that mark writes were detached, or their marks removed"
        case .notGrown: "the disk grew, and there was no memory for the marks of what grew"
        case .otherDisk: "the disk was taken away, and another one has its number"
        }
    }
}

/// What was found of a live device's marks when it was attached.
package enum LiveFinding: Equatable, Sendable {
    /// They were being set all the time.
    case kept
    /// None are pinned: tracking begins now.
    case absent
    /// The programs or their pins are damaged or gone.
    case programsGone
    case doubt(LiveDoubt)
}

extension GenerationDecision {
    /// Decides for a live device, whose marks were found in this state.
    static func judgeLive(
        _ evidence: GenerationEvidence, _ finding: LiveFinding
    ) -> GenerationDecision {
        let header: MapFileHeader
        let isSaved: Bool
        switch (evidence.saved, evidence.running) {
        case (.found(let found), _) where found.state == .clean: (header, isSaved) = (found, true)
        case (_, .found(let found)): (header, isSaved) = (found, false)
        case (_, .damaged(let damage)): return .new(.runningDamaged(damage))
        case (.absent, .absent): return .new(.firstAttach)
        case (.damaged(let damage), .absent): return .new(.savedDamaged(damage))
        case (.found(let found), .absent):
            return .new(
                found.bootID == evidence.bootID ? .notClean : .restartedLive(.notSaved))
        }
        guard header.name == evidence.name else { return .new(.otherDevice(header.name)) }
        guard isSaved || header.state == .running else { return .new(.lostBefore) }
        guard header.bootID == evidence.bootID else {
            return judgeRestarted(header, isSaved: isSaved, evidence)
        }
        guard let token = header.origin.liveToken else { return .new(.servedBefore) }
        guard case .blockDevice(_, let before) = header.origin.identity,
            case .blockDevice(_, let now) = evidence.origin.identity, before == now
        else { return .new(.otherOrigin) }
        guard token == evidence.origin.liveToken else { return .new(.marksInterrupted(finding)) }
        guard header.size == evidence.origin.state.size else {
            return .new(.resized(from: header.size, to: evidence.origin.state.size))
        }
        return isSaved ? .continuedFromSaved(header) : .continuedFromRunning(header)
    }

    /// Decides for a live device whose map is of another boot.
    private static func judgeRestarted(
        _ header: MapFileHeader, isSaved: Bool, _ evidence: GenerationEvidence
    ) -> GenerationDecision {
        guard isSaved else { return .new(.restartedLive(.notSaved)) }
        guard header.origin.liveToken != nil else { return .new(.servedBefore) }
        guard case .blockDevice(let before, _) = header.origin.identity,
            case .blockDevice(let now, _) = evidence.origin.identity, before == now
        else { return .new(.otherOrigin) }
        guard !now.isEmpty else { return .new(.restartedLive(.noName)) }
        guard evidence.isExclusive else { return .new(.restartedLive(.noPromise)) }
        guard let digestBefore = header.origin.restDigest else {
            return .new(.restartedLive(.inUseAtStop))
        }
        guard let digestNow = evidence.origin.restDigest else {
            return .new(.restartedLive(.inUseAtStart))
        }
        guard digestBefore == digestNow else { return .new(.changedOutside) }
        guard header.size == evidence.origin.state.size else {
            return .new(.resized(from: header.size, to: evidence.origin.state.size))
        }
        return .continuedFromSaved(header)
    }
}

/// Why the generation of a live device does not go on over a restart of the machine.
package enum LiveRestartDoubt: Equatable, Sendable {
    /// The service did not end cleanly before the machine went down.
    case notSaved
    /// The disk has no serial number or the like.
    case noName
    /// The operator did not promise that nothing else writes to it.
    case noPromise
    /// The device was not at rest when the service ended, or the machine went on.
    case inUseAtStop
    /// The device may have been written to before it was tracked again.
    case inUseAtStart

    /// The text for people, to follow "the machine was restarted since, and", without a full stop.
    var clause: String {
        switch self {
        case .notSaved: "the service did not end cleanly before"
        case .noName: "the disk has no serial number by which it could be known again"
        case .noPromise:
            "what was written before the device was attached again is not known (see --exclusive)"
        case .inUseAtStop:
            "the device was in use when the service ended, or the machine was not going down then; the "
                + "service must end after the device's filesystems are unmounted"
        case .inUseAtStart:
            "the device was written to before it was attached again, or the machine had come up by then; "
                + "the service must start before the device's filesystems are checked and mounted"
        }
    }
}

extension LiveFinding {
    /// What happened to marks that a generation cannot continue with, without a full stop.
    var sentence: String {
        switch self {
        case .kept: "its marks belong to another history"
        case .absent: "its writes were not tracked meanwhile: no marks of it are pinned"
        case .programsGone:
            "its writes were not tracked meanwhile: the programs that mark them were gone"
        case .doubt(let doubt): doubt.sentence
        }
    }
}
