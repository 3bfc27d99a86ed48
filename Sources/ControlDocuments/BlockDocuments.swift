package import FoundationEssentials

// The JSON documents of local block devices.

/// A local block device.
package struct BlockDocument: Codable, Equatable, Sendable {
    /// The name that does not change, `/dev/stillpoint/NAME`; that of the loop device where another
    /// block device of the same target has it.
    package var path: String
    /// `/dev/loopN`.
    package var node: String
    /// `DEVICE` or `DEVICE@SNAPSHOT`.
    package var target: String
    package var readOnly: Bool
    package var partitions: Bool
    /// Bytes.
    package var size: UInt64
    package var sectorSize: UInt32
    package var attachedAt: Date
    /// It is not made again at the next start.
    package var temporary: Bool
    /// Its users wait for the next service when this one ends.
    package var outlivesService: Bool
    /// How often a service took it over from the one before.
    package var takeovers: Int
    /// Who uses it, in words, as far as the system shows it.
    package var users: [String]

    package init(
        path: String, node: String, target: String, readOnly: Bool, partitions: Bool, size: UInt64,
        sectorSize: UInt32, attachedAt: Date, temporary: Bool, outlivesService: Bool,
        takeovers: Int, users: [String]
    ) {
        self.path = path
        self.node = node
        self.target = target
        self.readOnly = readOnly
        self.partitions = partitions
        self.size = size
        self.sectorSize = sectorSize
        self.attachedAt = attachedAt
        self.temporary = temporary
        self.outlivesService = outlivesService
        self.takeovers = takeovers
        self.users = users
    }
}

/// What `POST /v1/blocks` takes.
package struct BlockAttachDocument: Codable, Equatable, Sendable {
    package var target: String
    package var readOnly: Bool?
    package var partitions: Bool?
    /// It is not to be remembered.
    package var temporary: Bool?

    /// Keys it may have, for refusing others.
    package static let keys: Set<String> = ["target", "read_only", "partitions", "temporary"]

    package init(target: String, readOnly: Bool?, partitions: Bool?, temporary: Bool?) {
        self.target = target
        self.readOnly = readOnly
        self.partitions = partitions
        self.temporary = temporary
    }
}

/// What a block device is asked for: `DEVICE` or `DEVICE@SNAPSHOT`, the snapshot by its name, its
/// id or a unique prefix of the id.
package struct BlockTargetName: Equatable, Sendable {
    package let device: String
    package let snapshot: String?

    /// Parts the text; what the parts mean is looked up later.
    package init(_ text: String) throws(ControlError) {
        let parts = text.split(separator: "@", maxSplits: 1, omittingEmptySubsequences: false)
        guard parts.allSatisfy({ !$0.isEmpty }), parts.count == 2 || parts.count == 1 else {
            throw ControlError(
                .invalid, "\"\(text)\" names no target: give DEVICE or DEVICE@SNAPSHOT")
        }
        device = String(parts[0])
        snapshot = parts.count == 2 ? String(parts[1]) : nil
    }
}
