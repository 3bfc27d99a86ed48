internal import ControlDocuments
internal import FoundationEssentials
internal import Guardianship

/// What the next service must know of a block device in order to continue with it.
struct BlockNote: Codable, Equatable, Sendable {
    /// Form of the note that this program writes and reads.
    static let version = 1

    var version = Self.version
    /// The device it shows.
    var device: String
    var readOnly: Bool
    var partitions: Bool
    var sectorSize: UInt32
    /// Bytes when it was last looked at.
    var size: UInt64
    /// Where its filesystem is mounted.
    var directory: String
    /// `/dev/loopN` and its number; nil before there is one.
    var path: String?
    var deviceNumber: UInt64?
    var attachedAt: Date
    /// How often a service took it over.
    var takeovers: Int
    /// It is not remembered.
    var temporary: Bool

    /// The note as the guardian keeps it: a line for people, then JSON; nil when it is too long.
    var bytes: [UInt8]? {
        // A structure of texts and numbers can be encoded.
        guard let json = try? DocumentCoding.encoder().encode(self) else { return nil }
        let bytes = Array("\(device) (\(path ?? "being attached"))\n".utf8) + [UInt8](json)
        return bytes.count <= GuardianMessage.noteByteCountMax ? bytes : nil
    }

    /// Reads one; nil when it is damaged, or of a version that this program does not know.
    init?(_ bytes: [UInt8]) {
        guard let end = bytes.firstIndex(of: 10) else { return nil }
        let json = Data(bytes[(end + 1)...])
        // Nil for what cannot be read.
        guard let note = try? DocumentCoding.decoder().decode(BlockNote.self, from: json),
            note.version == Self.version
        else { return nil }
        self = note
    }

    init(
        device: String, readOnly: Bool, partitions: Bool, sectorSize: UInt32, size: UInt64,
        directory: String, path: String?, deviceNumber: UInt64?, attachedAt: Date, takeovers: Int,
        temporary: Bool
    ) {
        self.device = device
        self.readOnly = readOnly
        self.partitions = partitions
        self.sectorSize = sectorSize
        self.size = size
        self.directory = directory
        self.path = path
        self.deviceNumber = deviceNumber
        self.attachedAt = attachedAt
        self.takeovers = takeovers
        self.temporary = temporary
    }
}
