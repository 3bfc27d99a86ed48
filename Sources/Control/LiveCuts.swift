internal import BlockModel
internal import DataPlane
internal import SnapshotCore
internal import Synchronization

// Cuts of which a live device is part: filesystems on the devices are frozen for them, as far as they
// can be, and what could not be is said. A cut can be held, frozen, until a copy has read what it lacks.
//
// Invariants
// - A held cut ends by itself at its limit, and is thawed by the guardian when the service dies.
// - Nothing is recorded while filesystems are frozen: a held cut is remembered after the thaw.

/// What a cut with live devices came to.
struct LiveCut: Sendable {
    var outcome: CutOutcome
    var summary: FreezeSummary

    /// `filesystem` or `crash`, as of snapshots.
    var consistency: String { summary.isFilesystemConsistent ? "filesystem" : "crash" }
}

/// Makes cuts with live devices; see the head of this file.
struct LiveCuts: Sendable {
    let freezing: FilesystemFreezing
    let snapshots: SnapshotRegistry

    /// Makes a cut over devices of which one at least is live.
    func makeCut(
        _ names: [ObjectName], _ devices: [AttachedDevice], holding hold: CutHold? = nil
    ) async throws -> LiveCut {
        let members = devices.map { CutMember(device: $0, snapshot: nil) }
        var complaints: [String] = []
        let plan: FreezePlan
        do {
            plan = try await freezing.plan(
                .standard, devices: names, protected: try await snapshots.groundOfLiveCuts())
        } catch let error as ControlError where error.code == .unsuitable {
            // It holds what must stay writable: the cut is made without, and says so.
            complaints.append(error.message)
            plan = try await freezing.plan(
                FreezeWish(isAutomatic: false), devices: names, protected: [])
        }
        var (outcome, summary) = try await freezing.makeCut(
            members, isBase: true, plan, isBestEffort: true, holding: hold)
        summary.errors = complaints + summary.errors
        return LiveCut(outcome: outcome, summary: summary)
    }
}

extension SnapshotRegistry {
    /// Makes cuts with live devices.
    nonisolated var liveCuts: LiveCuts { LiveCuts(freezing: freezing, snapshots: self) }

    /// What must stay writable while filesystems of live devices are frozen. The state directory need
    /// not: nothing is written to it meanwhile. That is what lets a root filesystem be frozen.
    func groundOfLiveCuts() async throws -> [ProtectedGround] {
        try await protectedGround(sparing: ["the state directory"])
    }
}

extension CheckpointRegistry {
    /// Makes the cut of a checkpoint.
    func makeCut(
        _ request: CheckpointRequest, _ devices: [AttachedDevice]
    ) async throws -> (outcome: CutOutcome, live: LiveCut?) {
        guard let liveCuts, devices.contains(where: \.isLive) else {
            return (
                await cuts.makeCut(
                    devices.map { CutMember(device: $0, snapshot: nil) }, isBase: true), nil
            )
        }
        let cut = try await liveCuts.makeCut(request.devices, devices)
        return (cut.outcome, cut)
    }
}

/// A cut that is held frozen for a copy.
struct HeldCut: Sendable {
    let request: CheckpointRequest
    let hold: CutHold
    /// Ends when the cut is thawed: the checkpoint, or why there is none.
    let end: Task<CheckpointDocument, any Error>
}

extension CheckpointRegistry {
    /// Longest time that a cut is held.
    static let holdMillisecondsMax: UInt64 = 30_000

