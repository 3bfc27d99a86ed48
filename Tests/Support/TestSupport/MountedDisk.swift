import Foundation
import Glibc
import Synchronization

/// A filesystem of its own on a loop device, mounted: thawed and unmounted when the object goes,
/// and by `ExitCleanup` when the test process dies.
package final class MountedDisk: Sendable {
    /// Kinds that can be frozen.
    package enum Kind: String, CaseIterable, Sendable {
        case ext4, xfs

        /// The smallest size that mkfs takes.
        var byteCount: Int { self == .ext4 ? 32 << 20 : 320 << 20 }
    }

    /// Where it is mounted.
    package let path: String
    /// The block device it is on.
    package let device: String
    private let directory: TemporaryDirectory
    private let loop: LoopDevice?
    private let ticket: Int
    /// Writers that were waited for in vain: the kernel lets them end only when it is thawed.
    private let blocked = Mutex<[ChildProcess]>([])

    /// Makes one on a loop device of its own, over a sparse file or over `file`.
    package convenience init(_ kind: Kind = .ext4, over file: String? = nil) throws {
        let directory = try TemporaryDirectory()
        if file == nil {
            try makeSparseFile(directory.path("disk.img"), byteCount: kind.byteCount)
        }
        let loop = try LoopDevice(over: file ?? directory.path("disk.img"), sectorSize: 512)
        try self.init(kind, on: loop.path, loop: loop, directory: directory)
    }

    /// Makes one on a block device that is there.
    package convenience init(_ kind: Kind = .ext4, onDevice device: String) throws {
        try self.init(kind, on: device, loop: nil, directory: try TemporaryDirectory())
    }

    private init(
        _ kind: Kind, on device: String, loop: LoopDevice?, directory: TemporaryDirectory
    ) throws {
        self.device = device
        self.loop = loop
        self.directory = directory
        path = directory.path("mount")
        // lazy_itable_init=0: nothing is written behind the test's back.
        try Command.check(
            "mkfs.\(kind.rawValue)",
            kind == .ext4
                ? ["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", device]
                : ["-q", device])
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: false)
        ticket = ExitCleanup.shared.register(
            "fsfreeze --unfreeze \(path); umount --lazy \(path)")
        try Command.check("mount", [device, path])
    }

    deinit {
        // Mostly it is not frozen, which is what this says then.
        _ = try? Command.run("fsfreeze", ["--unfreeze", path], deadline: 60)
        blocked.withLock { $0.removeAll() }
        umount2(path, Int32(MNT_DETACH))
        ExitCleanup.shared.withdraw(ticket)
    }

    /// The path of `name` in it.
    package func path(_ name: String) -> String { path + "/" + name }

    /// A process that writes a file in it, which waits as long as it is frozen.
    package func writer() throws -> ChildProcess {
        try ChildProcess("/bin/sh", ["-c", "echo written > \(path("written")); echo done"])
    }

    /// Whether a file can be written in it within a while.
    package func isWritable(within seconds: Double = 30) throws -> Bool {
        let writer = try writer()
        do {
            return try writer.readLine(deadline: seconds) == "done"
        } catch is TestFailure {
            blocked.withLock { $0.append(writer) }
            return false
        }
    }
}

/// Filesystems can be made, mounted and frozen here.
package let canFreeze =
    canUseLoopDevices
    && ["mkfs.ext4", "mkfs.xfs", "fsfreeze", "mount"].allSatisfy { Command.exists($0) }
