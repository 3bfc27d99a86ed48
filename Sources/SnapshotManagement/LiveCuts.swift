internal import BlockModel
package import ControlDocuments
internal import DataPlane
internal import FreezePlanning
internal import Quiescing
internal import ServiceState
internal import Synchronization

// Cuts of which a live device is part: filesystems on the devices are frozen for them, as far as
// they can be, and what could not be is said. A cut can be held, frozen, until a copy has read what
// it lacks.
//
// Invariants
// - A held cut ends by itself at its limit, and is thawed by the guardian when the service dies.
// - A held cut is remembered only when nothing was written to its live devices while it was held.
// - Nothing is recorded while filesystems are frozen: a held cut is remembered after the thaw.

/// What a cut with live devices came to.
struct LiveCut: Sendable {
    var outcome: CutOutcome
    var summary: FreezeSummary

    /// `filesystem` or `crash`, as of snapshots.
    var consistency: String { summary.isFilesystemConsistent ? "filesystem" : "crash" }
}

/// Makes cuts with live devices; see the head of this file.
package struct LiveCuts: Sendable {
    let freezing: FilesystemFreezing
    let snapshots: SnapshotRegistry

    /// Makes a cut over devices of which one at least is live, without freezing anything:
    /// filesystems are written back before, so that the cut after this one finds less to do.
    func makeCutWithoutFreeze(
        _ names: [ObjectName], _ devices: [AttachedDevice]
    ) async throws -> LiveCut {
        var summary = FreezeSummary()
        do {
            let plan = try await freezing.plan(
                .standard, devices: names,
                protected: try await snapshots.freezeExclusionsOfLiveCuts())
            summary.errors = try await freezing.writeBack(plan)
        } catch let error as ControlError where error.code == .unsuitable {
            summary.errors.append(error.message)
        }
        let members = devices.map { CutMember(device: $0, snapshot: nil) }
        let outcome = await freezing.makeCutAlone(members, isBase: true)
        return LiveCut(outcome: outcome, summary: summary)
    }

    /// Makes a cut over devices of which one at least is live.
    func makeCut(
        _ names: [ObjectName], _ devices: [AttachedDevice], holding hold: CutHold? = nil
    ) async throws -> LiveCut {
        let members = devices.map { CutMember(device: $0, snapshot: nil) }
        var errors: [String] = []
        let plan: FreezePlan
        do {
            plan = try await freezing.plan(
                .standard, devices: names,
                protected: try await snapshots.freezeExclusionsOfLiveCuts())
        } catch let error as ControlError where error.code == .unsuitable {
            // It holds what must stay writable: the cut is made without, and says so.
            errors.append(error.message)
            plan = try await freezing.plan(
                FreezeSelection(isAutomatic: false), devices: names, protected: [])
        }
        var (outcome, summary) = try await freezing.makeCut(
            members, isBase: true, plan, isBestEffort: true, holding: hold)
        summary.errors = errors + summary.errors
        return LiveCut(outcome: outcome, summary: summary)
    }
}

extension SnapshotRegistry {
    /// Makes cuts with live devices.
    package nonisolated var liveCuts: LiveCuts { LiveCuts(freezing: freezing, snapshots: self) }

    /// What must stay writable while filesystems of live devices are frozen. The state directory
    /// need not: nothing is written to it meanwhile. That is what lets a root filesystem be frozen.
    func freezeExclusionsOfLiveCuts() async throws -> [FreezeExclusion] {
        try await freezeExclusions(sparing: ["the state directory"])
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
        let cut =
            request.isFrozen
            ? try await liveCuts.makeCut(request.devices, devices)
            : try await liveCuts.makeCutWithoutFreeze(request.devices, devices)
        return (cut.outcome, cut)
    }
}

/// A cut that is held frozen for a copy.
struct HeldCut: Sendable {
    let request: CheckpointRequest
    let hold: CutHold
    /// The cut of each device.
    let bases: [TrackingBase]
    /// Ends when the cut is thawed: the checkpoint, or why there is none.
    let end: Task<CheckpointDocument, any Error>

    /// It, for people and programs.
    var document: HeldCutDocument {
        HeldCutDocument(
            name: request.name.text,
            devices: zip(request.devices, bases).map { device, base in
                HeldCutDocument.Device(
                    device: device.text, generation: base.generation.description,
                    epoch: base.epoch.rawValue, size: base.size)
            })
    }
}

extension CheckpointRegistry {
    /// Longest time that a cut is held.
    static let holdMillisecondsMax: UInt64 = 30_000

