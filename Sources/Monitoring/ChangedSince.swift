internal import BlockModel
internal import DataPlane
internal import DeviceManagement
internal import ServiceState
package import SnapshotManagement

// What an increment from the newest checkpoint of each device would move, for metrics. It takes a
// pass over the change map, so the result is reused for a while.

/// The newest checkpoint of a device, and what changed since.
package struct NewestCheckpoint: Sendable {
    /// Seconds since 1970.
    let madeAtSeconds: Double
    /// Nil: it belongs to a former generation, so that a full backup is due.
    let changedByteCount: UInt64?
}

/// Knows what changed since the newest checkpoints; see the head of this file.
package actor ChangedSince {
    private struct Found {
        let base: TrackingBase
        /// It is counted anew then, or when there is a newer checkpoint.
        let end: ContinuousClock.Instant
        let byteCount: UInt64?
    }

    private var found: [ObjectName: Found] = [:]

    package init() {}

    /// How long the result is reused at least, and how many times as long as it took to find: a
    /// loop spends a thirtieth of its time on it at most.
    private static let age = Duration.seconds(30)
    private static let timesTaken = 30

    /// By the device's name; devices without a checkpoint are left out.
    package func newest(_ queries: ChangeQueries) async -> [String: NewestCheckpoint] {
        var newest: [ObjectName: Checkpoint] = [:]
        for checkpoint in queries.checkpoints.store.all {
            for part in checkpoint.parts { newest[part.device] = checkpoint }
        }
        found = found.filter { newest[$0.key] != nil }
        var all: [String: NewestCheckpoint] = [:]
        for (name, checkpoint) in newest {
            guard let base = checkpoint.base(of: name),
                await queries.devices.attached(name) != nil
            else { continue }
            all[name.text] = NewestCheckpoint(
                madeAtSeconds: checkpoint.createdAt.timeIntervalSince1970,
                changedByteCount: await byteCount(since: base, of: name, queries.devices))
        }
        return all
    }

    private func byteCount(
        since base: TrackingBase, of name: ObjectName, _ devices: DeviceRegistry
    ) async -> UInt64? {
        if let known = found[name], known.base == base, .now < known.end {
            return known.byteCount
        }
        let begin = ContinuousClock.now
        let query = SummaryQuery(cellCountMax: 1, since: base, cuts: [], takesMarks: false)
        // What is not known is left out.
        let byteCount = try? await devices.pinning([name]) { devices in
            try await devices[0].changeSummary(query).get().changedByteCount
        }
        let age = max(Self.age, begin.duration(to: .now) * Self.timesTaken)
        found[name] = Found(base: base, end: .now + age, byteCount: byteCount)
        return byteCount
    }
}
