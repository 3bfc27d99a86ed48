package import BlockModel
package import ControlDocuments
internal import DataPlane
package import DeviceManagement
internal import ExportNBD
internal import FoundationEssentials
internal import Glibc
internal import Host
package import Logging
internal import Origins
package import Quiescing
package import RingIO
package import ServiceState

// The snapshots of the service: create, take, append storage, destroy.
//
// Invariants
// - A snapshot holds its devices in the device registry from before they are prepared until its
//   last part is gone, so none of them is detached in between.
// - One operation at a time on a snapshot (`isBusy`); destroying waits for it, others are refused.
// - A name, an account and an id belong to one snapshot from its making to its end; no checkpoint
//   but its own has the name then.
// - Exports are published after the cut, all of them, and withdrawn before anything is destroyed.
// - A creation that fails leaves no part, no storage, no export and no hold.

/// The snapshots of the service; see the head of this file.
package actor SnapshotRegistry {
    /// Most snapshots: the accounts of the loops' buffer pools.
    package static let capacity = 1023

    let devices: DeviceRegistry
    private let checkpoints: CheckpointRegistry
    let blocking: BlockingPool
    private let exports: ExportTable
    let events: EventLog
    let freezing: FilesystemFreezing
    private let hooks: HookRunner
    /// Directories of the service, and what they are called: no filesystem of theirs is frozen.
    let ownDirectories: [(what: String, path: String)]
    /// Where storage lies when none was asked for.
    let defaultStorage: String
    let logger: Logger
    private(set) var entries: [UniqueID: HeldSnapshot] = [:]
    private var isStopping = false

    package init(
        devices: DeviceRegistry, checkpoints: CheckpointRegistry, blocking: BlockingPool,
        exports: ExportTable, events: EventLog, freezing: FilesystemFreezing, hooks: HookRunner,
        ownDirectories: [(what: String, path: String)], defaultStorage: String, logger: Logger
    ) {
        self.devices = devices
        self.checkpoints = checkpoints
        self.blocking = blocking
        self.exports = exports
        self.events = events
        self.freezing = freezing
        self.hooks = hooks
        self.ownDirectories = ownDirectories
        self.defaultStorage = defaultStorage
        self.logger = logger
    }

    // -- create and take

    /// Makes a snapshot and takes it, unless it is only to be prepared. All or nothing.
    package func create(_ request: SnapshotRequest) async throws -> SnapshotDocument {
        let entry = try enter(request)
        do {
            try await hooks.check(request.take.hooks)
            try await prepare(entry, request)
            if !request.preparesOnly { try await takeWithHooks(entry) }
        } catch {
            await tearDown(entry)
            left(entry)
            events.abandoned(entry.label)
            entry.operationEnded()
            throw error
        }
        let document = await entry.document()
        entry.operationEnded()
        return document
    }

    /// Makes the cut of a prepared snapshot. When writers would have had to wait too long it
    /// stays prepared.
    package func take(_ text: String) async throws -> SnapshotDocument {
        let entry = try begin(text)
        guard entry.phase == .prepared else {
            entry.operationEnded()
            throw ControlError(.busy, "snapshot \(entry.label) was taken already")
        }
        do {
            try await takeWithHooks(entry)
        } catch {
            if entry.phase == .prepared { entry.operationEnded() } else { _ = await end(entry) }
            throw error
        }
        let document = await entry.document()
        entry.operationEnded()
        return document
    }

    /// Reserves what the snapshot will be called.
    private func enter(_ request: SnapshotRequest) throws(ControlError) -> HeldSnapshot {
        guard !isStopping else { throw ControlError.stopping }
        let taken = Set(entries.values.map(\.account))
        guard let account = (0..<UInt16(Self.capacity)).first(where: { !taken.contains($0) }) else {
            throw ControlError(
                .limitReached,
                "\(Self.capacity) snapshots exist, the most that the service allows; destroy one")
        }
        if let name = request.name {
            try checkpoints.store.checkRoom(forParts: request.devices.count)
            try checkpoints.store.names.reserve(name, for: .snapshot)
        }
        let entry = HeldSnapshot(
            label: SnapshotLabel(id: .random(), name: request.name), policy: request.policy,
            take: request.take, account: account)
        entries[entry.label.id] = entry
        events.began(entry.label)
        return entry
    }

    /// The snapshot is gone, and its name free unless a checkpoint has it.
    private func left(_ entry: HeldSnapshot) {
        entries[entry.label.id] = nil
        if let name = entry.label.name {
            checkpoints.store.names.release(name, of: .snapshot)
        }
    }

    /// Does everything that can fail: storage, and a part on each device.
    private func prepare(_ entry: HeldSnapshot, _ request: SnapshotRequest) async throws {
        let held = try await devices.hold(request.devices, by: entry.label)
        let storage = try await open(request.storage, for: held.map(\.device), of: entry)
        // From here on only the devices keep it open.
        defer { storage.release() }
        entry.storages.add(storage)
        for (name, device) in held {
            let loss = LossRecord()
            do throws(AttachError) {
                let snapshot = try await DeviceSnapshot.prepare(
                    device, policy: request.policy, account: entry.account, storage: storage,
                    notify: notices(of: entry, device: name, loss))
                entry.parts.append(
                    HeldSnapshot.Part(name: name, device: device, snapshot: snapshot, loss: loss))
            } catch { throw ControlError(error) }
        }
        entry.phase = .prepared
    }

    /// The cut between its hooks. `post` runs whenever the take got as far as its hooks.
    private func takeWithHooks(_ entry: HeldSnapshot) async throws {
        // What will be refused is refused before a hook stops a database for it.
        _ = try await freezePlan(of: entry)
        let options = entry.take.hooks
        let names = entry.parts.map(\.name)
        var failure: (any Error)?
        do {
            if let hook = options.pre {
                let failure = await hooks.run(
                    hook, .pre, limitSeconds: options.limitSeconds, snapshot: entry.label,
                    devices: names)
                if let failure {
                    throw ControlError(
                        .failed,
                        "snapshot \(entry.label) was not taken: \(failure); nothing was changed")
                }
            }
            try await cut(entry)
        } catch { failure = error }
        if let hook = options.post {
            let failure = await hooks.run(
                hook, .post, limitSeconds: options.limitSeconds, snapshot: entry.label,
                devices: names, failure: failure)
            if let failure {
                logger.warning("snapshot \(entry.label): \(failure)")
                events.record(
                    .hookFailed, snapshot: entry.label, "snapshot \(entry.label): \(failure)")
            }
        }
        if let failure { throw failure }
    }

    private func cut(_ entry: HeldSnapshot) async throws {
        let (outcome, freeze) = try await freezing.makeCut(
            entry.parts.map { CutMember(device: $0.device, snapshot: $0.snapshot) },
            isBase: entry.label.name != nil, try await freezePlan(of: entry),
            isBestEffort: entry.take.isBestEffort)
        for error in freeze.errors {
            events.record(
                .freezeFailed, snapshot: entry.label, "snapshot \(entry.label): \(error)")
        }
        if let fault = outcome.fault { throw Self.refusal(of: fault, entry.label) }
        entry.phase = .held
        entry.takenAt = Date()
        entry.outcome = outcome
        entry.freeze = freeze
        try await leaveCheckpoint(entry, outcome)
        let published: [(export: ExportDescription, changes: ExportedChanges)]
        do throws(ControlError) {
            published = try await imageExports(of: entry, outcome)
        } catch {
            await withdrawCheckpoint(of: entry)
            throw error
        }
        for (export, changes) in published {
            exports.publish(export, changes: changes, snapshot: entry.label)
        }
        events.record(
            .taken, snapshot: entry.label,
            "snapshot \(entry.label) taken; writers waited \(outcome.closedMicroseconds) us")
        logger.info("took snapshot \(entry.label), gates closed \(outcome.closedMicroseconds) us")
    }

    /// The images of a snapshot that was taken, to be published.
    private func imageExports(
        of entry: HeldSnapshot, _ outcome: CutOutcome
    ) async throws(ControlError) -> [(export: ExportDescription, changes: ExportedChanges)] {
        var published: [(export: ExportDescription, changes: ExportedChanges)] = []
        for index in entry.parts.indices {
            let part = entry.parts[index]
            guard let images = await part.snapshot.images() else {
                throw ControlError(
                    .failed,
                    "snapshot \(entry.label): the loop of device \(part.name) is too busy to say "
                        + "where the image is; the snapshot was destroyed")
            }
            let name = "\(part.name)@\(entry.label)"
            for (suffix, target) in [("", images.readOnly), (":rw", images.writable)] {
                let export = ExportDescription(
                    name: name + suffix,
                    summary: "device \(part.name) as it was at snapshot \(entry.label)"
                        + (suffix.isEmpty ? "" : ", writable"),
                    size: outcome.sizes[index], isReadOnly: suffix.isEmpty,
                    isRotational: part.device.facts.isRotational, canDiscard: false,
                    loop: part.device.loop, target: target)
                let changes: ExportedChanges =
                    suffix.isEmpty ? .image(part.name, cut: outcome.base(at: index)) : .none
                published.append((export, changes))
            }
            entry.parts[index].exports = [name, name + ":rw"]
        }
        return published
    }

    /// Once the failure is reported nothing is left of it: the name is free again.
    private func withdrawCheckpoint(of entry: HeldSnapshot) async {
        guard let name = entry.label.name else { return }
        do {
            _ = try await checkpoints.delete(name.text)
        } catch {
            logger.error(
                """
                snapshot \(entry.label) was not made, but its checkpoint stays (\(error)); delete it \
                with `stillpoint checkpoint delete \(name)`
                """)
        }
    }

    /// A named snapshot can be named by queries after its end.
    private func leaveCheckpoint(_ entry: HeldSnapshot, _ outcome: CutOutcome) async throws {
        guard let name = entry.label.name, let takenAt = entry.takenAt else { return }
        try await checkpoints.record(
            Checkpoint(
                name: name, createdAt: takenAt, snapshot: entry.label.id,
                parts: entry.parts.enumerated().map { index, part in
                    Checkpoint.Part(device: part.name, base: outcome.base(at: index))
                }))
    }

    private static func refusal(of fault: Fault, _ label: SnapshotLabel) -> ControlError {
        guard fault.errnoValue == 110 else {
            return ControlError(
                fault == .shutdown ? .busy : .failed,
                "snapshot \(label) could not be taken (\(errnoText(fault.errnoValue))); nothing "
                    + "was changed")
        }
        return ControlError(
            .busy,
            "snapshot \(label) could not be taken: writers would have waited longer than 1 s; "
                + "nothing was changed; try again when the origins answer faster")
    }

    // -- destroy

    /// Destroys a snapshot in whatever state it is; returns it as it last was, when everything
    /// that is not handed over is free.
    package func destroy(_ text: String) async throws -> SnapshotDocument {
        let entry = try find(text)
        guard let last = await destroyed(entry) else { throw noSuchSnapshot(text) }
        return last
    }

    /// Destroys the snapshots of a device that is to go; those that end meanwhile are no failure.
    package func destroyAll(_ snapshots: [SnapshotLabel]) async {
        for snapshot in snapshots {
            if let entry = entries[snapshot.id] { _ = await destroyed(entry) }
        }
    }

    /// Destroys all snapshots for the service's end.
    package func closeAll() async {
        isStopping = true
        await destroyAll(entries.values.map(\.label))
    }

    /// Waits for the operation under way, then destroys; nil when somebody else did meanwhile.
    private func destroyed(_ entry: HeldSnapshot) async -> SnapshotDocument? {
        while entry.isBusy {
            await withCheckedContinuation { entry.waiters.append($0) }
        }
        guard entries[entry.label.id] === entry else { return nil }
        entry.isBusy = true
        return await end(entry)
    }

    private func end(_ entry: HeldSnapshot) async -> SnapshotDocument {
        var last = await entry.document()
        await tearDown(entry)
        handDown(entry)
        left(entry)
        events.record(
            .destroyed, snapshot: entry.label, "snapshot \(entry.label) destroyed")
        entry.operationEnded()
        logger.info("destroyed snapshot \(entry.label)")
        last.state = entry.state
        for index in last.devices.indices { last.devices[index].image = nil }
        return last
    }

    /// The next older snapshot of each device continues with what is left in its storage.
    private func handDown(_ entry: HeldSnapshot) {
        let left = (entry.storages.all.flatMap(\.sources) + entry.inherited).filter(\.isInUse)
        guard !left.isEmpty, let takenAt = entry.takenAt else { return }
        for device in entry.parts.map(\.name) {
            let older = entries.values.compactMap { other -> (cut: Date, snapshot: HeldSnapshot)? in
                guard let cut = other.takenAt, cut < takenAt,
                    other.parts.contains(where: { $0.name == device })
                else { return nil }
                return (cut, other)
            }
            older.max { $0.cut < $1.cut }?.snapshot.inherit(left)
        }
    }

    /// Ends whatever there is of it.
    private func tearDown(_ entry: HeldSnapshot) async {
        entry.phase = .ending
        for index in entry.parts.indices {
            for name in entry.parts[index].exports { exports.withdraw(name) }
            entry.parts[index].exports = []
        }
        await withTaskGroup(of: Void.self) { group in
            for part in entry.parts { group.addTask { await part.snapshot.destroy() } }
        }
        for storage in entry.storages.all { await storage.closed() }
        await devices.release(entry.label)
    }

    // -- list and show

    /// All snapshots, the oldest first.
    package func list() async -> [SnapshotDocument] {
        let sorted = entries.values.filter { $0.phase != .making }
            .sorted { $0.createdAt < $1.createdAt }
        var documents: [SnapshotDocument] = []
        for entry in sorted { documents.append(await entry.document()) }
        return documents
    }

    /// One snapshot.
    package func show(_ text: String) async throws -> SnapshotDocument {
        let entry = try find(text)
        return await entry.document()
    }

    /// The image of a device at the cut of a held snapshot, for a question about changes.
    func image(
        of device: ObjectName, at text: String
    ) throws(ControlError) -> (label: SnapshotLabel, snapshot: DeviceSnapshot) {
        let entry: HeldSnapshot
        do throws(ControlError) {
            entry = try find(text)
        } catch {
            guard wasThere(text) else { throw error }
            throw Self.isNotHeld(text)
        }
        guard entry.phase != .ending else { throw Self.isNotHeld(text) }
        guard entry.phase == .held else {
            throw ControlError(
                .notHeld, "snapshot \(entry.label) is not taken yet; take it first")
        }
        guard let part = entry.parts.first(where: { $0.name == device }) else {
            throw ControlError(
                .noSuchSnapshot,
                "snapshot \(entry.label) is not of device \(device), but of "
                    + entry.parts.map(\.name.text).joined(separator: ", "))
        }
        return (entry.label, part.snapshot)
    }

    /// Whether a snapshot may have been called so that is gone now.
    private func wasThere(_ text: String) -> Bool {
        if UniqueID(text) != nil || events.snapshot(called: text) != nil { return true }
        return ObjectName(text).flatMap { checkpoints.store.checkpoint($0) } != nil
    }

    private static func isNotHeld(_ text: String) -> ControlError {
        ControlError(
            .notHeld,
            "snapshot \(text) is not held, and only the cut of a held snapshot can end a question "
                + "about changes; name one that `stillpoint snapshot list` shows as held, or leave "
                + "--until out")
    }

    /// The id of a snapshot, also of one that is destroyed and whose events are kept.
    package func id(of text: String) throws(ControlError) -> UniqueID {
        do throws(ControlError) {
            return try find(text).label.id
        } catch {
            guard let id = events.snapshot(called: text) else { throw error }
            return id
        }
    }

    /// What the snapshot's exports are called after: its name, or its id.
    package func label(of text: String) throws(ControlError) -> SnapshotLabel {
        try find(text).label
    }

    // -- helpers

    /// The snapshot of that name, id or unique prefix of the id.
    private func find(_ text: String) throws(ControlError) -> HeldSnapshot {
        if let entry = entries.values.first(where: { $0.label.name?.text == text }) {
            return entry
        }
        let prefix = text.lowercased()
        let matches = entries.values.filter { $0.label.id.description.hasPrefix(prefix) }
        guard let match = matches.first, !text.isEmpty else {
            throw noSuchSnapshot(text)
        }
        guard matches.count == 1 else {
            throw ControlError(
                .noSuchSnapshot,
                "the ids of \(matches.count) snapshots begin with \(text); give more of the id")
        }
        return match
    }

    /// The snapshot, for an operation that nothing else may run beside.
    func begin(_ text: String) throws(ControlError) -> HeldSnapshot {
        let entry = try find(text)
        guard !isStopping else { throw ControlError.stopping }
        guard !entry.isBusy else {
            throw ControlError(
                .busy,
                "snapshot \(entry.label) is being made, changed or destroyed; try again in a "
                    + "moment")
        }
        entry.isBusy = true
        return entry
    }

    private func noSuchSnapshot(_ text: String) -> ControlError {
        ControlError(
            .noSuchSnapshot,
            "snapshot \(text) was not found; `stillpoint snapshot list` shows them"
                + suggestion(for: text, among: entries.values.compactMap { $0.label.name?.text }))
    }
}
