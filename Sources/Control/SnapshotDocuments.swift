package import FoundationEssentials

// The JSON documents of snapshots and events.

/// A value that stands as `null` in JSON when there is none: its key is always there.
@propertyWrapper
package struct OrNull<Value: Codable & Equatable & Sendable>: Codable, Equatable, Sendable {
    package var wrappedValue: Value?

    package init(wrappedValue: Value?) { self.wrappedValue = wrappedValue }

    package init(from decoder: any Decoder) throws {
        wrappedValue = try Optional<Value>(from: decoder)
    }

    package func encode(to encoder: any Encoder) throws { try wrappedValue.encode(to: encoder) }
}

/// A snapshot.
package struct SnapshotDocument: Codable, Equatable, Sendable {
    package var id: String
    @OrNull package var name: String?
    /// `prepared`, `held`, `corrupted` (an image at least lost data) or `destroyed`.
    package var state: String
    package var createdAt: Date
    @OrNull package var takenAt: Date?
    /// From the first gate's closing until the last one was open again.
    @OrNull package var cutMicroseconds: UInt64?
    /// The part of it that was spent waiting for writes in flight.
    @OrNull package var drainMicroseconds: UInt64?
    /// Filesystems that were frozen for the cut.
    package var frozen: [String]
    /// `crash`: as after a power failure.
    package var consistency: String
    package var onOverflow: String
    package var devices: [Device]
    package var storage: Storage

    /// One device's part of a snapshot.
    package struct Device: Codable, Equatable, Sendable {
        package var device: String
        /// The history that the epoch belongs to.
        @OrNull package var generation: String?
        /// The epoch that ended at the cut.
        @OrNull package var epoch: UInt32?
        /// Bytes of the image.
        package var size: UInt64
        /// The export of the image; `:rw` appended, it is writable.
        @OrNull package var image: String?
        /// Why the image is corrupted.
        @OrNull package var error: String?
        @OrNull package var corruptedAt: Date?
        /// Bytes of old data read on this device since the cut in order to preserve it.
        package var copiedBytes: UInt64
        package var storedBytes: UInt64
        /// Blocks preserved that are all zero and take no space.
        package var zeroBlocks: UInt64
    }

    /// The difference storage of a snapshot, in bytes.
    package struct Storage: Codable, Equatable, Sendable {
        /// Handed out to devices, in extents of 4 MiB.
        package var used: UInt64
        package var capacity: UInt64
        package var limit: UInt64
        /// Preserved blocks without overhead, nothing for zeroes and holes.
        package var storedBytes: UInt64
        package var zeroBlocks: UInt64
        package var sources: [Source]
    }

    /// A source of difference storage, in bytes.
    package struct Source: Codable, Equatable, Sendable {
        package var name: String
        package var used: UInt64
        package var capacity: UInt64
        package var limit: UInt64
    }

    /// What exports and people call it.
    package var label: String { name ?? id }
}

/// What `POST /v1/snapshots` takes.
package struct SnapshotCreateDocument: Codable, Equatable, Sendable {
    package var devices: [String]
    package var name: String?
    package var storage: [String]?
    /// Bytes.
    package var limit: UInt64?
    package var onOverflow: String?
    package var prepare: Bool?
    package var force: Bool?

    /// Keys it may have, for refusing others.
    package static let keys: Set<String> = [
        "devices", "name", "storage", "limit", "on_overflow", "prepare", "force",
    ]

    package init(devices: [String]) { self.devices = devices }
}

/// What `POST /v1/snapshots/{id}/storage` takes.
package struct StorageAppendDocument: Codable, Equatable, Sendable {
    package var storage: [String]
    /// Bytes.
    package var limit: UInt64?
    package var force: Bool?

    /// Keys it may have, for refusing others.
    package static let keys: Set<String> = ["storage", "limit", "force"]

    package init(storage: [String], limit: UInt64?, force: Bool?) {
        self.storage = storage
        self.limit = limit
        self.force = force
    }
}

/// Something that happened.
package struct EventDocument: Codable, Equatable, Sendable {
    package var number: UInt64
    package var time: Date
    package var type: String
    /// Id of the snapshot it is about.
    @OrNull package var snapshot: String?
    @OrNull package var snapshotName: String?
    @OrNull package var device: String?
    @OrNull package var errno: Int32?
    package var message: String

    init(
        number: UInt64, time: Date, type: String, snapshot: String?, snapshotName: String?,
        device: String?, errno: Int32?, message: String
    ) {
        self.number = number
        self.time = time
        self.type = type
        self.snapshot = snapshot
        self.snapshotName = snapshotName
        self.device = device
        self.errno = errno
        self.message = message
    }
}
