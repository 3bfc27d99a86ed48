import Foundation
import Glibc
import TestSupport
import Testing

private let mebibyte = 1 << 20

/// Nobody writes an origin behind the service's back, as far as it can be prevented.
@Suite(
    .serialized, .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Exclusive use` {
    @Test(.enabled(if: Command.exists("qemu-img"), "needs qemu-img (qemu-utils)"))
    func `QEMU's programs refuse an image that is being served`() throws {
        let origin = try TestOrigin(.sparseFile, byteCount: 8 * mebibyte)
        let service = try TestService(attaching: ["disk": origin.path])
        let other = try TemporaryDirectory()
        let source = other.path("source")
        try makeSparseFile(source, byteCount: 8 * mebibyte)
        let convert = try Command.run(
            "qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", source, origin.path])
        #expect(convert.status != 0)
        #expect(convert.diagnostics.contains("lock"), "\(convert.diagnostics)")
        let resize = try Command.run("qemu-img", ["resize", "-f", "raw", origin.path, "16M"])
        #expect(resize.status != 0)
        let write = try Command.run("qemu-io", ["-f", "raw", "-c", "write 0 4k", origin.path])
        #expect(write.status != 0)
        let serve = try Command.run(
            "qemu-nbd",
            ["-f", "raw", "--fork", "-k", other.path("socket"), "-x", "disk", origin.path])
        #expect(serve.status != 0)
        // Without the service all of that works.
        #expect(try service.stop() == .exited(0))
        try Command.check("qemu-io", ["-f", "raw", "-c", "write 0 4k", origin.path])
    }

    @Test(.enabled(if: Command.exists("qemu-nbd"), "needs qemu-nbd (qemu-utils)"))
    func `an image that QEMU has open is refused`() throws {
        let origin = try TestOrigin(.sparseFile, byteCount: 8 * mebibyte)
        let other = try TemporaryDirectory()
        // Waits for a line after opening the image for writing, so it is open for certain.
        let holder = try ChildProcess(
            "qemu-io", ["-f", "raw", origin.path], withInput: true)
        try holder.writeLine("write -P 1 0 4k")
        guard try holder.readLine(deadline: 60) != nil else { throw TestFailure("no qemu-io") }
        let refusal = try TestService.refusal(attaching: ["disk": origin.path])
        #expect(refusal.status != 0)
        #expect(refusal.diagnostics.contains(origin.path), "\(refusal.diagnostics)")
        holder.closeInput()
        try holder.wait(deadline: 60)
        _ = try TestService(attaching: ["disk": origin.path])
        withExtendedLifetime(other) {}
    }

    @Test func `a second service on the same origin is refused`() throws {
        let origin = try TestOrigin(.sparseFile, byteCount: 8 * mebibyte)
        let service = try TestService(attaching: ["disk": origin.path])
        let refusal = try TestService.refusal(attaching: ["again": origin.path])
        #expect(refusal.status != 0)
        #expect(refusal.diagnostics.contains(origin.path), "\(refusal.diagnostics)")
        let client = try NBDClient(service.address(), export: "disk")
        #expect(try client.read(0, 512).count == 512)
    }

    @Test func `one origin under two names is refused, by another path too`() throws {
        let origin = try TestOrigin(.sparseFile, byteCount: mebibyte)
        let links = try TemporaryDirectory()
        let link = links.path("link")
        try FileManager.default.createSymbolicLink(
            atPath: link, withDestinationPath: origin.path)
        for second in [origin.path, link] {
            let refusal = try TestService.refusal(attaching: ["a": origin.path, "b": second])
            #expect(refusal.status != 0)
            #expect(!refusal.diagnostics.isEmpty)
        }
    }

    @Test(.enabled(if: canUseLoopDevices, "loop devices need root"))
    func `a file behind a loop device is refused, the loop device is not`() throws {
        let files = try TemporaryDirectory()
        let file = files.path("disk.img")
        try makeSparseFile(file, byteCount: 8 * mebibyte)
        let loop = try LoopDevice(over: file, sectorSize: 512)
        let refusal = try TestService.refusal(attaching: ["disk": file])
        #expect(refusal.status != 0)
        #expect(refusal.diagnostics.contains("loop"), "\(refusal.diagnostics)")
        let service = try TestService(attaching: ["disk": loop.path])
        // Exclusively: nobody else may claim the block device.
        let second = try TestService.refusal(attaching: ["disk": loop.path])
        #expect(second.status != 0)
        #expect(try service.stop() == .exited(0))
    }

    @Test(.enabled(if: canUseLoopDevices, "loop devices need root"))
    func `a partition and its whole disk are not served together`() throws {
        let files = try TemporaryDirectory()
        let file = files.path("disk.img")
        try makeSparseFile(file, byteCount: 16 * mebibyte)
        try writePartitionTable(file, partitions: [(2048, 8192), (10240, 8192)])
        let disk = try LoopDevice(over: file, sectorSize: 512, withPartitions: true)
        let first = disk.path + "p1"
        let second = disk.path + "p2"
        try #require(FileManager.default.fileExists(atPath: first))
        // In one service, in both orders, and in two.
        for pair in [["a": disk.path, "b": first], ["a": first, "b": disk.path]] {
            let refusal = try TestService.refusal(attaching: pair)
            #expect(refusal.status != 0)
            #expect(!refusal.diagnostics.isEmpty)
        }
        let wholeDisk = try TestService(attaching: ["disk": disk.path])
        #expect(try TestService.refusal(attaching: ["part": first]).status != 0)
        #expect(try wholeDisk.stop() == .exited(0))
        // Two partitions of one disk are fine; the disk below them is not.
        let partitions = try TestService(attaching: ["a": first, "b": second])
        #expect(try TestService.refusal(attaching: ["disk": disk.path]).status != 0)
        let client = try NBDClient(partitions.address(), export: "b")
        #expect(client.byteCount == 4 << 20)
    }

    @Test(
        .enabled(if: canUseLoopDevices, "mounting needs root"),
        .enabled(if: Command.exists("mkfs.ext4"), "needs mkfs.ext4 (e2fsprogs)"))
    func `a mounted block device is refused`() throws {
        let origin = try TestOrigin(.loop512, byteCount: 16 * mebibyte)
        try Command.check("mkfs.ext4", ["-q", origin.path])
        let files = try TemporaryDirectory()
        let mountPoint = files.path("mount")
        try FileManager.default.createDirectory(
            atPath: mountPoint, withIntermediateDirectories: false)
        try Command.check("mount", [origin.path, mountPoint])
        let ticket = ExitCleanup.shared.register("umount --lazy \(mountPoint)")
        defer {
            _ = try? Command.run("umount", [mountPoint])
            ExitCleanup.shared.withdraw(ticket)
        }
        let refusal = try TestService.refusal(attaching: ["disk": origin.path])
        #expect(refusal.status != 0)
        #expect(refusal.diagnostics.contains(origin.path), "\(refusal.diagnostics)")
    }

    @Test func `a file whose size is no multiple of a sector is refused`() throws {
        let files = try TemporaryDirectory()
        for byteCount in [1, 511, 4097, mebibyte + 100] {
            let file = files.path("disk-\(byteCount).img")
            try makeSparseFile(file, byteCount: byteCount)
            let refusal = try TestService.refusal(attaching: ["disk": file])
            #expect(refusal.status != 0)
            #expect(refusal.diagnostics.contains(file), "\(refusal.diagnostics)")
        }
    }

    @Test func `what is no disk is refused with a reason`() throws {
        let files = try TemporaryDirectory()
        for path in [files.path("missing"), files.root, "/dev/null", "/dev/tty"] {
            let refusal = try TestService.refusal(attaching: ["disk": path])
            #expect(refusal.status != 0)
            #expect(refusal.diagnostics.contains(path), "\(refusal.diagnostics)")
        }
    }
}

/// Writes a DOS partition table with partitions given by first sector and sector count.
private func writePartitionTable(
    _ path: String, partitions: [(first: UInt32, count: UInt32)]
) throws {
    var sector = [UInt8](repeating: 0, count: 512)
    for (index, partition) in partitions.enumerated() {
        let at = 446 + index * 16
        sector[at + 4] = 0x83
        for byte in 0..<4 {
            sector[at + 8 + byte] = UInt8(truncatingIfNeeded: partition.first >> (8 * byte))
            sector[at + 12 + byte] = UInt8(truncatingIfNeeded: partition.count >> (8 * byte))
        }
    }
    sector[510] = 0x55
    sector[511] = 0xaa
    let descriptor = open(path, O_WRONLY | O_CLOEXEC)
    defer { close(descriptor) }
    guard pwrite(descriptor, sector, 512, 0) == 512 else { throw TestFailure("pwrite: \(errno)") }
}
