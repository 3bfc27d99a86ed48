internal import BlockModel
internal import ClientSupport
internal import ControlDocuments
internal import CopyPlanning
internal import ImageCopy

// What copies to the same targets that were killed have left: records, and checkpoints that nobody
// else uses. A copy's records and checkpoints have a token in common.
//
// Invariants
// - Only checkpoints with the token of a record are deleted, and of those none that a target
//   equals, but the one whose name the same command asks for again; and cuts of passes with that
//   name, whose copy was killed before it had a record.

/// See the head of this file.
struct InterruptedCopies {
    /// What is known of one target.
    struct Part {
        /// The record of a copy that was interrupted, and of one that is complete.
        var interrupted: CopyRecord?
        var complete: CopyRecord?
        /// The cut that what changes is asked since; nil: everything is copied.
        var base: String?
        /// The checkpoint that an interrupted full copy continues from.
        var resumed: (name: String, cut: CopyCut)?
    }

    private(set) var parts: [String: Part] = [:]
    private var checkpoints: [CheckpointDocument] = []
    /// Tokens of copies that were interrupted.
    private var tokens: Set<String> = []
    /// The name of the copy's last cut.
    private var name = ""

    /// Looks for what there is, and chooses where each copy begins.
    static func find(
        _ request: LiveCopyRequest, _ status: StatusDocument, _ client: ControlClient
    ) async throws -> InterruptedCopies {
        var found = InterruptedCopies()
        found.checkpoints = try await client.call(
            .GET, "/v1/checkpoints", as: [CheckpointDocument].self)
        found.name = request.checkpoint
        let options = CopySource.options(
            status, record: try request.record.map { try Defaults.absolute($0) })
        for (device, target) in zip(request.devices, request.targets) {
            found.parts[device] = Part(
                interrupted: ImageCopier.interrupted(ofTarget: target, options: options),
                complete: ImageCopier.complete(ofTarget: target, options: options))
        }
        found.tokens = Set(found.parts.values.compactMap { $0.interrupted?.to?.snapshotId })
        for (device, target) in zip(request.devices, request.targets) {
            let cut = ImageCopier.baseCut(ofTarget: target, options: options)
            found.choose(device, cut, request, status)
        }
        return found
    }

    private mutating func choose(
        _ device: String, _ cut: CopyCut?, _ request: LiveCopyRequest, _ status: StatusDocument
    ) {
        guard var part = parts[device] else { return }
        let others = checkpoints.filter { $0.name != request.checkpoint }
        let isOfInterrupted = part.complete?.equals.map { tokens.contains($0.snapshotId) } ?? false
        if isOfInterrupted || request.isAutomatic {
            part.base = cut.flatMap { CopySource.newestBase(of: device, for: $0, among: others) }
        } else {
            part.base = request.since
        }
        if part.base == nil, let record = part.interrupted, record.from == nil, let to = record.to,
            status.devices.contains(where: { $0.name == device && $0.size == to.size }),
            let name = others.first(where: { checkpoint in
                checkpoint.devices.contains {
                    $0.device == device && $0.usable && $0.generation == to.generation
                        && $0.epoch == to.epoch
                }
            })?.name
        {
            part.resumed = (name, to)
        }
        parts[device] = part
    }

    /// Records of targets that equal the cut already: their run was killed before its last step.
    func finishedRecords(_ request: LiveCopyRequest) -> [CopyRecord]? {
        guard let checkpoint = checkpoints.first(where: { $0.name == request.checkpoint }),
            let token = checkpoint.snapshot, hasPassCuts(of: token)
        else { return nil }
        let records = request.devices.compactMap { device -> CopyRecord? in
            guard let record = parts[device]?.complete, record.equals?.snapshotId == token,
                checkpoint.devices.contains(where: {
                    $0.device == device && $0.epoch == record.equals?.epoch
                        && $0.generation == record.equals?.generation
                })
            else { return nil }
            return record
        }
        return records.count == request.devices.count ? records : nil
    }

    private func hasPassCuts(of token: String) -> Bool {
        checkpoints.contains { $0.name.contains(LiveCopyCuts.mark(of: token)) }
    }

    /// Sees to it that no checkpoint has the name: one that an interrupted run of the same copy
    /// made goes, for no target equals it.
    func freeName(_ name: String, _ client: ControlClient) async throws {
        guard let other = checkpoints.first(where: { $0.name == name }) else {
            let snapshots = try await client.call(
                .GET, "/v1/snapshots", as: [SnapshotDocument].self)
            if snapshots.contains(where: { $0.name == name }) { throw Self.isTaken(name) }
            return
        }
        guard let token = other.snapshot, tokens.contains(token) else {
            let isEqual = parts.values.allSatisfy { part in
                part.complete?.equals.map { $0.snapshotId == other.snapshot } ?? false
            }
            guard isEqual else { throw Self.isTaken(name) }
            throw ControlError(
                .nameTaken,
                "the copy of checkpoint \(name) is complete already; choose another name with "
                    + "--checkpoint for a new copy")
        }
        try await LiveCopyCuts.delete(name, client)
    }

    private static func isTaken(_ name: String) -> ControlError {
        ControlError(
            .nameTaken,
            "a checkpoint or snapshot is called \(name) already; choose another name with "
                + "--checkpoint, or delete it first")
    }

    /// Names of the checkpoints that nobody needs when the copy is made, but those of its own
    /// passes.
    /// Those by which `finishedRecords` knows a run that was killed come last. The service is asked
    /// again: what a killed run asked for last may have come after the copy began.
    func unneededNames(
        besidePassesOf own: UniqueID?, _ client: ControlClient
    ) async throws -> [String] {
        let equalled = Set(parts.values.compactMap { $0.complete?.equals?.snapshotId })
        let known = tokens.union(equalled)
        let passPrefix = LiveCopyCuts.passPrefix(of: name)
        let unneeded = try await client.call(
            .GET, "/v1/checkpoints", as: [CheckpointDocument].self
        ).filter { checkpoint in
            // By now that is the copy's own.
            guard checkpoint.name != name else { return false }
            if let own, checkpoint.name.contains(LiveCopyCuts.mark(of: own.description)) {
                return false
            }
            if let token = checkpoint.snapshot, tokens.contains(token), !equalled.contains(token) {
                return true
            }
            return checkpoint.name.hasPrefix(passPrefix)
                || known.contains { checkpoint.name.contains(LiveCopyCuts.mark(of: $0)) }
        }.map(\.name)
        func isSign(_ name: String) -> Bool {
            equalled.contains { name.contains(LiveCopyCuts.mark(of: $0)) }
        }
        return unneeded.filter { !isSign($0) } + unneeded.filter(isSign)
    }

    /// Cuts that the former copies made for themselves and their targets have left.
    var ownedNames: [String] {
        parts.values.compactMap { part in
            part.complete?.isNameOwned == true ? part.complete?.equals?.snapshot : nil
        }
    }
}
