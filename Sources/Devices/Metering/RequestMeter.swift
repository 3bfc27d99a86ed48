package import BlockModel
package import Origins

// What the requests of a target did, counted on its loop: plain counters in memory that is
// allocated from the start. The time is the loop's, read once a turn: a request that is done within
// the turn it arrived in counts as having taken no time at all.

/// Counts the requests of one target. Confined to the target's loop.
final class RequestMeter {
    private struct Row {
        var nanoseconds: UInt64 = 0
        var byteCount: UInt64 = 0
        var failureCount: UInt64 = 0
    }

    private static let operationCount = RequestOperation.allCases.count
    /// By operation, then by bucket.
    private let counts: UnsafeMutablePointer<UInt64>
    private let rows: UnsafeMutablePointer<Row>

    init() {
        let cells = Self.operationCount * DurationBuckets.count
        counts = .allocate(capacity: cells)
        counts.initialize(repeating: 0, count: cells)
        rows = .allocate(capacity: Self.operationCount)
        rows.initialize(repeating: Row(), count: Self.operationCount)
    }

    deinit {
        counts.deallocate()
        rows.deallocate()
    }

    /// A request is done that was submitted at its `submittedNanoseconds`.
    func finished(_ request: borrowing BlockRequest, now: UInt64, isFailure: Bool) {
        let operation = Int(request.operation.rawValue)
        // Wrapping: the clock is monotonic, and sums of what it says do not reach 2^64.
        let duration = now &- request.submittedNanoseconds
        counts[operation * DurationBuckets.count + DurationBuckets.index(of: duration)] &+= 1
        rows[operation].nanoseconds &+= duration
        if isFailure {
            rows[operation].failureCount &+= 1
        } else {
            rows[operation].byteCount &+= request.length
        }
    }

    /// What was counted, by operation; those that never came are left out.
    var report: [OperationReport] {
        RequestOperation.allCases.compactMap { operation in
            let place = Int(operation.rawValue)
            let buckets = UnsafeBufferPointer(
                start: counts + place * DurationBuckets.count, count: DurationBuckets.count)
            let row = rows[place]
            let report = OperationReport(
                operation: operation,
                durations: DurationHistogram(
                    counts: Array(buckets), nanoseconds: row.nanoseconds),
                byteCount: row.byteCount, failureCount: row.failureCount)
            return report.durations.total > 0 ? report : nil
        }
    }
}

/// What the requests of one operation did.
package struct OperationReport: Equatable, Sendable {
    package let operation: RequestOperation
    package let durations: DurationHistogram
    /// Of those that did not fail.
    package let byteCount: UInt64
    package let failureCount: UInt64
}

/// What a device and its images did since it was attached.
package struct DeviceActivity: Sendable {
    package let counters: DeviceCounters
    package let requests: [OperationReport]
    /// Through images, all of them together.
    package let imageRequests: [OperationReport]
    package let epoch: Epoch
    /// Resident bytes of the change map.
    package let mapByteCount: UInt64
    /// Connections and block attachments at this moment.
    package let userCount: Int
}
