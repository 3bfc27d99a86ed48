internal import BlockModel
internal import ControlDocuments
internal import CopyOnWrite
internal import DataPlane
internal import FoundationEssentials
internal import Quiescing
internal import ServiceState
internal import Storage
internal import Synchronization

/// A snapshot in the registry. Belongs to the registry's actor.
final class HeldSnapshot {
    /// Where it is between its making and its end.
    enum Phase {
        /// Its devices are being prepared.
        case making
        case prepared
        /// The cut was made.
        case held
        case ending
    }

    let label: SnapshotLabel
    let createdAt = Date()
    let policy: OverflowPolicy
    let take: TakeOptions
    /// Its number in the loops' pools of buffers, that no other snapshot has.
    let account: UInt16
    var phase = Phase.making
    var parts: [Part] = []
    let storages = HeldStorage()
    /// Sources of newer snapshots that are destroyed: what they preserved may be this one's too.
    var inherited: [StorageSource] = []
    /// Remarks about its storage for the client.
    var warnings: [String] = []
    var takenAt: Date?
    var outcome: CutOutcome?
    var freeze = FreezeSummary()
    /// An operation on it is under way.
    var isBusy = true
    /// Those who wait for that operation's end.
    var waiters: [CheckedContinuation<Void, Never>] = []

    init(label: SnapshotLabel, policy: OverflowPolicy, take: TakeOptions, account: UInt16) {
        self.label = label
        self.policy = policy
        self.take = take
        self.account = account
    }

    /// The operation under way has ended.
    func operationEnded() {
        isBusy = false
        let waiting = waiters
        waiters = []
        for waiter in waiting { waiter.resume() }
    }

    /// Takes over the sources that a newer snapshot leaves, if data may still be in them.
    func inherit(_ sources: [StorageSource]) {
        inherited = inherited.filter(\.isInUse)
        for source in sources where !inherited.contains(where: { $0 === source }) {
            inherited.append(source)
        }
    }

    /// One device's part.
    struct Part {
        let name: ObjectName
        let device: AttachedDevice
        let snapshot: DeviceSnapshot
        let loss: LossRecord
        /// Names of its exports; empty unless they are published.
        var exports: [String] = []
    }

    /// `prepared`, `held`, `corrupted` or `destroyed`.
    var state: String {
        switch phase {
        case .making, .prepared: "prepared"
        case .ending: "destroyed"
        case .held: parts.contains { $0.loss.loss != nil } ? "corrupted" : "held"
        }
    }

    /// As it is now. Runs on the registry's actor.
    nonisolated(nonsending) func document() async -> SnapshotDocument {
        var devices: [SnapshotDocument.Device] = []
        for (index, part) in parts.enumerated() {
            let report = await part.snapshot.report()
            let loss = part.loss.loss
            devices.append(
                SnapshotDocument.Device(
                    device: part.name.text,
                    generation: outcome?.generations[index].description,
                    epoch: outcome?.epochs[index].rawValue,
                    size: outcome?.sizes[index] ?? part.device.facts.size,
                    image: part.exports.first, error: loss?.reason,
                    corruptedAt: loss?.time, copiedBytes: report?.copiedBytes ?? 0,
                    storedBytes: (report?.storedBlocks ?? 0) * blockByteCount,
                    unstoredBytes: (report?.unstoredBlocks ?? 0) * blockByteCount,
                    zeroBlocks: report?.zeroBlocks ?? 0))
        }
        let sources = storages.all.flatMap(\.sources).map(SnapshotDocument.Source.init)
        let limit = Self.sum(sources.map(\.limit))
        let storedBytes = devices.reduce(0) { $0 + $1.storedBytes }
        return SnapshotDocument(
            id: label.id.description, name: label.name?.text, state: state, createdAt: createdAt,
            takenAt: takenAt, cutMicroseconds: outcome?.closedMicroseconds,
            drainMicroseconds: outcome?.drainMicroseconds, frozen: freeze.frozen,
            freezeErrors: freeze.errors,
            consistency: freeze.isFilesystemConsistent ? "filesystem" : "crash",
            onOverflow: policy.text, devices: devices,
            storage: SnapshotDocument.Storage(
                used: sources.reduce(0) { $0 + $1.used },
                capacity: sources.reduce(0) { $0 + $1.capacity },
                limit: limit, available: Self.sum(sources.map(\.available)),
                storedBytes: storedBytes,
                zeroBlocks: devices.reduce(0) { $0 + $1.zeroBlocks },
                estimatedSecondsToFull: takenAt.flatMap {
                    Self.secondsToFull(storedBytes, of: limit, since: $0)
                }, sources: sources,
                inherited: inherited.filter(\.isInUse).map(SnapshotDocument.Source.init)),
            warnings: warnings)
    }

    /// When `limit` bytes are full if as much is stored in a second as since the cut; nil while
    /// nothing is stored.
    static func secondsToFull(
        _ storedBytes: UInt64, of limit: UInt64, since cut: Date, now: Date = Date()
    ) -> Double? {
        let elapsed = now.timeIntervalSince(cut)
        guard storedBytes > 0, elapsed > 0 else { return nil }
        let left = Double(limit - min(limit, storedBytes))
        return (left * elapsed / Double(storedBytes)).rounded()
    }

    /// Limits may be as large as numbers go in JSON.
    private static func sum(_ values: [UInt64]) -> UInt64 {
        values.reduce(0) { sum, value in min(sum + min(value, most), most) }
    }

    private static let most = UInt64(Int64.max)
}

extension SnapshotDocument.Source {
    init(_ source: StorageSource) {
        let report = source.report
        self.init(
            name: report.name, used: report.granted, capacity: report.capacity,
            limit: report.limit, available: report.available)
    }
}

/// When and why an image lost data; written on the device's loop, once.
final class LossRecord: Sendable {
    struct Loss: Sendable {
        let fault: Fault
        let reason: String
        let time: Date
    }

    private let state = Mutex<Loss?>(nil)

    /// The first loss.
    var loss: Loss? { state.withLock { $0 } }

    /// The image lost data.
    func lost(_ fault: Fault, _ reason: String) {
        state.withLock { $0 = $0 ?? Loss(fault: fault, reason: reason, time: Date()) }
    }
}

/// The storage of a snapshot, in the order in which it was added; read on loops too, where images
/// are given up.
final class HeldStorage: Sendable {
    private let state = Mutex<[SnapshotStorage]>([])

    /// All that was added.
    var all: [SnapshotStorage] { state.withLock { $0 } }

    /// There is more.
    func add(_ storage: SnapshotStorage) { state.withLock { $0.append(storage) } }
}
