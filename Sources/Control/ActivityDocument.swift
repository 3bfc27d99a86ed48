internal import BlockModel
internal import DataPlane

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
    }

    /// Requests of one kind, since the device was attached.
    package struct Operation: Codable, Equatable, Sendable {
        package var count: UInt64 = 0
        package var failures: UInt64 = 0
        package var bytes: UInt64 = 0
        /// Their durations together.
        package var seconds: Double = 0
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
    }
}

extension ActivityDocument.Device {
    init(name: String, _ activity: DeviceActivity) {
        func sum(_ operations: RequestOperation...) -> ActivityDocument.Operation {
            activity.requests.filter { operations.contains($0.operation) }
                .reduce(into: ActivityDocument.Operation()) { sum, report in
                    sum.count += report.durations.total
                    sum.failures += report.failureCount
                    sum.bytes += report.byteCount
                    sum.seconds += Double(report.durations.nanoseconds) / 1e9
                }
        }
        self.init(
            name: name, connections: activity.userCount, reads: sum(.read), writes: sum(.write),
            flushes: sum(.flush), discards: sum(.discard, .writeZeroes),
            copiedBytes: activity.counters.copiedBytes,
            parkedWrites: activity.counters.parkedWrites)
    }
}

extension ActivityDocument.Snapshot {
    init(_ snapshot: SnapshotDocument) {
        let storage = snapshot.storage
        self.init(
            id: snapshot.id, name: snapshot.name, state: snapshot.state,
            storedBytes: storage.storedBytes, used: storage.used, limit: storage.limit,
            available: storage.available,
            estimatedSecondsToFull: storage.estimatedSecondsToFull)
    }
}

extension DeviceRegistry {
    /// What all devices did, by name, without their documents; those whose loop does not answer are
    /// left out.
    func activityDocuments() async -> [ActivityDocument.Device] {
        var all: [ActivityDocument.Device] = []
        for (name, entry) in entries.sorted(by: { $0.key < $1.key }) {
            guard let activity = await entry.device.activity() else { continue }
            all.append(ActivityDocument.Device(name: name.text, activity))
        }
        return all
    }
}