    /// Makes a cut, and keeps filesystems frozen until `release`, at most so long.
    func hold(_ request: CheckpointRequest, milliseconds: UInt64) async throws -> HeldCutDocument {
        guard (1...Self.holdMillisecondsMax).contains(milliseconds) else {
            throw ControlError(
                .invalid, "hold_milliseconds: use 1 to \(Self.holdMillisecondsMax)")
        }
        guard heldCuts[request.name] == nil else { throw Self.isHeld(request.name) }
        try store.checkRoom(forParts: request.devices.count)
        try store.names.reserve(request.name, for: .checkpoint)
        let hold = CutHold(limitNanoseconds: milliseconds * 1_000_000)
        let end = Task { try await self.cutHeld(request, hold) }
        heldCuts[request.name] = HeldCut(request: request, hold: hold, end: end)
        guard let outcome = await hold.cut(), outcome.fault == nil else {
            heldCuts[request.name] = nil
            _ = try await end.value
            throw ControlError(.failed, "checkpoint \(request.name) could not be held")
        }
        return HeldCutDocument(
            name: request.name.text,
            devices: request.devices.enumerated().map { index, device in
                let base = outcome.base(at: index)
                return HeldCutDocument.Device(
                    device: device.text, generation: base.generation.description,
                    epoch: base.epoch.rawValue, size: base.size)
            })
    }

    /// Thaws what a held cut froze, and remembers it if it was frozen all the time.
    func releaseHeld(_ text: String) async throws -> CheckpointDocument {
        guard let name = ObjectName(text), let held = heldCuts.removeValue(forKey: name) else {
            throw ControlError(
                .notFound, "no cut called \(text) is held; it may have ended by itself")
        }
        held.hold.release()
        return try await held.end.value
    }

    private static func isHeld(_ name: ObjectName) -> ControlError {
        ControlError(.busy, "a cut called \(name) is held at this moment; choose another name")
    }

    /// The cut from its preparation until it is remembered.
    private func cutHeld(
        _ request: CheckpointRequest, _ hold: CutHold
    ) async throws -> CheckpointDocument {
        defer { hold.calledOff() }
        do {
            guard let liveCuts else {
                throw ControlError(.failed, "live cuts are not there yet; try again")
            }
            let (checkpoint, cut) = try await devices.pinning(request.devices) { devices in
                guard devices.contains(where: \.isLive) else {
                    throw ControlError(
                        .unsuitable,
                        "no device of the cut is live, so nothing has to be held for it")
                }
                let cut = try await liveCuts.makeCut(request.devices, devices, holding: hold)
                if let fault = cut.outcome.fault { throw Self.refusal(of: fault, request.name) }
                let checkpoint = Checkpoint(
                    name: request.name, createdAt: .now, snapshot: nil,
                    parts: request.devices.enumerated().map { index, device in
                        Checkpoint.Part(device: device, base: cut.outcome.base(at: index))
                    })
                guard hold.wasReleasedInTime else {
                    await self.removed(checkpoint)
                    throw ControlError(
                        .busy,
                        "checkpoint \(request.name) was given up: what was to be read while the "
                            + "filesystems are frozen was not read within the limit; they are thawed, "
                            + "and nothing is remembered")
                }
                try await self.record(checkpoint)
                return (checkpoint, cut)
            }
            heldCuts[request.name] = nil
            var document = await self.document(of: checkpoint)
            document.tell(cut)
            document.heldMilliseconds = hold.heldNanoseconds / 1_000_000
            return document
        } catch {
            heldCuts[request.name] = nil
            store.names.release(request.name, of: .checkpoint)
            throw error
        }
    }
}

/// A cut that is held.
package struct HeldCutDocument: Codable, Equatable, Sendable {
    package var name: String
    package var devices: [Device]

    /// One device's part of the cut.
    package struct Device: Codable, Equatable, Sendable {
        package var device: String
        package var generation: String
        /// The epoch that ended at the cut.
        package var epoch: UInt32
        /// Bytes at the cut.
        package var size: UInt64
    }
}

extension CheckpointDocument {
    /// Says how the filesystems fared.
    mutating func tell(_ cut: LiveCut) {
        consistency = cut.consistency
        frozen = cut.summary.frozen
        freezeErrors = cut.summary.errors.isEmpty ? nil : cut.summary.errors
        freezeMicroseconds = cut.outcome.freeze.microseconds
    }
}
