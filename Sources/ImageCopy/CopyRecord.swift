internal import FoundationEssentials
internal import BlockModel

// `TARGET.stillpoint`: which cut a copy equals, or between which two it is under way. JSON, so that
// people and scripts can read it; version and checksum, so that nothing else is taken for it.
//
//   {"format": "stillpoint-copy", "version": 1, "state": "complete", "device": "vm1",
//    "equals": {cut}, "from": null, "to": null, "target": {file}, "checksum": "9ae0daaf"}
//   {..., "state": "running", "equals": null, "from": {cut} or null, "to": {cut}, ...}
//
// Invariants
// - Complete: the target equals the cut `equals`. Running: each block of the target is that of
//   `from` or that of `to`; with `from` null it is anything.
// - The checksum is the CRC32C of the record written with an empty checksum.

/// A cut of a device, as a record names it.
package struct CopyCut: Codable, Equatable, Sendable {
    package var generation: String
    /// The epoch that ended at the cut.
    package var epoch: UInt32
    /// Bytes of the device at the cut.
    package var size: UInt64
    /// Name of the snapshot, its id when it had none.
    package var snapshot: String
    /// Id of the snapshot.
    package var snapshotId: String

    package init(
        generation: String, epoch: UInt32, size: UInt64, snapshot: String, snapshotId: String
    ) {
        self.generation = generation
        self.epoch = epoch
        self.size = size
        self.snapshot = snapshot
        self.snapshotId = snapshotId
    }

    /// The same moment of the same history.
    package func isSameMoment(as other: CopyCut) -> Bool {
        generation == other.generation && epoch == other.epoch
    }
}

/// What a record holds; see the head of this file.
package struct CopyRecord: Codable, Equatable, Sendable {
    package static let format = "stillpoint-copy"
    package static let version = 1
    /// What follows the target's path.
    package static let suffix = ".stillpoint"
    /// Most bytes of a record that are read.
    package static let byteCountMax = 65536

    /// How the target's file looked when the record was made.
    package struct File: Codable, Equatable, Sendable {
        package var isBlockDevice: Bool
        package var size: UInt64
        package var inode: UInt64
        /// Time of the last change of the contents, in nanoseconds since 1970.
        package var changedNanoseconds: Int64

        package init(isBlockDevice: Bool, size: UInt64, inode: UInt64, changedNanoseconds: Int64) {
            self.isBlockDevice = isBlockDevice
            self.size = size
            self.inode = inode
            self.changedNanoseconds = changedNanoseconds
        }
    }

    /// Whether the target equals a cut.
    package enum State: String, Codable, Sendable {
        case complete, running
    }

    package var format = CopyRecord.format
    package var version = CopyRecord.version
    package var state: State
    package var device: String
    package var equals: CopyCut?
    package var from: CopyCut?
    package var to: CopyCut?
    package var target: File
    package var checksum = ""

    /// The target equals `cut`.
    package static func complete(device: String, _ cut: CopyCut, _ file: File) -> CopyRecord {
        CopyRecord(state: .complete, device: device, equals: cut, target: file)
    }

    /// The target is on its way; `from` nil: from anything.
    package static func running(
        device: String, from: CopyCut?, to: CopyCut, _ file: File
    ) -> CopyRecord {
        CopyRecord(state: .running, device: device, from: from, to: to, target: file)
    }

    // MARK: Bytes

    private static func encoder() -> JSONEncoder {
        let encoder = JSONEncoder()
        encoder.keyEncodingStrategy = .convertToSnakeCase
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes, .prettyPrinted]
        return encoder
    }

    private func sum() throws -> String {
        var unsummed = self
        unsummed.checksum = ""
        let bytes = [UInt8](try Self.encoder().encode(unsummed))
        let value = bytes.withUnsafeBytes { Checksum.crc32c($0) }
        let digits = String(value, radix: 16)
        return String(repeating: "0", count: 8 - digits.count) + digits
    }

    /// The record as bytes, with its checksum.
    package func encoded() throws -> [UInt8] {
        var summed = self
        summed.checksum = try sum()
        return [UInt8](try Self.encoder().encode(summed)) + [UInt8(ascii: "\n")]
    }

    /// Reads a record; nil for anything but a whole record of a version that is known.
    package static func decoded(_ bytes: [UInt8]) -> CopyRecord? {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        // What does not decode is no record, for whatever reason.
        guard let record = try? decoder.decode(CopyRecord.self, from: Data(bytes)),
            record.format == format, record.version == version,
            let sum = try? record.sum(), sum == record.checksum
        else { return nil }
        switch record.state {
        case .complete where record.equals != nil && record.to == nil: return record
        case .running where record.to != nil && record.equals == nil: return record
        case .complete, .running: return nil
        }
    }
}
