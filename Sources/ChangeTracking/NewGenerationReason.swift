package import BlockModel

/// Why a device began a new generation.
package enum NewGenerationReason: Equatable, Sendable {
    case firstAttach
    case savedDamaged(MapFileHeader.Damage)
    case runningDamaged(MapFileHeader.Damage)
    case otherDevice(ObjectName)
    case otherOrigin
    case resized(from: UInt64, to: UInt64)
    case changedOutside
    case notCounted
    /// The machine was restarted while the service ran.
    case restarted
    /// The machine was restarted while the block device was not attached.
    case restartedBlockDevice
    case notClean
    case noDeathRecord
    case deathRecordDamaged(MapFileHeader.Damage)
    case deathNotRecorded(String)
    /// Tracking was lost in the run before.
    case lostBefore
    /// A page of the map could not be allocated: an errno value.
    case mapMemoryShort(Int32)
    /// An entry of the map in use was found that cannot be.
    case mapDamaged
    case epochsUsedUp
    case shrunk(from: UInt64, to: UInt64)
    /// A live device was served before, or a served one live.
    case servedBefore
    case liveBefore
    /// The machine was restarted: a live device's marks are in the kernel's memory.
    case restartedLive(LiveRestartDoubt)
    /// A live device's marks are not those that its generation continued with.
    case marksInterrupted(LiveFinding)
    /// A mark of a live device may have been missed.
    case doubted(LiveDoubt)

    /// The text for people, without a full stop.
    package var sentence: String {
        switch self {
        case .firstAttach: "attached for the first time: nothing is known of changes before"
        case .savedDamaged(let damage): "the saved change map \(damage.predicate)"
        case .runningDamaged(let damage):
            "the service was killed, and the change map it left \(damage.predicate)"
        case .otherDevice(let name): "the change map found belongs to device \(name)"
        case .otherOrigin:
            "the origin is another file or disk than the one that was tracked under this name"
        case .resized(let old, let new):
            "the origin had \(old) bytes when it was last tracked and has \(new) now"
        case .changedOutside: "the origin was written to or changed while it was not attached"
        case .notCounted:
            "the kernel does not count the writes of this origin, so others would go unnoticed"
        case .restarted: "the machine was restarted or crashed while the device was attached"
        case .restartedBlockDevice:
            "the machine was restarted since, and somebody else may have written to the block device; "
                + "with --exclusive you promise that nobody else does"
        case .notClean:
            "the service did not end cleanly or could not save the change map, and the one in the "
                + "runtime directory is gone"
        case .noDeathRecord:
            "the service was killed, and no guardian recorded the origin at its death"
        case .deathRecordDamaged(let damage):
            "the service was killed, and what the guardian recorded \(damage.predicate)"
        case .deathNotRecorded(let reason):
            "the service was killed, and the guardian could not record the origin: \(reason)"
        case .lostBefore: "tracking was lost before the service ended"
        case .mapMemoryShort(let reason):
            "the runtime directory had no room for the change map (errno \(reason))"
        case .mapDamaged: "the change map was found damaged"
        case .epochsUsedUp: "the epochs of the generation before were used up"
        case .shrunk(let old, let new): "the origin was shrunk from \(old) to \(new) bytes"
        case .servedBefore: "the device was served before, and is tracked in use now"
        case .liveBefore: "the device was tracked in use before, and is served now"
        case .restartedLive(let doubt): "the machine was restarted since, and \(doubt.clause)"
        case .marksInterrupted(let finding): finding.sentence
        case .doubted(let doubt): doubt.sentence
        }
    }
}

extension MapFileHeader.Damage {
    /// What is the matter, to follow the name of what was read.
    package var predicate: String {
        switch self {
        case .truncated: "is cut short"
        case .foreign: "is not a change map"
        case .unknownVersion(let version):
            "has version \(version), which this program does not know"
        case .checksum: "is damaged: a checksum is wrong"
        case .impossible: "is damaged: it has an impossible value"
        case .unreadable(let reason): "cannot be read (errno \(reason))"
        }
    }
}
