package import BlockModel
package import ChangeTracking

/// How the generation of a device is kept.
package struct TrackingRequest: Sendable {
    package var name: ObjectName
    /// Where it lies while the device is not attached.
    package var stateDirectory: String
    /// Where it lies while the device is attached.
    package var runtimeDirectory: String
    package var bootID: UniqueID
    /// The operator's assurance that nobody else writes to the origin.
    package var isExclusive: Bool
    /// Has the guardian watch the origin; returns when it does, or when it cannot.
    package var watch: @Sendable (WatchedOrigin) async -> Void
    /// Called on the device's loop or any other thread: must not wait.
    package var notify: @Sendable (DeviceNotice) -> Void
    /// Called before files of the generation are written, and afterwards: nothing is written while
    /// filesystems are frozen.
    package var writing: @Sendable () async -> Void
    package var wrote: @Sendable () -> Void

    package init(
        name: ObjectName, stateDirectory: String, runtimeDirectory: String, bootID: UniqueID,
        isExclusive: Bool, watch: @escaping @Sendable (WatchedOrigin) async -> Void,
        notify: @escaping @Sendable (DeviceNotice) -> Void,
        writing: @escaping @Sendable () async -> Void, wrote: @escaping @Sendable () -> Void
    ) {
        self.name = name
        self.stateDirectory = stateDirectory
        self.runtimeDirectory = runtimeDirectory
        self.bootID = bootID
        self.isExclusive = isExclusive
        self.watch = watch
        self.notify = notify
        self.writing = writing
        self.wrote = wrote
    }
}

/// What the guardian records when the service dies.
package struct WatchedOrigin: Equatable, Sendable {
    package var name: ObjectName
    /// Absolute path of the origin.
    package var path: String
    package var isReadOnly: Bool
    /// The running map, into which it is recorded.
    package var mapPath: String
    /// Of the running map.
    package var instance: UniqueID

    package init(
        name: ObjectName, path: String, isReadOnly: Bool, mapPath: String, instance: UniqueID
    ) {
        self.name = name
        self.path = path
        self.isReadOnly = isReadOnly
        self.mapPath = mapPath
        self.instance = instance
    }
}

/// What happens to a device while it is attached.
package enum DeviceNotice: Sendable {
    /// What changes from now on is not known, until a cut begins a new generation.
    case trackingLost(NewGenerationReason)
    /// Changes are known again, from now on.
    case generationBegan(Generation, NewGenerationReason)
    /// A cut found the origin with another size.
    case resized(from: UInt64, to: UInt64)
    /// The origin is gone: its requests fail, and its snapshots are corrupted.
    case originGone(Fault)
    /// The map could not be saved at the end; why.
    case mapNotSaved(String)
}

/// What is known of the changes of a device before it was attached.
package struct GenerationStatus: Equatable, Sendable {
    package var isContinued: Bool
    /// Why, in a sentence without a full stop.
    package var reason: String

    static let unkept = GenerationStatus(isContinued: false, reason: "nobody asked to keep it")

    init(isContinued: Bool, reason: String) {
        self.isContinued = isContinued
        self.reason = reason
    }

    init(began reason: NewGenerationReason) {
        self.init(isContinued: false, reason: reason.sentence)
    }
}
