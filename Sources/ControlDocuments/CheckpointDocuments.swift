package import FoundationEssentials

// The JSON documents of checkpoints and changes.

/// A checkpoint.
package struct CheckpointDocument: Codable, Equatable, Sendable {
    package var name: String
    package var createdAt: Date
    /// Id of the snapshot that left it, which may be gone, or of the copy that it was held for.
    @OrNull package var snapshot: String?
    package var devices: [Device]
    /// Told when it is made, of a cut with a live device: `filesystem`, or `crash` when a
    /// filesystem was not frozen for it, as of a snapshot.
    package var consistency: String?
    /// Mount points that were frozen for it.
    package var frozen: [String]?
    /// What could not be frozen, and why.
    package var freezeErrors: [String]?
    /// From the first freeze to the last thaw.
    package var freezeMicroseconds: UInt64?
    /// How long it was held for a copy.
    package var heldMilliseconds: UInt64?

    /// One device's part of the cut.
    package struct Device: Codable, Equatable, Sendable {
        package var device: String
        package var generation: String
        /// The epoch that ended at the cut.
        package var epoch: UInt32
        /// Bytes at the cut.
        package var size: UInt64
        /// Queries can name it: the device is attached and its generation still the same.
        package var usable: Bool

        package init(
            device: String, generation: String, epoch: UInt32, size: UInt64, usable: Bool
        ) {
            self.device = device
            self.generation = generation
            self.epoch = epoch
            self.size = size
            self.usable = usable
        }
    }

    package init(
        name: String, createdAt: Date, snapshot: String?, devices: [Device],
        consistency: String? = nil, frozen: [String]? = nil, freezeErrors: [String]? = nil,
        freezeMicroseconds: UInt64? = nil, heldMilliseconds: UInt64? = nil
    ) {
        self.name = name
        self.createdAt = createdAt
        self.snapshot = snapshot
        self.devices = devices
        self.consistency = consistency
        self.frozen = frozen
        self.freezeErrors = freezeErrors
        self.freezeMicroseconds = freezeMicroseconds
        self.heldMilliseconds = heldMilliseconds
    }
}

/// What `POST /v1/checkpoints` takes.
package struct CheckpointCreateDocument: Codable, Equatable, Sendable {
    package var name: String
    package var devices: [String]
    /// `auto` or `none`: whether filesystems of live devices are frozen for the cut.
    package var freeze: [String]?
    /// Keeps filesystems frozen until the cut is released, at most so long: for copies.
    package var holdMilliseconds: UInt64?
    /// Of a cut that is held: an id of the caller's, by which it knows the checkpoint again.
    package var id: String?

    /// Keys it may have, for refusing others.
    package static let keys: Set<String> = [
        "name", "devices", "freeze", "hold_milliseconds", "id",
    ]

    package init(
        name: String, devices: [String], freeze: [String]? = nil, holdMilliseconds: UInt64? = nil,
        id: String? = nil
    ) {
        self.name = name
        self.devices = devices
        self.freeze = freeze
        self.holdMilliseconds = holdMilliseconds
        self.id = id
    }
}

/// What changed on a device, or a page of it.
package struct ChangesDocument: Codable, Equatable, Sendable {
    package var device: String
    package var generation: String
    /// No cut was named: the ranges are all that a full backup has to read.
    package var full: Bool
    @OrNull package var since: Cut?
    package var until: Cut
    /// Bytes of the device at `until`.
    package var size: UInt64
    /// Bytes of the ranges.
    package var changedBytes: UInt64
    package var ranges: [Range]
    /// Where the next page begins; null at the end.
    @OrNull package var nextOffset: UInt64?

    /// A cut of the device; without a name, the present.
    package struct Cut: Codable, Equatable, Sendable {
        @OrNull package var name: String?
        package var epoch: UInt32

        package init(
            name: String?, epoch: UInt32
        ) {
            self.name = name
            self.epoch = epoch
        }
    }

    /// Bytes that changed.
    package struct Range: Codable, Equatable, Sendable {
        package var offset: UInt64
        package var length: UInt64

        package init(offset: UInt64, length: UInt64) {
            self.offset = offset
            self.length = length
        }
    }

    package init(
        device: String, generation: String, full: Bool, since: Cut?, until: Cut, size: UInt64,
        changedBytes: UInt64, ranges: [Range], nextOffset: UInt64?
    ) {
        self.device = device
        self.generation = generation
        self.full = full
        self.since = since
        self.until = until
        self.size = size
        self.changedBytes = changedBytes
        self.ranges = ranges
        self.nextOffset = nextOffset
    }
}

/// What `POST /v1/devices/{name}/changes` takes.
package struct ChangesMarkDocument: Codable, Equatable, Sendable {
    package var ranges: [ChangesDocument.Range]

    /// Keys it may have, for refusing others.
    package static let keys: Set<String> = ["ranges"]

    package init(ranges: [ChangesDocument.Range]) { self.ranges = ranges }

    private enum CodingKeys: String, CodingKey { case ranges }

    package init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        ranges = try values.decode([GivenRange].self, forKey: .ranges).map {
            ChangesDocument.Range(offset: $0.offset, length: $0.length)
        }
    }

    /// A range as a client gives it: with no key that would silently do nothing.
    private struct GivenRange: Decodable {
        let offset: UInt64
        let length: UInt64

        init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: AnyKey.self)
            let known = ["offset", "length"]
            let given = values.allKeys.map(\.stringValue)
            if let unknown = given.filter({ !known.contains($0) }).min() {
                throw ControlError(
                    .invalid, "\"\(unknown)\" is not known in ranges; known are length, offset")
            }
            offset = try values.decode(UInt64.self, forKey: AnyKey(stringValue: "offset"))
            length = try values.decode(UInt64.self, forKey: AnyKey(stringValue: "length"))
        }
    }

    private struct AnyKey: CodingKey {
        let stringValue: String
        var intValue: Int? { nil }
        init(stringValue: String) { self.stringValue = stringValue }
        init?(intValue: Int) { nil }
    }
}

/// What was marked.
package struct ChangesMarkedDocument: Codable, Equatable, Sendable {
    package var device: String
    /// As they were given; blocks that they touch count as changed.
    package var ranges: [ChangesDocument.Range]

    package init(
        device: String, ranges: [ChangesDocument.Range]
    ) {
        self.device = device
        self.ranges = ranges
    }
}

/// A cut that is held.
package struct HeldCutDocument: Codable, Equatable, Sendable {
    package var name: String
    package var devices: [Device]

    /// One device's part of the cut.
    package struct Device: Codable, Equatable, Sendable {
        package var device: String
        package var generation: String
        /// The epoch that ended at the cut.
        package var epoch: UInt32
        /// Bytes at the cut.
        package var size: UInt64

        package init(device: String, generation: String, epoch: UInt32, size: UInt64) {
            self.device = device
            self.generation = generation
            self.epoch = epoch
            self.size = size
        }
    }

    package init(name: String, devices: [Device]) {
        self.name = name
        self.devices = devices
    }
}
