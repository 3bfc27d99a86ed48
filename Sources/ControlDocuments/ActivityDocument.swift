// What changes from one moment to the next, for who looks again and again: `GET /v1/activity`.
// Rates are differences of two answers.

/// What the service did, in numbers that only rise, and how full its storage is.
package struct ActivityDocument: Codable, Equatable, Sendable {
    /// UUID of this run of the service: after another one numbers start again from 0.
    package var instance: String
    /// Since the service was started.
    package var uptimeSeconds: Double
    package var residentBytes: UInt64
    package var devices: [Device]
    package var snapshots: [Snapshot]

    /// A device.
    package struct Device: Codable, Equatable, Sendable {
        package var name: String
        package var connections: Int
        package var reads: Operation
        package var writes: Operation
        package var flushes: Operation
        /// Discards and zeroings.
        package var discards: Operation
        package var copiedBytes: UInt64
        package var parkedWrites: UInt64

        package init(
            name: String, connections: Int, reads: Operation, writes: Operation, flushes: Operation,
            discards: Operation, copiedBytes: UInt64, parkedWrites: UInt64
        ) {
            self.name = name
            self.connections = connections
            self.reads = reads
            self.writes = writes
            self.flushes = flushes
            self.discards = discards
            self.copiedBytes = copiedBytes
            self.parkedWrites = parkedWrites
        }
    }

    /// Requests of one kind, since the device was attached.
    package struct Operation: Codable, Equatable, Sendable {
        package var count: UInt64 = 0
        package var failures: UInt64 = 0
        package var bytes: UInt64 = 0
        /// Their durations together.
        package var seconds: Double = 0

        package init(
            count: UInt64 = 0, failures: UInt64 = 0, bytes: UInt64 = 0, seconds: Double = 0
        ) {
            self.count = count
            self.failures = failures
            self.bytes = bytes
            self.seconds = seconds
        }
    }

    /// A snapshot, and how full its storage is.
    package struct Snapshot: Codable, Equatable, Sendable {
        package var id: String
        @OrNull package var name: String?
        package var state: String
        package var storedBytes: UInt64
        package var used: UInt64
        package var limit: UInt64
        package var available: UInt64
        @OrNull package var estimatedSecondsToFull: Double?

        package init(
            id: String, name: String?, state: String, storedBytes: UInt64, used: UInt64,
            limit: UInt64, available: UInt64, estimatedSecondsToFull: Double?
        ) {
            self.id = id
            self.name = name
            self.state = state
            self.storedBytes = storedBytes
            self.used = used
            self.limit = limit
            self.available = available
            self.estimatedSecondsToFull = estimatedSecondsToFull
        }
    }

    package init(
        instance: String, uptimeSeconds: Double, residentBytes: UInt64, devices: [Device],
        snapshots: [Snapshot]
    ) {
        self.instance = instance
        self.uptimeSeconds = uptimeSeconds
        self.residentBytes = residentBytes
        self.devices = devices
        self.snapshots = snapshots
    }
}
