internal import BlockModel
internal import Host
internal import CLinux
internal import Glibc
internal import RingIO

// Which filesystems are frozen, in a file of the runtime directory, so that somebody else can thaw
// them should the service die in between: its guardian at once, the service manager, or the next
// start.
//
// Invariants
// - The list names every filesystem before its freeze is asked for, and until its thaw is back.
// - One mount point to a line, in the order of freezing; a newline or backslash in it is written
//   like the kernel does, `\012` and `\134`.
// - Every thread that freezes holds a share of the lock beside the list. A call that was under way
//   when the service was killed may still freeze something: who thaws does so again when nobody
//   has a share any more.
// - Thawing what is not frozen does nothing, so the list may name too many, and several may thaw.

/// The list of filesystems that the service has frozen; see the head of this file.
package enum FrozenFilesystems {
    /// Name of the list in the runtime directory.
    package static let listName = "frozen"
    /// How long a freeze under way at the service's death is waited for.
    private static let lateSeconds = 30
    private static let byteCountMax = 1 << 20

    /// Replaces the list; an empty one removes it. Returns 0 or an errno value. Blocks.
    package static func replace(_ path: String, with mountPoints: [[UInt8]]) -> Int32 {
        guard !mountPoints.isEmpty else {
            return unlink(path) == 0 || errno == ENOENT ? 0 : errno
        }
        do throws(HostError) {
            // Synced for runtime directories on a disk, which may be frozen next.
            try DurableFile.replace(path, syncsDirectory: false) { file throws(HostError) in
                try DurableFile.write(text(of: mountPoints), to: file, path)
            }
            return 0
        } catch { return error.errnoValue }
    }

    /// Thaws what is listed, the last frozen first, and removes the list. Returns the mount
    /// points that were thawed. Only when the service that wrote the list is dead. Blocks.
    @discardableResult
    package static func thaw(listedIn path: String) -> [String] {
        guard let text = SystemFile.readBytes(path, byteCountMax: byteCountMax) else { return [] }
        let mountPoints = Array(Self.mountPoints(in: text).reversed())
        var thawed = mountPoints.filter(thaw)
        if hasFreezers(lockPath(of: path)) {
            waitForFreezers(lockPath(of: path))
            thawed += mountPoints.filter { !thawed.contains($0) }.filter(thaw)
        }
        // What may still come is left to the next one who thaws.
        if !hasFreezers(lockPath(of: path)) {
            unlink(path)
            unlink(lockPath(of: path))
        }
        return thawed.map { String(decoding: $0, as: UTF8.self) }
    }

    /// One that is not frozen (any more), or not mounted, says so, which is as good.
    private static func thaw(_ mountPoint: [UInt8]) -> Bool {
        let descriptor = open(
            mountPoint.map(CChar.init(bitPattern:)) + [0],
            O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
        guard descriptor >= 0 else { return false }
        defer { close(descriptor) }
        return cl_thaw_filesystem(descriptor) == 0
    }

    // -- the lock

    static func lockPath(of list: String) -> String { list + ".lock" }

    /// A descriptor that holds a share of the lock until it is closed; -1 and errno on failure.
    static func share(_ lockPath: String) -> Int32 {
        let lock = open(lockPath, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard lock >= 0 else { return -1 }
        if flock(lock, LOCK_SH | LOCK_NB) == 0 { return lock }
        let failure = errno
        close(lock)
        errno = failure
        return -1
    }

    private static func hasFreezers(_ lockPath: String) -> Bool {
        let lock = open(lockPath, O_RDWR | O_CLOEXEC)
        guard lock >= 0 else { return false }
        defer { close(lock) }
        return flock(lock, LOCK_EX | LOCK_NB) != 0
    }

    private static func waitForFreezers(_ lockPath: String) {
        let lock = open(lockPath, O_RDWR | O_CLOEXEC)
        guard lock >= 0 else { return }
        defer { close(lock) }
        // Whether they have gone is checked again afterwards.
        _ = LockWait(LOCK_EX, on: lock).wait(
            until: cl_now_nanoseconds() + UInt64(lateSeconds) * 1_000_000_000)
    }

    // -- the text of the list

    /// Mount points as the list holds them.
    static func text(of mountPoints: [[UInt8]]) -> [UInt8] {
        Array(mountPoints.map { OctalEscapes.added(to: $0) + [10] }.joined())
    }

    /// The mount points of a list, in the order of freezing.
    static func mountPoints(in text: [UInt8]) -> [[UInt8]] {
        text.split(separator: 10).map { OctalEscapes.removed(from: $0) }
    }
}
