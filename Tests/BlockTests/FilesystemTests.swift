import Foundation
import TestSupport
import Testing

/// A device under a filesystem.
private struct Disk: Sendable, CustomStringConvertible {
    let kind: OriginKind
    let sectorSize: Int
    let filesystem: Filesystem

    var description: String { "\(filesystem) on a \(kind), sectors of \(sectorSize)" }

    static let all: [Disk] = Filesystem.allCases.flatMap { filesystem in
        [
            Disk(kind: .sparseFile, sectorSize: 512, filesystem: filesystem),
            Disk(kind: .sparseFile, sectorSize: 4096, filesystem: filesystem),
            Disk(kind: .loop512, sectorSize: 512, filesystem: filesystem),
            Disk(kind: .loop4096, sectorSize: 4096, filesystem: filesystem),
        ]
    }
}

/// Filesystems on block devices.
@Suite(.needsBlockDevices)
struct `Filesystems on block devices` {
    @Test(arguments: Disk.all)
    fileprivate func `a filesystem under load is clean afterwards and gives its space back`(
        disk: Disk
    ) throws {
        let origin = try TestOrigin(disk.kind, byteCount: Filesystem.byteCount)
        let harness = try BlockHarness()
        try harness.command(
            "device", "attach", "disk", origin.path, "--sector-size", "\(disk.sectorSize)")
        let block = try harness.attachBlock("disk")
        #expect(
            try Command.check("blockdev", ["--getss", "--getsize64", block])
                == "\(disk.sectorSize)\n\(Filesystem.byteCount)\n")
        try disk.filesystem.make(on: block)
        let mount = try Mount(block)
        let seconds = loadSeconds("\(disk)", soak: 60, otherwise: 3)
        var files = FileLoad(
            in: mount.path, seed: SeededGenerator.announced("\(disk)").seed)
        let verified = Background { try Self.verify(in: mount.path, seconds: seconds) }
        try files.run(seconds: Double(seconds))
        try verified.value()
        #expect(files.operationCount > 0)
        try mount.unmount()
        try disk.filesystem.check(block)

        let again = try Mount(block)
        files.root = again.path
        try files.checkAll(in: again.path)
        try Self.trim(again.path, files: &files, origin: origin)
        try again.unmount()
        try disk.filesystem.check(block)
        try harness.command("block", "detach", block)
    }

    /// Writes random blocks with checksums and reads them back, through the filesystem.
    private static func verify(in folder: String, seconds: Int) throws {
        try Command.check(
            "fio",
            [
                "--name=verify", "--directory=\(folder)", "--size=48M", "--rw=randrw",
                "--bsrange=4k-128k", "--blockalign=4k", "--ioengine=libaio", "--direct=1",
                "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0",
                "--time_based",
                "--runtime=\(seconds)",
            ], deadline: Double(seconds) + 120)
    }

    /// What the filesystem frees is free on the origin, and read as zeroes.
    private static func trim(
        _ folder: String, files: inout FileLoad, origin: TestOrigin
    ) throws {
        let filler = folder + "/filler"
        try Command.check(
            "dd", ["if=/dev/urandom", "of=\(filler)", "bs=1M", "count=64", "conv=fsync"])
        let before = try origin.allocatedByteCount()
        try FileManager.default.removeItem(atPath: filler)
        try files.deleteAll()
        // XFS frees what a removed file held in the background, and trims only what is free.
        let end = monotonicSeconds() + 60
        var freed = 0
        while freed < 60 * mebibyte, monotonicSeconds() < end {
            try Command.check("sync", ["-f", folder])
            try Command.check("fstrim", [folder])
            freed = before - (try origin.allocatedByteCount())
        }
        #expect(
            freed >= 60 * mebibyte, "fstrim freed \(freed) bytes of 64 MiB and some files")
    }

    @Test func `discards reach the origin while a snapshot is held, and the image keeps the data`()
        throws
    {
        let origin = try TestOrigin(.sparseFile, byteCount: Filesystem.byteCount)
        let harness = try BlockHarness(attaching: ["disk": origin.path])
        let block = try harness.attachBlock("disk")
        try Filesystem.ext4.make(on: block)
        let mount = try Mount(block)
        var files = FileLoad(in: mount.path, seed: SeededGenerator.announced("trim").seed)
        try files.writeFiles(60)
        try Command.check("sync", ["-f", mount.path])
        let inSnapshot = files
        try harness.command(
            "snapshot", "create", "--device", "disk", "--name", "s", "--storage", "memory:256M")
        let before = try allocatedByteCount(origin.path)
        try files.deleteAll()
        try Command.check("sync", ["-f", mount.path])
        try Command.check("fstrim", [mount.path])
        let freed = before - (try allocatedByteCount(origin.path))
        #expect(freed > 8 * mebibyte, "fstrim freed \(freed) bytes while a snapshot was held")
        let image = try Mount(try harness.attachBlock("disk@s"))
        try inSnapshot.checkAll(in: image.path)
        try image.unmount()
        try mount.unmount()
        try Filesystem.ext4.check(block)
    }

    @Test func `a partitioned disk shows its partitions when asked`() throws {
        let origin = try TestOrigin(.sparseFile, byteCount: Filesystem.byteCount)
        let harness = try BlockHarness(attaching: ["disk": origin.path])
        try Self.partition(origin.path, in: harness)
        let plain = try harness.attachBlock("disk")
        #expect(!FileManager.default.fileExists(atPath: plain + "p1"))
        try harness.command("block", "detach", plain)

        let block = try harness.attachBlock("disk", "--partitions")
        for filesystem in [Filesystem.ext4, .btrfs] {
            let part = block + (filesystem == .ext4 ? "p1" : "p2")
            try filesystem.make(on: part)
            let mount = try Mount(part)
            var files = FileLoad(in: mount.path, seed: 1)
            try files.writeFiles(10)
            let refusal = try harness.outcome("block", "detach", block)
            #expect(refusal.status == 4, "\(refusal.diagnostics)")
            try mount.unmount()
            try filesystem.check(part)
        }
        try harness.command("block", "detach", block)
        #expect(!FileManager.default.fileExists(atPath: block + "p1"))
    }

    private static func partition(_ path: String, in harness: BlockHarness) throws {
        try harness.command("device", "detach", "disk")
        let table = harness.service.directory.path("table")
        try "label: gpt\n,200M\n,\n".write(toFile: table, atomically: true, encoding: .utf8)
        try Command.check("sh", ["-c", "sfdisk -q \(path) < \(table)"])
        try harness.command("device", "attach", "disk", path)
    }
}

extension TestOrigin {
    /// Bytes allocated to the file that is the origin or backs it.
    func allocatedByteCount() throws -> Int {
        guard kind.isBlockDevice else { return try BlockTests.allocatedByteCount(path) }
        let name = (path as NSString).lastPathComponent
        let file = try String(
            contentsOfFile: "/sys/block/\(name)/loop/backing_file", encoding: .utf8)
        return try BlockTests.allocatedByteCount(file.trimmingCharacters(in: .newlines))
    }
}
