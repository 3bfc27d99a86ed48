/// How long a loop looks for its clients' requests before it sleeps. To be woken costs more than a
/// small request: where the next one comes soon, as from a client that has one request under way,
/// looking for it halves the latency; where it does not, time would be burnt.
///
/// A sleep says little of when a request came: where processors are shared, being woken can take
/// longer than the window is. So looking is tried, and given up the longer the more often it was in
/// vain.
package struct WaitWindow {
    /// Longest time to look, nanoseconds.
    package static let max: UInt64 = 50_000
    /// Sleeps longer than this, nanoseconds, mean that the loop is idle.
    package static let nearMax: UInt64 = 1_000_000
    /// Sleeps in a row before looking is tried: at first, and after it was in vain many times.
    package static let trialMin = 4, trialMax = 256

    private var nearSleeps = 0
    private var trial = Self.trialMin

    package init() {}

    /// Nanoseconds to look where the next timer is due in `timeout` nanoseconds (negative: there is
    /// none); 0: sleep at once, also where the timer would end the look before anything is learnt.
    package func window(within timeout: Int64) -> UInt64 {
        nearSleeps >= trial && (timeout < 0 || timeout >= Int64(Self.max)) ? Self.max : 0
    }

    /// Something came within the window.
    package mutating func found() { trial = Self.trialMin }

    /// The loop slept: `nanoseconds` in all; with `looked`, nothing had come within the window
    /// before.
    package mutating func slept(for nanoseconds: UInt64, looked: Bool) {
        if looked {
            trial = min(trial * 2, Self.trialMax)
            nearSleeps = 0
        } else {
            nearSleeps = nanoseconds > Self.nearMax ? 0 : nearSleeps + 1
        }
    }
}
