internal import BlockModel
internal import Glibc
internal import Host
internal import LiveTracking
internal import Origins

// A restart of the machine ends the marks of a live device. Its generation goes on when the device was
// at rest both times that it was recorded: when the machine went down, and before its first write after
// the machine came up. Everything here blocks.
//
// Invariants
// - Between the look at a device that is to be at rest and the end of the save nobody can mount it, or
//   claim it in another way.

/// A live device that nobody used while the machine went down, and that nobody can claim for now.
final class LiveRest {
    let digest: UInt64
    private let claim: Int32

    /// Claims the device and looks at it. Nil when it may be in use, or when the machine goes on.
    init?(_ origin: OpenedOrigin, _ live: LiveWindow) {
        guard MachineState.current() == .goingDown else { return nil }
        // Refused while a filesystem on it is mounted, in any mount namespace, or while anything else has
        // claimed it or a partition of it.
        let claim = open(origin.facts.path, O_RDONLY | O_EXCL | O_CLOEXEC | O_NONBLOCK)
        guard claim >= 0 else { return nil }
        var facts = stat()
        guard fstat(claim, &facts) == 0,
            DeviceNumber(statNumber: UInt64(facts.st_rdev)) == live.place.number,
            // What was written through the page cache is marked when it reaches the device.
            fsync(claim) == 0, live.isAtRest(size: origin.facts.size),
            let digest = Self.digest(of: claim, size: origin.facts.size)
        else {
            close(claim)
            return nil
        }
        self.claim = claim
        self.digest = digest
    }

    deinit { close(claim) }

    /// The digest of a device that nobody wrote to since the machine came up; nil when somebody may have,
    /// or when the machine is up.
    static func digestAfterStart(_ origin: OpenedOrigin, _ live: LiveWindow) -> UInt64? {
        guard MachineState.current() == .comingUp, live.beganUntouched() else { return nil }
        let reader = open(origin.facts.path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard reader >= 0 else { return nil }
        defer { close(reader) }
        return digest(of: reader, size: origin.facts.size)
    }

    /// Where filesystems keep what changes whenever they are mounted to be written: their superblock.
    private static let digestedByteCount = 1 << 20

    /// FNV-1a of the first bytes. It finds a mount by a system that did not track the device; it does not
    /// find everything that may have been written.
    private static func digest(of descriptor: Int32, size: UInt64) -> UInt64? {
        var bytes = [UInt8](repeating: 0, count: Int(min(UInt64(digestedByteCount), size)))
        var position = 0
        while position < bytes.count {
            let count = bytes.withUnsafeMutableBytes { buffer in
                pread(
                    descriptor, buffer.baseAddress.map { $0 + position }, buffer.count - position,
                    off_t(position))
            }
            guard count > 0 || (count < 0 && errno == EINTR) else { return nil }
            position += max(count, 0)
        }
        let hash = bytes.reduce(UInt64(0xCBF2_9CE4_8422_2325)) {
            ($0 ^ UInt64($1)) &* 0x100_0000_01B3
        }
        return hash == 0 ? 1 : hash
    }
}
