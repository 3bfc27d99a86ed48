internal import FoundationEssentials
internal import BlockModel

// `TARGET.stillpoint`: which cut a copy equals, or between which two it is under way. JSON, so that
// people and scripts can read it; version and checksum, so that nothing else is taken for it.
//
//   {"format": "stillpoint-copy", "version": 1, "state": "complete", "device": "vm1",
//    "equals": {cut}, "from": null, "to": null, "target": {file}, "checksum": "9ae0daaf"}
//   {..., "state": "running", "equals": null, "from": {cut} or null, "to": {cut}, ...}
//
// The record of a block device does not lie beside its node, which other disks get later, but in a
// directory that the service keeps, under the identity of the disk (`CopyRecordFile`).
//
// Invariants
// - Complete: the target equals the cut `equals`. Running: each block of the target is that of
//   `from` or that of `to`; with `from` null it is anything, and that of `to` in the ranges `done`.
// - What lies in `samples` is what the target held when the record was made, outside of what was
//   still to be written.
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

    /// The same moment of the same generation.
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
    package static let byteCountMax = 1 << 18

    /// How the target's file looked when the record was made.
    package struct File: Codable, Equatable, Sendable {
        package var isBlockDevice: Bool
        package var size: UInt64
        package var inode: UInt64
        /// Time of the last change of the contents, in nanoseconds since 1970.
        package var changedNanoseconds: Int64
        /// A block device: which disk it is, and what tells whether it was written to.
        package var disk: DiskState?

        package init(
            isBlockDevice: Bool, size: UInt64, inode: UInt64, changedNanoseconds: Int64,
            disk: DiskState? = nil
        ) {
            self.isBlockDevice = isBlockDevice
            self.size = size
            self.inode = inode
            self.changedNanoseconds = changedNanoseconds
            self.disk = disk
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
    /// When the record was made, in seconds since 1970; nil in records of 0.1.0.
    package var writtenAtSeconds: Int64?
    /// Running, from anything: what equals `to` already. Ascending, apart from each other.
    package var done: [Extent]?
    /// Running, from anything: what was never written reads as zero.
    package var isFresh: Bool?
    /// Checksums of parts of the target.
    package var samples: [Sample]?
    /// The cut's name was made for this copy alone, so that the copy after it may delete it.
    package var isNameOwned: Bool?
    /// Running: it was interrupted in order, and nothing was written after the record was made.
    package var isSettled: Bool?
    /// A qcow2 overlay: the copy that it lies on, as the file itself names it.
    package var onto: String?
    /// The cut that this one equalled.
    package var ontoCut: CopyCut?
    package var checksum = ""

    /// Bytes of a target.
    package struct Extent: Codable, Equatable, Sendable {
        package var offset: UInt64
        package var length: UInt64

        package init(offset: UInt64, length: UInt64) {
            self.offset = offset
            self.length = length
        }
    }

    /// What a part of a target held.
    package struct Sample: Codable, Equatable, Sendable {
        package static let byteCountMax: UInt64 = 1 << 20
        package static let countMax = 512

        package var offset: UInt64
        package var length: UInt64
        /// CRC32C of the bytes.
        package var checksum: UInt32

        package init(offset: UInt64, length: UInt64, checksum: UInt32) {
            self.offset = offset
            self.length = length
            self.checksum = checksum
        }
    }

    /// The target equals `cut`.
    package static func complete(
        device: String, _ cut: CopyCut, _ file: File, samples: [Sample]? = nil
    ) -> CopyRecord {
        CopyRecord(
            state: .complete, device: device, equals: cut, target: file, samples: samples)
    }

    /// The target is on its way; `from` nil: from anything.
    package static func running(
        device: String, from: CopyCut?, to: CopyCut, _ file: File, done: [Extent]? = nil,
        isFresh: Bool? = nil, samples: [Sample]? = nil
    ) -> CopyRecord {
        CopyRecord(
            state: .running, device: device, from: from, to: to, target: file, done: done,
            isFresh: isFresh, samples: samples)
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
        // What does not decode is not a record, whatever the reason.
        guard let record = try? decoder.decode(CopyRecord.self, from: Data(bytes)),
            record.format == format, record.version == version,
            let sum = try? record.sum(), sum == record.checksum
        else { return nil }
        guard record.isSane else { return nil }
        switch record.state {
        case .complete where record.equals != nil && record.to == nil: return record
        case .running where record.to != nil && record.equals == nil: return record
        case .complete, .running: return nil
        }
    }

    /// The extents ascend and neither they nor the samples go beyond any target's end.
    private var isSane: Bool {
        var end: UInt64 = 0
        for extent in done ?? [] {
            guard extent.offset >= end, extent.length > 0,
                extent.offset <= UInt64(Int64.max), extent.length <= UInt64(Int64.max)
            else { return false }
            end = extent.offset + extent.length
        }
        let samples = samples ?? []
        return samples.count <= Sample.countMax
            && samples.allSatisfy { sample in
                sample.length > 0 && sample.length <= Sample.byteCountMax
                    && sample.offset <= UInt64(Int64.max) - sample.length
            }
    }
}