    /// Makes a cut, and keeps filesystems frozen until `release`, at most so long.
    package func hold(_ request: CheckpointRequest, milliseconds: UInt64) async throws
        -> HeldCutDocument
    {
        guard (1...Self.holdMillisecondsMax).contains(milliseconds) else {
            throw ControlError(
                .invalid, "hold_milliseconds: use 1 to \(Self.holdMillisecondsMax)")
        }
        guard heldCuts[request.name] == nil else {
            throw ControlError(
                .busy,
                "a cut called \(request.name) is held at this moment; choose another name")
        }
        try store.checkRoom(forParts: request.devices.count)
        try store.names.reserve(request.name, for: .checkpoint)
        let hold = CutHold(limitNanoseconds: milliseconds * 1_000_000)
        let end = Task { try await self.cutHeld(request, hold) }
        guard let outcome = await hold.cut(), outcome.fault == nil else {
            _ = try await end.value
            throw ControlError(.failed, "checkpoint \(request.name) could not be held")
        }
        let held = HeldCut(
            request: request, hold: hold,
            bases: request.devices.indices.map { outcome.base(at: $0) }, end: end)
        // One that ended already takes itself out no more.
        if !hold.isOver { heldCuts[request.name] = held }
        return held.document
    }

    /// Thaws what a held cut froze, and remembers it if it was frozen all the time and nobody wrote
    /// to a live device meanwhile.
    package func releaseHeld(_ text: String) async throws -> CheckpointDocument {
        guard let name = ObjectName(text), let held = heldCuts.removeValue(forKey: name) else {
            throw Self.isNotHeld(text)
        }
        // While everything is still frozen.
        held.hold.release(refusal: await refusal(toKeep: held))
        return try await held.end.value
    }

    /// Thaws what a held cut froze, and remembers nothing.
    package func abandonHeld(_ text: String) async throws -> HeldCutDocument {
        guard let name = ObjectName(text), let held = heldCuts.removeValue(forKey: name) else {
            throw Self.isNotHeld(text)
        }
        held.hold.release(
            refusal: ControlError(.busy, "checkpoint \(name) was given up by who asked for it"))
        // It ends with that refusal, which was asked for.
        _ = await held.end.result
        return held.document
    }

    private static func isNotHeld(_ text: String) -> ControlError {
        ControlError(.notFound, "no cut called \(text) is held; it may have ended by itself")
    }

    /// Why a held cut may not be remembered: somebody wrote to a live device beside its filesystem.
    private func refusal(toKeep held: HeldCut) async -> ControlError? {
        var found: [String: String] = [:]
        for (name, base) in zip(held.request.devices, held.bases) {
            guard let device = await devices.attached(name) else {
                return ControlError(.busy, "device \(name) was detached while a cut was held")
            }
            switch await device.writtenBesides(since: base) {
            case .success(let byteCount):
                if byteCount > 0 { found[name.text] = "\(byteCount)" }
            case .failure(let refusal):
                return ControlError(
                    refusal == .busy ? .busy : .generationUnknown,
                    "whether device \(name) was written to while its cut was held is not known, so "
                        + "nothing is remembered")
            }
        }
        guard !found.isEmpty else { return nil }
        let list = found.sorted { $0.key < $1.key }.map { "\($0.key) (\($0.value) bytes)" }
        return ControlError(
            .busy,
            "live devices were written to while their filesystems were frozen: "
                + list.joined(separator: ", ") + "; somebody writes beside the filesystem, or it "
                + "could not be frozen, so there is no one moment; nothing is remembered",
            details: found)
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
                    name: request.name, createdAt: .now, snapshot: request.id,
                    parts: request.devices.enumerated().map { index, device in
                        Checkpoint.Part(device: device, base: cut.outcome.base(at: index))
                    })
                if let refusal = hold.refusal {
                    await self.removed(checkpoint)
                    throw refusal
                }
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
            document.apply(cut)
            document.heldMilliseconds = hold.heldNanoseconds / 1_000_000
            return document
        } catch {
            heldCuts[request.name] = nil
            store.names.release(request.name, of: .checkpoint)
            throw error
        }
    }
}

extension CheckpointDocument {
    /// Says how the filesystems fared.
    mutating func apply(_ cut: LiveCut) {
        consistency = cut.consistency
        frozen = cut.summary.frozen
        freezeErrors = cut.summary.errors.isEmpty ? nil : cut.summary.errors
        freezeMicroseconds = cut.outcome.freeze.microseconds
    }
}
