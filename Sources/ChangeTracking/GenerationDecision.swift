package import BlockModel

// Whether the generation of a device continues when it is attached again. Everything that was
// found goes in, the decision comes out: no I/O, and nothing is believed that is not listed here.
//
//     saved map clean ──► same origin? ──► unchanged since? ──► continued from the saved map
//     saved map in use, or none
//         └─► running map of this boot ──► same origin? ──► as the guardian found it at the
//             service's death? ──► continued from the running map
//     everything else ──► a new generation, with the reason
//
// Invariants
// - A generation is continued only when every change since its beginning is in the map.
// - A clean saved map is newer than any running one: it is made unclean, durably, before the
//   first write is admitted.

/// What was found of something recorded.
package enum Finding<Value: Equatable & Sendable>: Equatable, Sendable {
    case absent
    case damaged(MapFileHeader.Damage)
    case found(Value)
}

/// All that the decision rests on.
package struct GenerationEvidence: Equatable, Sendable {
    package var name: ObjectName
    /// The origin as it is now, held against other users.
    package var origin: OriginRecord
    /// Of the machine as it runs now.
    package var bootID: UniqueID
    /// The operator's assurance that nobody else writes to the origin.
    package var isExclusive: Bool
    /// The header of the map in the state directory.
    package var saved: Finding<MapFileHeader>
    /// The header of the map in the runtime directory.
    package var running: Finding<MapFileHeader>
    /// What the guardian left in it.
    package var death: Finding<DeathRecord>
    /// Of a live device: what was found of its marks.
    package var live: LiveFinding?

    package init(
        name: ObjectName, origin: OriginRecord, bootID: UniqueID, isExclusive: Bool,
        saved: Finding<MapFileHeader>, running: Finding<MapFileHeader>,
        death: Finding<DeathRecord>, live: LiveFinding? = nil
    ) {
        self.name = name
        self.origin = origin
        self.bootID = bootID
        self.isExclusive = isExclusive
        self.saved = saved
        self.running = running
        self.death = death
        self.live = live
    }
}

/// What becomes of a device's generation.
package enum GenerationDecision: Equatable, Sendable {
    case continuedFromSaved(MapFileHeader)
    case continuedFromRunning(MapFileHeader)
    case new(NewGenerationReason)

    /// Decides.
    package init(_ evidence: GenerationEvidence) {
        if let finding = evidence.live {
            self = Self.judgeLive(evidence, finding)
            return
        }
        switch evidence.saved {
        case .found(let header) where header.state == .clean:
            self = Self.judgeSaved(header, evidence)
        case .found, .absent, .damaged: self = Self.judgeRunning(evidence)
        }
    }

    private static func judgeSaved(
        _ header: MapFileHeader, _ evidence: GenerationEvidence
    ) -> GenerationDecision {
        guard header.name == evidence.name else { return .new(.otherDevice(header.name)) }
        guard header.origin.liveToken == nil else { return .new(.liveBefore) }
        let isSameBoot = header.bootID == evidence.bootID
        guard isSame(header.origin, evidence, isSameBoot: isSameBoot) else {
            return .new(.otherOrigin)
        }
        if case .blockDevice = evidence.origin.identity, !isSameBoot {
            guard evidence.isExclusive else { return .new(.restartedBlockDevice) }
            // The counters were reset with the machine; the operator's assurance replaces them.
            return header.size == evidence.origin.state.size
                ? .continuedFromSaved(header)
                : .new(.resized(from: header.size, to: evidence.origin.state.size))
        }
        if let reason = change(of: header, since: header.origin.state, evidence) {
            return .new(reason)
        }
        return .continuedFromSaved(header)
    }

    private static func judgeRunning(_ evidence: GenerationEvidence) -> GenerationDecision {
        let header: MapFileHeader
        switch evidence.running {
        case .found(let found): header = found
        case .damaged(let damage): return .new(.runningDamaged(damage))
        case .absent:
            switch evidence.saved {
            case .absent: return .new(.firstAttach)
            case .damaged(let damage): return .new(.savedDamaged(damage))
            case .found: return .new(.notClean)
            }
        }
        guard header.bootID == evidence.bootID else { return .new(.restarted) }
        guard header.name == evidence.name else { return .new(.otherDevice(header.name)) }
        guard header.state == .running else { return .new(.lostBefore) }
        guard isSame(header.origin, evidence, isSameBoot: true) else { return .new(.otherOrigin) }
        let death: DeathRecord
        switch evidence.death {
        case .absent: return .new(.noDeathRecord)
        case .damaged(let damage): return .new(.deathRecordDamaged(damage))
        case .found(let found): death = found
        }
        guard death.instance == header.instance, death.bootID == evidence.bootID else {
            return .new(.noDeathRecord)
        }
        switch death.finding {
        case .failed(let reason): return .new(.deathNotRecorded(reason))
        case .origin(let record):
            guard isSame(record, evidence, isSameBoot: true) else { return .new(.otherOrigin) }
            if let reason = change(of: header, since: record.state, evidence) {
                return .new(reason)
            }
            return .continuedFromRunning(header)
        }
    }

    private static func isSame(
        _ recorded: OriginRecord, _ evidence: GenerationEvidence, isSameBoot: Bool
    ) -> Bool {
        switch (recorded.identity, evidence.origin.identity) {
        case (.file, .file): recorded.identity == evidence.origin.identity
        case (.file, .blockDevice), (.blockDevice, .file): false
        case (.blockDevice(let oldID, let oldSequence), .blockDevice(let id, let sequence)):
            // A disk that left and came back may have been written to elsewhere, and one without
            // a name of its own is not known again after a restart.
            isSameBoot ? oldID == id && oldSequence == sequence : oldID == id && !id.isEmpty
        }
    }

    /// What speaks against the map holding every change; nil when nothing does.
    private static func change(
        of header: MapFileHeader, since recorded: OriginState, _ evidence: GenerationEvidence
    ) -> NewGenerationReason? {
        let now = evidence.origin.state
        guard header.size == now.size else { return .resized(from: header.size, to: now.size) }
        switch (recorded, now) {
        case (.unknown, _), (_, .unknown): return evidence.isExclusive ? nil : .notCounted
        case (.file, .file), (.blockDevice, .blockDevice): break
        case (.file, .blockDevice), (.blockDevice, .file):
            preconditionFailure("an origin's state is of its kind, and the kind was compared")
        }
        return recorded == now ? nil : .changedOutside
    }
}
