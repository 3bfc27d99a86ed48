internal import BlockModel
package import ControlDocuments
internal import DataPlane
internal import Devices

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
    package init(_ snapshot: SnapshotDocument) {
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
    package func activityDocuments() async -> [ActivityDocument.Device] {
        var all: [ActivityDocument.Device] = []
        for (name, entry) in entries.sorted(by: { $0.key < $1.key }) {
            guard let activity = await entry.device.activity() else { continue }
            all.append(ActivityDocument.Device(name: name.text, activity))
        }
        return all
    }
}
