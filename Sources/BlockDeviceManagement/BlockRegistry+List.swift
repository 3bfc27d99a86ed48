package import ControlDocuments
internal import ExportBlock

// What there is to say of the block devices, and of who uses them.

extension BlockRegistry {
    /// All block devices, by path, with who uses them: seen now, or at most `age` ago, for looking
    /// goes through all processes.
    package func list(usersSeenWithin age: Duration = .zero) async -> [BlockDocument] {
        let there = entries.sorted { $0.key < $1.key }.map(\.value).filter { $0.export != nil }
        let users: [String: [String]]
        if let lastUsers, lastUsers.at.duration(to: .now) < age {
            users = lastUsers.users
        } else {
            users = await self.users(of: there)
            lastUsers = (.now, users)
        }
        return there.map { entry in
            var document = document(of: entry)
            document.users = users[document.node] ?? []
            return document
        }
    }

    func document(of entry: Entry) -> BlockDocument {
        let node = entry.export?.path ?? ""
        return BlockDocument(
            path: entry.link ?? node, node: node, target: entry.target,
            readOnly: entry.isReadOnly, partitions: entry.scansPartitions, size: entry.size,
            sectorSize: entry.sectorBytes, attachedAt: entry.attachedAt,
            temporary: entry.remembered == nil, outlivesService: entry.isHeld,
            takeovers: entry.takeoverCount, users: [])
    }

    /// Who uses these, by the path of the loop device.
    func users(of entries: [Entry]) async -> [String: [String]] {
        let paths = entries.compactMap { $0.export?.path }
        guard !paths.isEmpty else { return [:] }
        return await blocking.run { BlockUsers.find(of: paths) } ?? [:]
    }
}
