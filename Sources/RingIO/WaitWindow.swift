/// How long a loop looks for its clients' requests before it sleeps. To be woken costs more than a
/// small request: where the next one comes soon, as from a client that has one request under way,
/// looking for it halves the latency; where it does not, time would be burnt.
package struct WaitWindow {
    /// Longest time to look, nanoseconds.
    package static let max: UInt64 = 50_000
    /// Sleeps in a row that looking would have spared before it begins.
    private static let trial = 4

    private var shortSleeps = 0

    package init() {}

    /// Nanoseconds to look; 0: sleep at once.
    package var window: UInt64 { shortSleeps >= Self.trial ? Self.max : 0 }

    /// Nothing came within the window, then the loop slept: `nanoseconds` in all.
    package mutating func slept(for nanoseconds: UInt64) {
        shortSleeps = nanoseconds > Self.max ? 0 : min(shortSleeps + 1, Self.trial)
    }
}
