internal import CLinux
internal import Glibc

/// A flock on a whole file that may still be held by a process that has ended.
///
/// A killed process keeps its locks for a while: its last requests may not have left the kernel,
/// and a child that was being started shares its descriptors until it runs its own program. So a
/// lock whose owner has ended is waited for, and one whose owner lives is refused at once.
package enum FileLock {
    /// What came of the attempt.
    package enum Outcome: Equatable, Sendable {
        case taken
        case heldByThisProcess
        /// Number and name of another process that lives.
        case heldBy(String)
        /// The owner has ended, and the lock was still held when the limit was over.
        case heldByEnded
        case failed(errnoValue: Int32)
    }

    /// Takes the lock on the open file of `descriptor`: LOCK_EX, or LOCK_SH where it is shared.
    /// Blocks for at most `limitSeconds`.
    package static func take(
        _ descriptor: Int32, isShared: Bool = false, limitSeconds: Int
    ) -> Outcome {
        let operation = (isShared ? LOCK_SH : LOCK_EX) | LOCK_NB
        let deadline = cl_now_nanoseconds() + UInt64(limitSeconds) * 1_000_000_000
        while flock(descriptor, operation) != 0 {
            let failure = errno
            guard failure == EWOULDBLOCK || failure == EINTR else {
                return .failed(errnoValue: failure)
            }
            if let holder = livingHolder(of: descriptor) { return holder }
            guard cl_now_nanoseconds() < deadline else { return .heldByEnded }
            // Asked again instead of waiting in the kernel: who holds the lock meanwhile is part of
            // the answer.
            usleep(20_000)
        }
        return .taken
    }

    /// Whether any process holds a flock on the open file of `descriptor`. It takes no lock itself,
    /// so it cannot make another process's attempt fail. Blocks.
    package static func isHeld(_ descriptor: Int32) -> Bool {
        !holders(of: descriptor).isEmpty
    }

    /// The living process that holds a flock on the file, as /proc/locks tells; nil when the one
    /// that took it has ended, or nobody holds one.
    private static func livingHolder(of descriptor: Int32) -> Outcome? {
        for process in holders(of: descriptor) where process > 0 {
            if process == getpid() { return .heldByThisProcess }
            guard cl_process_lives(process) else { continue }
            let name = SystemFile.line(of: "/proc/\(process)/comm")
            return .heldBy("process \(process) (\(name ?? "unnamed"))")
        }
        return nil
    }

    /// The processes that took the flocks on the file, as /proc/locks tells; 0 stands for one of
    /// another PID namespace.
    private static func holders(of descriptor: Int32) -> [Int32] {
        var facts = cl_file_facts()
        guard cl_file_facts(descriptor, &facts) == 0 else { return [] }
        let hex = { (value: UInt32) in
            let text = String(value, radix: 16)
            return text.count < 2 ? "0" + text : text
        }
        let file = "\(hex(facts.device_major)):\(hex(facts.device_minor)):\(facts.inode)"
        return SystemFile.lines(of: "/proc/locks").compactMap { line in
            let fields = line.split(separator: " ")
            // 1: FLOCK  ADVISORY  WRITE 4242 fd:00:12345 0 EOF
            guard fields.count >= 6, fields[1] == "FLOCK", fields[5] == file else { return nil }
            return Int32(fields[4])
        }
    }
}
