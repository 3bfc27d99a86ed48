internal import ControlDocuments
internal import FoundationEssentials
internal import Glibc
internal import Host
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
    private struct Contents: Codable {
        var version: Int
        var blocks: [RememberedBlock]
    }

    /// Reads the block devices to make again. Blocks.
    package func loadBlocks() throws -> [RememberedBlock] {
        let file = path + "/blocks.json"
        guard let bytes = try readWhole(file, byteCountMax: Self.fileByteCountMax) else {
            return []
        }
        let contents: Contents
        do {
            contents = try DocumentCoding.decoder().decode(Contents.self, from: Data(bytes))
        } catch {
            throw ControlError(
                .failed,
                "\(file) is damaged; move it away to start without remembered block devices",
                details: ["reason": "\(error)"])
        }
        guard contents.version == 1 else {
            throw ControlError(
                .failed,
                "\(file) has version \(contents.version), which this program does not know; "
                    + "use the program that wrote it, or move the file away")
        }
        return contents.blocks
    }

    /// Replaces the block devices to make again, durably.
    package func save(_ blocks: [RememberedBlock], on blocking: BlockingPool) async throws {
        let contents = Contents(version: 1, blocks: blocks.sorted { $0.device < $1.device })
        try await replace(
            "blocks.json", with: [UInt8](try DocumentCoding.encoder(pretty: true).encode(contents)),
            on: blocking)
    }
}
