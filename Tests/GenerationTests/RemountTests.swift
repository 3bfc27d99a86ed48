import Foundation
import Glibc
import TestSupport
import Testing

/// Origins on a filesystem that is unmounted and mounted again.
@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: canUseLoopDevices, "needs loop devices"),
    .enabled(if: Command.exists("mkfs.btrfs"), "needs btrfs-progs"))
struct `An origin whose filesystem is mounted again` {
    @Test(arguments: ["btrfs", "ext4"])
    func `keeps its history although the filesystem's device number changes`(
        kind: String
    ) throws {
        let disk = try RemountedDisk(kind)
        let harness = try GenerationHarness()
        try harness.done(["device", "attach", "vm", try disk.origin(in: ".")])
        try harness.checkpoint("base")
        try harness.write(1, block: 3)
        try harness.stop()
        let before = try disk.deviceNumber
        try disk.mountAgain()
        #expect(try disk.deviceNumber != before)
        try harness.service.restart()
        try harness.expectContinued()
        #expect(try harness.changedBlocks(since: "base") == [3])
    }

    @Test func `is another one in a snapshot of its btrfs subvolume`() throws {
        let disk = try RemountedDisk("btrfs")
        let harness = try GenerationHarness()
        try Command.check("btrfs", ["subvolume", "create", disk.path + "/live"])
        let path = try disk.origin(in: "live")
        try harness.done(["device", "attach", "vm", path])
        try harness.checkpoint("base")
        try harness.write(1, block: 3)
        try harness.stop()
        // Inode, times and size of the origin are the same in the snapshot.
        try Command.check(
            "btrfs", ["subvolume", "snapshot", disk.path + "/live", disk.path + "/copy"])
        #expect(rename(disk.path + "/live", disk.path + "/former") == 0)
        #expect(rename(disk.path + "/copy", disk.path + "/live") == 0)
        try harness.service.restart()
        #expect(try harness.history().reason.contains("another file"))
        #expect(try harness.status(ofChangesSince: "base") == 5)
    }
}

/// A filesystem that gets another device number with each mount.
private final class RemountedDisk {
    let path: String
    private let directory: TemporaryDirectory
    private var loops: [LoopDevice] = []
    private let holder: String
    private let ticket: Int

    init(_ kind: String) throws {
        directory = try TemporaryDirectory()
        path = directory.path("mount")
        holder = directory.path("holder")
        let image = directory.path("disk.img")
        try makeSparseFile(image, byteCount: 256 << 20)
        try Command.check("mkfs.\(kind)", ["-q", image])
        for folder in [path, holder] {
            try FileManager.default.createDirectory(
                atPath: folder, withIntermediateDirectories: false)
        }
        ticket = ExitCleanup.shared.register("umount --lazy \(path); umount --lazy \(holder)")
        loops.append(try LoopDevice(over: image, sectorSize: 512))
        try Command.check("mount", [loops[0].path, path])
    }

    deinit {
        umount2(path, Int32(MNT_DETACH))
        umount2(holder, Int32(MNT_DETACH))
        ExitCleanup.shared.withdraw(ticket)
    }

    /// Makes a file to attach.
    func origin(in folder: String) throws -> String {
        let file = "\(path)/\(folder)/disk.img"
        try makeSparseFile(file, byteCount: 16 << 20)
        return file
    }

    var deviceNumber: UInt64 {
        get throws {
            var facts = stat()
            guard stat(path, &facts) == 0 else { throw TestFailure("stat \(path): \(errno)") }
            return UInt64(facts.st_dev)
        }
    }

    /// Mounts it from another loop device, and lets another filesystem have the number that the
    /// kernel would give it again.
    func mountAgain() throws {
        try Command.check("umount", [path])
        try Command.check("mount", ["-t", "tmpfs", "none", holder])
        // btrfs knows a filesystem by its UUID: the former device would be taken for it.
        let former = loops.removeFirst()
        let next = try LoopDevice(over: directory.path("disk.img"), sectorSize: 512)
        withExtendedLifetime(former) {}
        loops.append(next)
        try Command.check("mount", [next.path, path])
    }
}
