internal import BlockModel
internal import DataPlane
internal import RingIO

// Where a snapshot keeps what it preserves.

extension SnapshotRegistry {
    /// More room for a snapshot.
    package func appendStorage(
        _ wish: StorageWish, to text: String
    ) async throws -> SnapshotDocument {
        guard !wish.requests.isEmpty else {
            throw ControlError(.invalid, "name the storage to append")
        }
        let entry = try begin(text)
        defer { entry.operationEnded() }
        let storage = try await open(
            wish, for: entry.parts.map(\.device), holder: entry.label)
        defer { storage.release() }
        var refusing: [String] = []
        for part in entry.parts where !(await part.snapshot.append(storage)) {
            refusing.append(part.name.text)
        }
        guard refusing.count < entry.parts.count else {
            throw ControlError(
                .busy,
                "snapshot \(entry.label): its devices have as many storage sources as they may")
        }
        entry.storages.append(storage)
        if !refusing.isEmpty {
            throw ControlError(
                .busy,
                "snapshot \(entry.label) has the storage now, except for "
                    + refusing.joined(separator: ", ")
                    + ": there are as many storage sources as there may be")
        }
        logger.info("appended storage to snapshot \(entry.label)")
        return await entry.document()
    }

    func open(
        _ wish: StorageWish, for devices: [AttachedDevice], holder: SnapshotLabel
    ) async throws -> SnapshotStorage {
        let requests = wish.requests.isEmpty ? [.path(defaultStorage)] : wish.requests
        // A tenth of what could be overwritten; more room can be appended.
        let tenth = devices.reduce(0) { $0 + $1.facts.size / 10 }
        let limit = wish.limit ?? max(tenth, 64 << 20)
        for case .path(let path) in requests { try await checkRoom(at: path) }
        do throws(AttachError) {
            return try await SnapshotStorage.open(
                requests, limit: limit, isForced: wish.isForced, for: devices, blocking: blocking
            ) { [events] notice, source in
                switch notice {
                case .lowSpace:
                    events.record(
                        .lowSpace, snapshot: holder,
                        "snapshot \(holder): storage \(source) is nearly full; append some")
                case .grown(let byteCount):
                    events.record(
                        .storageGrown, snapshot: holder,
                        "snapshot \(holder): storage \(source) grew by \(byteCount) bytes")
                }
            }
        } catch { throw ControlError(error) }
    }

    /// A filesystem without room for one extent is refused now rather than at the first write.
    private func checkRoom(at path: String) async throws(ControlError) {
        let free = await blocking.run { freeBytesForFile(at: path) }
        guard let free, let free, free < StorageWish.byteCountMin else { return }
        throw ControlError(
            .noSpace,
            "storage \(path): its filesystem has \(free) bytes left, less than one extent of 4 "
                + "MiB; name other storage")
    }
}
