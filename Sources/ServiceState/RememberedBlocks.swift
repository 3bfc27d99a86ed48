internal import ControlDocuments
internal import FoundationEssentials
package import RingIO

/// A block device to make again at the next start.
package struct RememberedBlock: Codable, Equatable, Sendable {
    /// The device it shows.
    package var device: String
    package var readOnly: Bool
    package var partitions: Bool

    package init(device: String, readOnly: Bool = false, partitions: Bool = false) {
        self.device = device
        self.readOnly = readOnly
        self.partitions = partitions
    }
}

extension StateDirectory {
    private struct Contents: StateContents {
        var version: Int
        var blocks: [RememberedBlock]
    }

    /// Reads the block devices to make again. Blocks.
    package func loadBlocks() throws -> [RememberedBlock] {
        try read("blocks.json", Contents.self, without: "remembered block devices")?.blocks ?? []
    }

    /// Replaces the block devices to make again, durably.
    package func save(_ blocks: [RememberedBlock], on blocking: BlockingPool) async throws {
        let contents = Contents(version: 1, blocks: blocks.sorted { $0.device < $1.device })
        try await replace(
            "blocks.json", with: [UInt8](try DocumentCoding.encoder(pretty: true).encode(contents)),
            on: blocking)
    }
}
