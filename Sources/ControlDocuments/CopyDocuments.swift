package import FoundationEssentials

// The JSON documents of copies that programs tell the service of: `stillpoint copy` reads images
// and writes targets by itself, and only says how far it is.

/// A copy that is being made, or was.
package struct CopyJobDocument: Codable, Equatable, Sendable {
    package var id: String
    package var device: String
    /// Name or id of the snapshot whose image is copied.
    package var snapshot: String
    package var target: String
    /// The cut that an increment began at; null: a full copy.
    @OrNull package var since: String?
    /// `running`, `done`, `failed`, `interrupted`; `lost`: its program has said nothing for too
    /// long.
    package var state: String
    /// Bytes to read, as far as they are known, and those that were.
    package var bytes: UInt64
    package var copiedBytes: UInt64
    package var startedAt: Date
    package var updatedAt: Date
    @OrNull package var endedAt: Date?
    /// Why it failed.
    @OrNull package var error: String?

    /// It has not ended.
    package var isRunning: Bool { state == "running" }

    package init(
        id: String, device: String, snapshot: String, target: String, since: String?, state: String,
        bytes: UInt64, copiedBytes: UInt64, startedAt: Date, updatedAt: Date, endedAt: Date?,
        error: String?
    ) {
        self.id = id
        self.device = device
        self.snapshot = snapshot
        self.target = target
        self.since = since
        self.state = state
        self.bytes = bytes
        self.copiedBytes = copiedBytes
        self.startedAt = startedAt
        self.updatedAt = updatedAt
        self.endedAt = endedAt
        self.error = error
    }
}

/// What `POST /v1/copies` takes.
package struct CopyBeginDocument: Codable, Equatable, Sendable {
    package var device: String
    package var snapshot: String
    package var target: String
    package var since: String?
    package var bytes: UInt64

    /// Keys it may have, for refusing others.
    package static let keys: Set<String> = ["device", "snapshot", "target", "since", "bytes"]

    package init(device: String, snapshot: String, target: String, since: String?, bytes: UInt64) {
        self.device = device
        self.snapshot = snapshot
        self.target = target
        self.since = since
        self.bytes = bytes
    }
}

/// What `POST /v1/copies/{id}` takes.
package struct CopyProgressDocument: Codable, Equatable, Sendable {
    package var copiedBytes: UInt64
    /// `done`, `failed` or `interrupted`: it has ended.
    package var state: String?
    package var error: String?

    /// Keys it may have, for refusing others.
    package static let keys: Set<String> = ["copied_bytes", "state", "error"]

    package init(copiedBytes: UInt64, state: String? = nil, error: String? = nil) {
        self.copiedBytes = copiedBytes
        self.state = state
        self.error = error
    }
}
