/// The buckets in which durations are counted: each reaches twice as far as the one before, from
/// 16 microseconds to 17 seconds, so that finding one is a matter of counting leading zeroes.
package enum DurationBuckets {
    /// Buckets, the last one for everything that took longer than all bounds.
    package static let count = 22
    private static let shiftMin = 14

    /// Longest duration of bucket `index`, in nanoseconds; the last bucket has no bound.
    package static func bound(of index: Int) -> UInt64 {
        precondition(index < count - 1, "the last bucket has no bound")
        return 1 << UInt64(shiftMin + index)
    }

    /// The bucket for a duration.
    package static func index(of nanoseconds: UInt64) -> Int {
        guard nanoseconds > 1 << UInt64(shiftMin) else { return 0 }
        let digits = UInt64.bitWidth - (nanoseconds - 1).leadingZeroBitCount
        return min(digits - shiftMin, count - 1)
    }
}

/// How many of something took how long.
package struct DurationHistogram: Equatable, Sendable {
    /// By bucket of `DurationBuckets`.
    package var counts = [UInt64](repeating: 0, count: DurationBuckets.count)
    /// All durations together.
    package var nanoseconds: UInt64 = 0

    package init() {}

    package init(counts: [UInt64], nanoseconds: UInt64) {
        precondition(counts.count == DurationBuckets.count, "a histogram has all buckets")
        self.counts = counts
        self.nanoseconds = nanoseconds
    }

    /// Counts one more.
    package mutating func add(_ duration: UInt64) {
        counts[DurationBuckets.index(of: duration)] += 1
        nanoseconds &+= duration
    }

    /// How many there were.
    package var total: UInt64 { counts.reduce(0, &+) }
}
