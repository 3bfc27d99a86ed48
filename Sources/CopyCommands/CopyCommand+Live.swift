internal import ClientSupport
internal import ControlDocuments
internal import CopyPlanning
internal import CopyTargets

extension CopyCommand {
    /// The copy, when the devices are live.
    func liveRun(
        _ images: [CopyImageName], _ targets: [String], _ client: ControlClient
    ) async throws -> LiveCopyRun? {
        let status = try await client.call(.GET, "/v1/status", as: StatusDocument.self)
        let live = Set(status.devices.filter { $0.mode == "live" }.map(\.name))
        let wanted = images.filter { $0.snapshot == nil && live.contains($0.device) }
        guard let first = wanted.first else { return nil }
        guard wanted.count == images.count else {
            throw ControlError(
                .unsuitable,
                "device \(first.device) is live, and others are not: copy those with a command of "
                    + "their own")
        }
        guard !targetIsStream else {
            throw ControlError(
                .unsuitable,
                "device \(first.device) is live: its copy is brought forward in passes, which a "
                    + "stream cannot be; copy it to a file, and stream that")
        }
        guard
            !targets.contains(where: {
                CopyPlace.isRemote($0) || $0.hasSuffix(CopyRequest.qcowSuffix)
            })
        else {
            throw ControlError(
                .unsuitable,
                "device \(first.device) is live: its copy is brought forward in passes, so the target "
                    + "must be a file that is not qcow2, or a block device")
        }
        guard onto == nil, limitRate == nil, !progress else {
            throw ControlError(
                .unsuitable,
                "device \(first.device) is live: leave out --onto, --limit-rate and --progress")
        }
        let name = checkpoint ?? nameOfOwnCut
        var limits = LiveCopyMachine.Limits(freezeSeconds: freezeLimit)
        limits.mayLimitWriters = throttleWriters != nil
        return LiveCopyRun(
            LiveCopyRequest(
                devices: images.map(\.device), targets: targets, since: since, checkpoint: name,
                isNameOwned: checkpoint == nil, keep: keep, record: record, isForced: force,
                limits: limits, writeLimit: throttleWriters.flatMap { parseSize($0) }),
            status, client)
    }
}
