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
    /// Mount points of the filesystems that were frozen for the cut.
    package var frozen: [String]
    /// What was to be frozen and was not, or not thawed, and why.
    package var freezeErrors: [String]
    /// `filesystem`: all that is mounted from its devices was frozen; `crash`: as after a power
    /// failure.
    package var consistency: String
    package var onOverflow: String
    package var devices: [Device]
    package var storage: Storage
    /// Remarks about its storage for people, such as a limit beyond the free space.
    package var warnings: [String]

    /// One device's part of a snapshot.
    package struct Device: Codable, Equatable, Sendable {
        package var device: String
        /// The generation that the epoch belongs to.
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
        /// Bytes preserved on this device, for whichever snapshot, that are in memory only.
        package var unstoredBytes: UInt64
        /// Blocks preserved that are all zero and take no space.
        package var zeroBlocks: UInt64

        package init(
            device: String, generation: String?, epoch: UInt32?, size: UInt64, image: String?,
            error: String?, corruptedAt: Date?, copiedBytes: UInt64, storedBytes: UInt64,
            unstoredBytes: UInt64, zeroBlocks: UInt64
        ) {
            self.device = device
            self.generation = generation
            self.epoch = epoch
            self.size = size
            self.image = image
            self.error = error
            self.corruptedAt = corruptedAt
            self.copiedBytes = copiedBytes
            self.storedBytes = storedBytes
            self.unstoredBytes = unstoredBytes
            self.zeroBlocks = zeroBlocks
        }
    }

    /// The difference storage of a snapshot, in bytes.
    package struct Storage: Codable, Equatable, Sendable {
        /// Handed out to devices, in extents of up to 4 MiB.
        package var used: UInt64
        package var capacity: UInt64
        package var limit: UInt64
        /// What can still be handed out, as far as limits and filesystems allow.
        package var available: UInt64
        /// Preserved blocks without overhead, nothing for zeroes and holes.
        package var storedBytes: UInt64
        package var zeroBlocks: UInt64
        /// Until the limit is reached, if writers continue as they did since the cut.
        @OrNull package var estimatedSecondsToFull: Double?
        package var sources: [Source]
        /// Those of newer snapshots that are destroyed and that still hold data of its devices.
        package var inherited: [Source]

        package init(
            used: UInt64, capacity: UInt64, limit: UInt64, available: UInt64, storedBytes: UInt64,
            zeroBlocks: UInt64, estimatedSecondsToFull: Double?, sources: [Source],
            inherited: [Source]
        ) {
            self.used = used
            self.capacity = capacity
            self.limit = limit
            self.available = available
            self.storedBytes = storedBytes
            self.zeroBlocks = zeroBlocks
            self.estimatedSecondsToFull = estimatedSecondsToFull
            self.sources = sources
            self.inherited = inherited
        }
    }

    /// A source of difference storage, in bytes.
    package struct Source: Codable, Equatable, Sendable {
        package var name: String
        package var used: UInt64
        package var capacity: UInt64
        package var limit: UInt64
        package var available: UInt64

        package init(
            name: String, used: UInt64, capacity: UInt64, limit: UInt64, available: UInt64
        ) {
            self.name = name
            self.used = used
            self.capacity = capacity
            self.limit = limit
            self.available = available
        }
    }

    /// What exports and people call it.
    package var label: String { name ?? id }

    package init(
        id: String, name: String?, state: String, createdAt: Date, takenAt: Date?,
        cutMicroseconds: UInt64?, drainMicroseconds: UInt64?, frozen: [String],
        freezeErrors: [String], consistency: String, onOverflow: String, devices: [Device],
        storage: Storage, warnings: [String]
    ) {
        self.id = id
        self.name = name
        self.state = state
        self.createdAt = createdAt
        self.takenAt = takenAt
        self.cutMicroseconds = cutMicroseconds
        self.drainMicroseconds = drainMicroseconds
        self.frozen = frozen
        self.freezeErrors = freezeErrors
        self.consistency = consistency
        self.onOverflow = onOverflow
        self.devices = devices
        self.storage = storage
        self.warnings = warnings
    }
}

/// What `POST /v1/snapshots` takes.
package struct SnapshotCreateDocument: Codable, Equatable, Sendable {
    package var devices: [String]
    package var name: String?
    package var storage: [String]?
    /// Bytes.
    package var limit: UInt64?
    package var onOverflow: String?
    /// `auto`, `none` or mount points.
    package var freeze: [String]?
    package var freezeBestEffort: Bool?
    package var hooks: HooksDocument?
    package var prepare: Bool?
    package var force: Bool?

    /// Keys it may have, for refusing others.
    package static let keys: Set<String> = [
        "devices", "name", "storage", "limit", "on_overflow", "freeze", "freeze_best_effort",
        "hooks", "prepare", "force",
    ]

    package init(devices: [String]) { self.devices = devices }
}

/// Programs to run around a take: paths, and the time limit of each in seconds.
package struct HooksDocument: Codable, Equatable, Sendable {
    package var pre: String?
    package var post: String?
    package var timeoutSeconds: UInt64?

    private enum CodingKeys: String, CodingKey, CaseIterable { case pre, post, timeoutSeconds }

    private struct AnyKey: CodingKey {
        let stringValue: String
        var intValue: Int? { nil }
        init(stringValue: String) { self.stringValue = stringValue }
        init?(intValue: Int) { nil }
    }

    package init(pre: String?, post: String?, timeoutSeconds: UInt64?) {
        self.pre = pre
        self.post = post
        self.timeoutSeconds = timeoutSeconds
    }

    package init(from decoder: any Decoder) throws {
        let given = try decoder.container(keyedBy: AnyKey.self).allKeys.map(\.stringValue)
        let known = CodingKeys.allCases.map(\.rawValue)
        if let unknown = given.filter({ !known.contains($0) }).min() {
            throw ControlError(
                .invalid,
                "\"\(unknown)\" is not known in hooks; known are post, pre, timeout_seconds")
        }
        let values = try decoder.container(keyedBy: CodingKeys.self)
        pre = try values.decodeIfPresent(String.self, forKey: .pre)
        post = try values.decodeIfPresent(String.self, forKey: .post)
        timeoutSeconds = try values.decodeIfPresent(UInt64.self, forKey: .timeoutSeconds)
    }
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
    /// UUID of the run of the service that recorded it.
    package var instance: String
    package var time: Date
    package var type: String
    /// Id of the snapshot it is about.
    @OrNull package var snapshot: String?
    @OrNull package var snapshotName: String?
    @OrNull package var device: String?
    @OrNull package var errno: Int32?
    package var message: String

    package init(
        number: UInt64, instance: String, time: Date, type: String, snapshot: String?,
        snapshotName: String?,
        device: String?, errno: Int32?, message: String
    ) {
        self.number = number
        self.instance = instance
        self.time = time
        self.type = type
        self.snapshot = snapshot
        self.snapshotName = snapshotName
        self.device = device
        self.errno = errno
        self.message = message
    }
}
