internal import ControlDocuments
internal import DataPlane
internal import FreezePlanning
internal import Glibc
internal import Origins
internal import RingIO

// What a snapshot's take freezes, and what must stay writable meanwhile.

extension SnapshotRegistry {
    func freezePlan(of entry: HeldSnapshot) async throws -> FreezePlan {
        try await freezing.plan(
            entry.take.freeze, devices: entry.parts.map(\.name), protected: await freezeExclusions()
        )
    }

    /// What must stay writable while filesystems are frozen: origins, storage, what is the
    /// service's own but what `spared` names.
    func freezeExclusions(sparing spared: [String] = []) async throws -> [FreezeExclusion] {
        var exclusions = await devices.freezeExclusions()
        for entry in entries.values {
            for storage in entry.storages.all {
                exclusions.append(
                    FreezeExclusion(
                        what: "storage of snapshot \(entry.label)",
                        devices: storage.underlyingDevices))
            }
        }
        let directories = ownDirectories.filter { own in
            !spared.contains { own.what.hasPrefix($0) }
        }
        let own = await blocking.run {
            directories.map { directory in
                FreezeExclusion(
                    what: directory.what,
                    devices: MountSurvey.underlyingDevices(ofPath: directory.path))
            }
                + [STDOUT_FILENO, STDERR_FILENO].map { descriptor in
                    FreezeExclusion(
                        what: "the service's log",
                        devices: MountSurvey.underlyingDevices(ofDescriptor: descriptor))
                }
        }
        guard let own else { throw ControlError.tooManyOperations }
        return own + exclusions
    }
}
