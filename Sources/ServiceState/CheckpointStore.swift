package import ControlDocuments
package import Host
package import BlockModel
package import ExportNBD
package import FoundationEssentials
internal import Synchronization

// The checkpoints that are remembered, in memory and in `checkpoints.json` of the state directory.
//
// Invariants
// - The file is replaced whole and durably; what it does not hold is not in memory either, so a
//   checkpoint that was ever named in an answer is there after a crash.
// - Both are bounded: `capacity` checkpoints with `partCountMax` devices in all. The file is then
//   8 MiB, and since every line of it is kept ready, a change costs a write of it and no more.

/// A named cut that is remembered.
package struct Checkpoint: Equatable, Sendable {
    /// One device's part of it.
    package struct Part: Equatable, Sendable {
        /// The device that was cut.
        package let device: ObjectName
        /// The cut in the history of the device.
        package let base: TrackingBase

        package init(device: ObjectName, base: TrackingBase) {
            self.device = device
            self.base = base
        }
    }

    /// No snapshot but its own has the same name.
    package let name: ObjectName
    /// When the cut was made.
    package let createdAt: Date
    /// The snapshot that left it.
    package let snapshot: UniqueID?
    /// One part for each device, in the order of the request.
    package let parts: [Part]

    package init(name: ObjectName, createdAt: Date, snapshot: UniqueID?, parts: [Part]) {
        self.name = name
        self.createdAt = createdAt
        self.snapshot = snapshot
        self.parts = parts
    }

    /// The part of a device, if it has one.
    package func base(of device: ObjectName) -> TrackingBase? {
        parts.first { $0.device == device }?.base
    }
}

