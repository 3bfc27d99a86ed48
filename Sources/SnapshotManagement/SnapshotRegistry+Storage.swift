internal import BlockModel
package import ControlDocuments
internal import CopyOnWrite
internal import DataPlane
internal import Devices
internal import Glibc
internal import Origins
internal import RingIO
internal import ServiceState
internal import Storage

// Where a snapshot keeps what it preserves, and what is reported about it.

extension SnapshotRegistry {
    /// More room for a snapshot.
    package func appendStorage(
        _ selection: StorageSelection, to text: String
    ) async throws -> SnapshotDocument {
        guard !selection.requests.isEmpty else {
            throw ControlError(.invalid, "give the storage to append")
        }
        let entry = try begin(text)
        defer { entry.operationEnded() }
        let storage = try await open(selection, for: entry.parts.map(\.device), of: entry)
        defer { storage.release() }
        var refusing: [String] = []
        for part in entry.parts where !(await part.snapshot.append(storage)) {
            refusing.append(part.name.text)
        }
        guard refusing.count < entry.parts.count else {
            throw ControlError(
                .limitReached,
                "snapshot \(entry.label): its devices have as many storage sources as the service "
                    + "allows")
        }
        entry.storages.add(storage)
        if !refusing.isEmpty {
            throw ControlError(
                .limitReached,
                "snapshot \(entry.label) has the storage now, except for "
                    + refusing.joined(separator: ", ")
                    + ": these devices have as many storage sources as the service allows")
        }
        logger.info("appended storage to snapshot \(entry.label)")
        return await entry.document()
    }

    /// Opens what a snapshot of `devices` asks for. Without a limit files may grow to what the
    /// devices can need at most. A limit beyond what is free is warned about.
    func open(
        _ selection: StorageSelection, for devices: [AttachedDevice], of entry: HeldSnapshot
    ) async throws -> SnapshotStorage {
        let holder = entry.label
        let requests = selection.requests.isEmpty ? [.path(defaultStorage)] : selection.requests
        let limit = selection.limit ?? StorageNeed.byteCount(of: devices.map(\.facts.size))
        // The service's own directory waits for no path that somebody named.
        let lane = selection.requests.isEmpty ? BlockingLane.housekeeping : .storagePaths
        var warnings: [String] = []
        for case .path(let path) in requests {
            let room = try await blocking.runOnNamedPath(lane, "storage \(path)") {
                roomForFile(at: path)
            }
            guard let room else { continue }
            guard room.usable >= StorageNeed.sourceLeast else {
                throw ControlError(.noSpace, StorageTexts.noRoom(path, room))
            }
            guard selection.limit != nil else { continue }
            if let warning = StorageTexts.limitWarning(path, limit: limit, room: room) {
                warnings.append(warning)
            }
        }
        do throws(AttachError) {
            let storage = try await SnapshotStorage.open(
                requests, limit: limit, isForced: selection.isForced, for: devices,
                blocking: blocking,
                lane: lane, notify: storageNotices(of: holder))
            for warning in warnings { logger.warning("snapshot \(holder): \(warning)") }
            entry.warnings += warnings
            return storage
        } catch { throw ControlError(error) }
    }

    /// What sources tell; called on any thread.
    private func storageNotices(
        of holder: SnapshotLabel
    ) -> @Sendable (StorageSource.Notice, String) -> Void {
        { [events] notice, source in
            switch notice {
            case .lowSpace(let report):
                events.record(
                    .lowSpace, snapshot: holder, StorageTexts.lowSpace(report, of: "\(holder)"))
            case .grown(let byteCount):
                events.record(
                    .storageGrown, snapshot: holder,
                    StorageTexts.grown(byteCount, source, of: "\(holder)"))
            case .notErased(let byteCount, let fault):
                events.record(
                    .storageNotErased, snapshot: holder, errno: fault.errnoValue,
                    StorageTexts.notErased(byteCount, fault, source, of: "\(holder)"))
            }
        }
    }

    /// What the loops tell about a device's part; called on the device's loop.
    func notices(
        of entry: HeldSnapshot, device: ObjectName, _ loss: LossRecord
    ) -> @Sendable (SnapshotNotice) -> Void {
        let label = entry.label
        let policy = entry.policy.text
        return { [events, storages = entry.storages] notice in
            let reports = storages.all.flatMap(\.sources).map(\.report)
            switch notice {
            case .corrupted(let fault):
                let reason = StorageTexts.loss(fault, policy, reports)
                loss.lost(fault, reason)
                events.record(
                    .corrupted, snapshot: label, device: device, errno: fault.errnoValue,
                    StorageTexts.corrupted(
                        fault, reason: reason, device: "\(device)", of: "\(label)"))
            case .overlayCorrupted(let fault):
                let reason = StorageTexts.loss(fault, policy, reports)
                events.record(
                    .overlayCorrupted, snapshot: label, device: device, errno: fault.errnoValue,
                    StorageTexts.overlayCorrupted(
                        fault, reason: reason, device: "\(device)", of: "\(label)"))
            }
        }
    }
}

/// What the filesystem has of the directory at `path`, or of the one a new file at `path` would be
/// in; nil for anything else, and when the system does not report it.
private func roomForFile(at path: String) -> FilesystemRoom? {
    var facts = stat()
    var directory = path
    if stat(path, &facts) != 0 {
        guard let slash = path.lastIndex(of: "/") else { return nil }
        directory = slash == path.startIndex ? "/" : String(path[..<slash])
    } else if facts.st_mode & S_IFMT != S_IFDIR {
        return nil
    }
    var space = statvfs()
    guard statvfs(directory, &space) == 0, space.f_blocks > 0 else { return nil }
    return FilesystemRoom(
        free: UInt64(space.f_bavail) * UInt64(space.f_frsize),
        size: UInt64(space.f_blocks) * UInt64(space.f_frsize))
}
