internal import Glibc
internal import Synchronization

/// Keeps the threads of a copy to so many bytes per second together.
final class CopyPace: Sendable {
    private let bytesPerSecond: Double
    /// When the bytes that were let through would have been moved at that rate, in seconds of the
    /// monotonic clock.
    private let due: Mutex<Double>

    /// What may be caught up after a pause, in seconds.
    private static let burst = 0.2
    private static let slice = 0.1

    init(_ bytesPerSecond: UInt64) {
        self.bytesPerSecond = Double(max(1, bytesPerSecond))
        due = Mutex(Self.now())
    }

    private static func now() -> Double {
        var now = timespec()
        clock_gettime(CLOCK_MONOTONIC, &now)
        return Double(now.tv_sec) + Double(now.tv_nsec) / 1e9
    }

    /// Waits for the turn of so many bytes, or until `isOver`.
    func wait(for byteCount: UInt64, isOver: () -> Bool) {
        let turn = due.withLock { due in
            due = max(due, Self.now() - Self.burst) + Double(byteCount) / bytesPerSecond
            return due
        }
        while !isOver() {
            let left = turn - Self.now()
            guard left > 0 else { return }
            usleep(UInt32(min(left, Self.slice) * 1e6))
        }
    }
}