/// The checkpoints that are remembered; see the head of this file.
package final class CheckpointStore: Sendable {
    /// Most checkpoints.
    static let capacity = 10_000
    /// Most devices of all checkpoints together.
    static let partCountMax = 50_000

    fileprivate struct Entry: Sendable {
        let checkpoint: Checkpoint
        /// Its line of the file.
        let line: [UInt8]
    }

    /// A change that was made ready and not yet written.
    package struct Change: Sendable {
        fileprivate let entries: [ObjectName: Entry]
    }

    /// Who has which name.
    package let names = ObjectNames()
    private let file: String
    private let state: Mutex<[ObjectName: Entry]>

    /// Reads what is remembered in a state directory. Blocks.
    package init(loading directory: String) throws {
        file = directory + "/checkpoints.json"
        var entries: [ObjectName: Entry] = [:]
        for checkpoint in try Self.read(file) {
            entries[checkpoint.name] = Entry(
                checkpoint: checkpoint, line: try Self.line(of: checkpoint))
            names.add(checkpoint.name, for: .checkpoint)
        }
        state = Mutex(entries)
    }

    // MARK: What is remembered

    /// All of them, the oldest first.
    package var all: [Checkpoint] {
        state.withLock { $0.values.map(\.checkpoint) }
            .sorted { ($0.createdAt, $0.name) < ($1.createdAt, $1.name) }
    }

    /// The checkpoint of that name.
    package func checkpoint(_ name: ObjectName) -> Checkpoint? {
        state.withLock { $0[name]?.checkpoint }
    }

    /// Those that the snapshot of an id with this prefix left.
    package func checkpoints(ofSnapshot prefix: String) -> [Checkpoint] {
        state.withLock { entries in
            entries.values.map(\.checkpoint).filter {
                $0.snapshot?.description.hasPrefix(prefix) ?? false
            }
        }
    }

    /// The epoch that ended at the newest cut of a device in a generation; 0 when none is
    /// remembered.
    package func newestBase(of device: ObjectName, in generation: Generation) -> UInt32 {
        state.withLock { entries in
            entries.values.reduce(0) { newest, entry in
                guard let base = entry.checkpoint.base(of: device), base.generation == generation
                else { return newest }
                return max(newest, base.epoch.rawValue)
            }
        }
    }

    /// The cuts of a device in a generation, as its exports name them.
    package func exportBases(of device: ObjectName, in generation: Generation) -> ExportBases {
        let entries = state.withLock { entries in
            entries.values.compactMap { entry in
                entry.checkpoint.base(of: device).map {
                    ExportBases.Entry(name: entry.checkpoint.name.text, base: $0)
                }
            }
        }
        return ExportBases(entries, generation: generation)
    }

    /// Refuses where one more checkpoint would be too many.
    package func checkRoom(forParts count: Int) throws(ControlError) {
        let (checkpoints, parts) = state.withLock { entries in
            (entries.count, entries.values.reduce(0) { $0 + $1.checkpoint.parts.count })
        }
        guard checkpoints < Self.capacity, parts + count <= Self.partCountMax else {
            throw ControlError(
                .limitReached,
                "\(checkpoints) checkpoints with \(parts) devices are remembered; the service allows "
                    + "\(Self.capacity) with \(Self.partCountMax); delete some with `stillpoint "
                    + "checkpoint delete`")
        }
    }

    // MARK: Changes, one at a time

    /// Makes the addition of a checkpoint ready.
    package func adding(_ checkpoint: Checkpoint) throws -> Change {
        let line = try Self.line(of: checkpoint)
        return Change(
            entries: state.withLock { entries in
                var entries = entries
                entries[checkpoint.name] = Entry(checkpoint: checkpoint, line: line)
                return entries
            })
    }

    /// Makes the removal of a checkpoint ready.
    package func removing(_ name: ObjectName) -> Change {
        Change(
            entries: state.withLock { entries in
                var entries = entries
                entries[name] = nil
                return entries
            })
    }

    /// Writes a change, durably. Blocks.
    package func write(_ change: Change) throws(HostError) {
        var bytes = Array("{\"version\":1,\"checkpoints\":[".utf8)
        var separator = "\n"
        for (_, entry) in change.entries.sorted(by: { $0.key < $1.key }) {
            bytes += separator.utf8
            bytes += entry.line
            separator = ",\n"
        }
        bytes += "\n]}\n".utf8
        try DurableFile.replace(file, with: bytes)
    }

    /// The change was written: it holds from now on.
    package func apply(_ change: Change) { state.withLock { $0 = change.entries } }

    // MARK: The file

    private struct Contents: Codable {
        var version: Int
        var checkpoints: [Remembered]
    }

    private struct Remembered: Codable {
        var name: String
        var createdAt: Date
        var snapshot: String?
        var devices: [Part]

        struct Part: Codable {
            var device: String
            var generation: String
            var epoch: UInt32
            var size: UInt64
        }
    }

    private static func line(of checkpoint: Checkpoint) throws -> [UInt8] {
        let remembered = Remembered(
            name: checkpoint.name.text, createdAt: checkpoint.createdAt,
            snapshot: checkpoint.snapshot?.description,
            devices: checkpoint.parts.map { part in
                Remembered.Part(
                    device: part.device.text, generation: part.base.generation.description,
                    epoch: part.base.epoch.rawValue, size: part.base.size)
            })
        return [UInt8](try DocumentCoding.encoder().encode(remembered))
    }

    private static func read(_ file: String) throws -> [Checkpoint] {
        guard let bytes = try readWhole(file, byteCountMax: StateDirectory.fileByteCountMax) else {
            return []
        }
        let contents: Contents
        do {
            contents = try DocumentCoding.decoder().decode(Contents.self, from: Data(bytes))
        } catch { throw damage(file, "\(error)") }
        guard contents.version == 1 else {
            throw ControlError(
                .failed,
                "\(file) has version \(contents.version), which this program does not know; use the "
                    + "program that wrote it, or move the file away")
        }
        var checkpoints: [Checkpoint] = []
        for remembered in contents.checkpoints {
            guard let checkpoint = checkpoint(remembered) else {
                throw damage(file, "the checkpoint \"\(remembered.name)\"")
            }
            checkpoints.append(checkpoint)
        }
        return checkpoints
    }

    private static func checkpoint(_ remembered: Remembered) -> Checkpoint? {
        guard let name = ObjectName(remembered.name) else { return nil }
        var parts: [Checkpoint.Part] = []
        for part in remembered.devices {
            guard let device = ObjectName(part.device), let id = UniqueID(part.generation),
                part.epoch > 0
            else { return nil }
            let base = TrackingBase(
                generation: Generation(id: id), epoch: Epoch(part.epoch), size: part.size)
            parts.append(Checkpoint.Part(device: device, base: base))
        }
        var snapshot: UniqueID?
        if let text = remembered.snapshot {
            guard let id = UniqueID(text) else { return nil }
            snapshot = id
        }
        return Checkpoint(
            name: name, createdAt: remembered.createdAt, snapshot: snapshot, parts: parts)
    }

    private static func damage(_ file: String, _ reason: String) -> ControlError {
        ControlError(
            .failed, "\(file) is damaged; move it away to start without checkpoints",
            details: ["reason": reason])
    }
}
