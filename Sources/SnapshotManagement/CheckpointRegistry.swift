internal import BlockModel
package import ControlDocuments
package import DataPlane
package import DeviceManagement
internal import Host
package import Logging
package import RingIO
package import ServiceState

// The checkpoints of the service: create, list, delete; and those that named snapshots leave.
//
// Invariants
// - A checkpoint is answered only when it is on the disk; one that could not be recorded does not
//   exist, and its cut is not a base.
// - Changes of what is remembered are made one after the other, each with what it means for the
//   devices: a device's loop knows the newest cut that queries can name, or an older one, which
//   makes answers wider, never shorter.
// - A question that names a checkpoint is answered by what it was when the question came: deleting
//   it meanwhile changes nothing, and the next question is refused.

/// The checkpoints of the service; see the head of this file.
package actor CheckpointRegistry {
    /// What is remembered of the checkpoints; it may be read on any thread.
    package nonisolated let store: CheckpointStore
    let devices: DeviceRegistry
    private let blocking: BlockingPool
    let cuts: CutThread
    /// Nothing is written while filesystems are frozen.
    private let freezeLock: AsyncReadWriteLock
    private let logger: Logger
    /// Makes cuts with live devices; there once snapshots are.
    var liveCuts: LiveCuts?
    /// Cuts that are held frozen for copies.
    var heldCuts: [ObjectName: HeldCut] = [:]
    private var isChanging = false
    private var waiters: [CheckedContinuation<Void, Never>] = []

    package init(
        store: CheckpointStore, devices: DeviceRegistry, blocking: BlockingPool, cuts: CutThread,
        freezeLock: AsyncReadWriteLock, logger: Logger
    ) {
        self.store = store
        self.devices = devices
        self.blocking = blocking
        self.cuts = cuts
        self.freezeLock = freezeLock
        self.logger = logger
    }

    /// From now on live devices can be cut.
    package func cutLive(by cuts: LiveCuts) { liveCuts = cuts }

    /// Makes a cut over the devices and remembers it.
    package func create(_ request: CheckpointRequest) async throws -> CheckpointDocument {
        try store.checkRoom(forParts: request.devices.count)
        try store.names.reserve(request.name, for: .checkpoint)
        do {
            let (checkpoint, live) = try await devices.pinning(request.devices) { devices in
                let (outcome, live) = try await self.makeCut(request, devices)
                if let fault = outcome.fault { throw Self.refusal(of: fault, request.name) }
                let checkpoint = Checkpoint(
                    name: request.name, createdAt: .now, snapshot: nil,
                    parts: request.devices.enumerated().map { index, device in
                        Checkpoint.Part(device: device, base: outcome.base(at: index))
                    })
                try await self.record(checkpoint)
                return (checkpoint, live)
            }
            var answer = await document(of: checkpoint)
            if let live { answer.apply(live) }
            return answer
        } catch {
            store.names.release(request.name, of: .checkpoint)
            throw error
        }
    }

    /// Remembers a cut that was made, durably.
    func record(_ checkpoint: Checkpoint) async throws {
        await beginChange()
        defer { endChange() }
        do {
            try store.checkRoom(forParts: checkpoint.parts.count)
            try await commit(
                try store.adding(checkpoint),
                otherwise: "checkpoint \(checkpoint.name) could not be recorded")
        } catch {
            await removed(checkpoint)
            throw error
        }
        store.names.add(checkpoint.name, for: .checkpoint)
        await devices.publishBases(of: checkpoint.parts.map(\.device))
        logger.info("recorded checkpoint \(checkpoint.name)")
    }

    /// Forgets a checkpoint; returns it as it last was.
    package func delete(_ text: String) async throws -> CheckpointDocument {
        await beginChange()
        defer { endChange() }
        guard let name = ObjectName(text), let checkpoint = store.checkpoint(name) else {
            throw noSuchCheckpoint(text)
        }
        let last = await document(of: checkpoint)
        try await commit(
            store.removing(name), otherwise: "checkpoint \(name) could not be deleted")
        store.names.release(name, of: .checkpoint)
        await removed(checkpoint)
        await devices.publishBases(of: checkpoint.parts.map(\.device))
        logger.info("deleted checkpoint \(name)")
        return last
    }

    /// All checkpoints, the oldest first.
    package func list() async -> [CheckpointDocument] {
        let generations = await devices.currentGenerations()
        return store.all.map { Self.document(of: $0, generations) }
    }

    /// The cut that a question names: by the name of a checkpoint, or by the id or a unique prefix
    /// of the id of the snapshot that left one.
    nonisolated func base(
        of device: ObjectName, named text: String
    ) throws(ControlError) -> (name: ObjectName, base: TrackingBase) {
        var checkpoint = ObjectName(text).flatMap { store.checkpoint($0) }
        if checkpoint == nil, !text.isEmpty {
            let matches = store.checkpoints(ofSnapshot: text.lowercased())
            if matches.count == 1 { checkpoint = matches[0] }
        }
        guard let checkpoint else {
            throw ControlError(
                .noSuchBase,
                "checkpoint \(text) was not found; `stillpoint checkpoint list` shows what changes "
                    + "can be asked since" + suggestion(for: text, among: names))
        }
        guard let base = checkpoint.base(of: device) else {
            throw ControlError(
                .noSuchBase,
                "checkpoint \(checkpoint.name) is not of device \(device), but of "
                    + checkpoint.parts.map(\.device.text).joined(separator: ", "))
        }
        return (checkpoint.name, base)
    }

    // -- changes, one at a time

    private func beginChange() async {
        if isChanging {
            // Handed over: it stays true for who comes next.
            await withCheckedContinuation { waiters.append($0) }
        }
        isChanging = true
    }

    private func endChange() {
        if waiters.isEmpty {
            isChanging = false
        } else {
            waiters.removeFirst().resume()
        }
    }

    private func commit(_ change: CheckpointStore.Change, otherwise failed: String) async throws {
        let store = store
        await freezeLock.lockShared()
        defer { freezeLock.unlock() }
        let outcome = await blocking.run { () -> Result<Void, HostError> in
            do throws(HostError) {
                return .success(try store.write(change))
            } catch { return .failure(error) }
        }
        guard let outcome else { throw ControlError.tooManyOperations }
        if case .failure(let failure) = outcome {
            throw ControlError(
                .failed,
                "\(failed) (\(failure)), so nothing was changed; free some space or repair the state "
                    + "directory and try again")
        }
        store.apply(change)
    }

    /// The cut is no longer a base: informs the devices which one is the newest now.
    func removed(_ checkpoint: Checkpoint) async {
        for part in checkpoint.parts {
            guard let device = await devices.attached(part.device) else { continue }
            let generation = part.base.generation
            await device.baseRemoved(
                part.base.epoch, newest: store.newestBase(of: part.device, in: generation),
                of: generation)
        }
    }

    // -- helpers

    func document(of checkpoint: Checkpoint) async -> CheckpointDocument {
        Self.document(of: checkpoint, await devices.currentGenerations())
    }

    private static func document(
        of checkpoint: Checkpoint, _ generations: [ObjectName: Generation]
    ) -> CheckpointDocument {
        CheckpointDocument(
            name: checkpoint.name.text, createdAt: checkpoint.createdAt,
            snapshot: checkpoint.snapshot?.description,
            devices: checkpoint.parts.map { part in
                CheckpointDocument.Device(
                    device: part.device.text, generation: part.base.generation.description,
                    epoch: part.base.epoch.rawValue, size: part.base.size,
                    usable: generations[part.device] == part.base.generation)
            })
    }

    static func refusal(of fault: Fault, _ name: ObjectName) -> ControlError {
        guard fault.errnoValue == 110 else {
            return ControlError(
                fault == .shutdown ? .busy : .failed,
                "checkpoint \(name) could not be made (\(errnoText(fault.errnoValue))); nothing "
                    + "was changed")
        }
        return ControlError(
            .busy,
            "checkpoint \(name) could not be made: writers would have waited longer than 1 s; "
                + "nothing was changed; try again when the origins answer faster")
    }

    private nonisolated var names: [String] { store.all.map(\.name.text) }

    private nonisolated func noSuchCheckpoint(_ text: String) -> ControlError {
        ControlError(
            .noSuchCheckpoint,
            "checkpoint \(text) was not found; `stillpoint checkpoint list` shows them"
                + suggestion(for: text, among: names))
    }
}
