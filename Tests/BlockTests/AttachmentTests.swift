import CTestSupport
import Foundation
import Glibc
import TestSupport
import Testing

/// How block devices come and go.
@Suite(.serialized, .needsBlockDevices)
struct `Attaching and detaching block devices` {
    private func harness(byteCount: Int = 64 * mebibyte) throws -> (BlockHarness, TestOrigin) {
        let origin = try TestOrigin(.sparseFile, byteCount: byteCount)
        return (try BlockHarness(attaching: ["disk": origin.path]), origin)
    }

    @Test func `fifty rounds leave loop devices, mounts and descriptors as they were`() throws {
        let (harness, _) = try harness()
        // The first one starts what serves all of them.
        try harness.command("block", "detach", try harness.attachBlock("disk"))
        let descriptors = try harness.service.openDescriptors()
        for round in 0..<50 {
            let block = try harness.attachBlock(
                "disk", round % 2 == 0 ? "--read-only" : "--temporary")
            let link = harness.service.directory.path("dev/disk")
            try harness.command("block", "detach", round % 3 == 0 ? link : block)
        }
        #expect(try harness.loopDevices().isEmpty)
        #expect(try harness.mounts().isEmpty)
        #expect(try FileManager.default.contentsOfDirectory(atPath: harness.mountDirectory) == [])
        // What fifty rounds leak is far more than what libdispatch opens for its first timer.
        let kept = try harness.service.descriptorsNotReturned(since: descriptors, spare: 10)
        #expect(kept == [])
    }

    @Test func `bytes written through NBD are read from the block device, and the other way round`()
        throws
    {
        let (harness, origin) = try harness()
        let client = try NBDClient(harness.service.address(), export: "disk")
        var generator = SeededGenerator.announced("both ways")
        let first = generator.bytes(mebibyte)
        let second = generator.bytes(3 * mebibyte + 512)
        try client.write(7 * 512, first)
        let block = try harness.attachBlock("disk")
        #expect(try readFile(block, 7 * 512..<7 * 512 + first.count) == first)
        let file = open(block, O_WRONLY | O_CLOEXEC)
        #expect(pwrite(file, second, second.count, off_t(20 * mebibyte + 1024)) == second.count)
        #expect(fsync(file) == 0)
        close(file)
        let place = 20 * mebibyte + 1024
        #expect(try client.read(UInt64(place), second.count) == second)
        #expect(try origin.read(place..<place + second.count) == second)
        try harness.command("block", "detach", block)
    }

    @Test func `unaligned requests of every length reach an image as they are`() throws {
        let (harness, _) = try harness(byteCount: 16 * mebibyte)
        try harness.command(
            "snapshot", "create", "--device", "disk", "--name", "s", "--storage", "memory:64M")
        let block = try harness.attachBlock("disk@s")
        var generator = SeededGenerator.announced("unaligned image")
        var model = [UInt8](repeating: 0, count: 16 * mebibyte)
        // Direct I/O of whole sectors: what the image sees is not aligned to its blocks.
        let file = open(block, O_RDWR | O_CLOEXEC | 0o40000)
        defer { close(file) }
        var memory: UnsafeMutableRawPointer?
        #expect(posix_memalign(&memory, 4096, 2 * mebibyte) == 0)
        let buffer = try #require(memory)
        defer { free(buffer) }
        for _ in 0..<scaled(2000, "unaligned requests") {
            let count = Int.random(in: 1...(3 * mebibyte / 2 / 512), using: &generator) * 512
            let place = Int.random(in: 0...(model.count - count) / 512, using: &generator) * 512
            let bytes = generator.bytes(count)
            bytes.withUnsafeBytes { buffer.copyMemory(from: $0.baseAddress!, byteCount: count) }
            #expect(pwrite(file, buffer, count, off_t(place)) == count)
            model.replaceSubrange(place..<place + count, with: bytes)
            let other = Int.random(in: 0...(model.count - count) / 512, using: &generator) * 512
            #expect(pread(file, buffer, count, off_t(other)) == count)
            // By memcmp: this comparison of bytes in Swift is not optimised in tests.
            let isRight = model.withUnsafeBytes { memcmp($0.baseAddress! + other, buffer, count) }
            #expect(isRight == 0, "at \(other), \(count)")
        }
        #expect(try readFile(block, 0..<model.count) == model)
    }

    @Test func `a device in use is busy and keeps working`() throws {
        let (harness, _) = try harness()
        let block = try harness.attachBlock("disk")
        // An open descriptor is enough, a mount is not needed.
        let file = open(block, O_RDONLY | O_CLOEXEC)
        let refusal = try harness.outcome("block", "detach", block)
        #expect(refusal.status == 4)
        #expect(refusal.output.isEmpty)
        #expect(refusal.diagnostics.contains(block), "\(refusal.diagnostics)")
        let device = try harness.outcome("device", "detach", "disk")
        #expect(device.status == 4)
        #expect(device.diagnostics.contains("dev/disk"), "\(device.diagnostics)")
        let forced = try harness.outcome("device", "detach", "disk", "--force")
        #expect(forced.status == 4)
        #expect(forced.diagnostics.contains("open in process"), "\(forced.diagnostics)")
        let twice = try harness.outcome("block", "attach", "disk")
        #expect(twice.status == 4)
        #expect(twice.diagnostics.contains(block), "\(twice.diagnostics)")
        var byte: UInt8 = 1
        #expect(pread(file, &byte, 1, 0) == 1)
        close(file)
        // The refusal left no plan behind to take it away when its last user leaves.
        #expect(try harness.loopDevices() == [block])
        try harness.command("block", "detach", block)
        try harness.command("device", "detach", "disk")
    }

    @Test func `only --force-lose-writes takes a device away from under a mount`()
        throws
    {
        let (harness, _) = try harness(byteCount: Filesystem.byteCount)
        let block = try harness.attachBlock("disk")
        try Filesystem.ext4.make(on: block)
        let mount = try Mount(block)
        let refusal = try harness.outcome("device", "detach", "disk", "--force")
        #expect(refusal.status == 4)
        #expect(refusal.diagnostics.contains("mounted at"), "\(refusal.diagnostics)")
        try harness.command("device", "detach", "disk", "--force-lose-writes")
        #expect(throws: (any Error).self) {
            var files = FileLoad(in: mount.path, seed: 1)
            try files.writeFiles(1)
        }
        try mount.unmount(deadline: 30)
        #expect(try harness.loopDevices().isEmpty)
        #expect(try harness.mounts().isEmpty)
    }

    @Test func `a device that grows is larger at once, and so can its filesystem be`() throws {
        let files = try TemporaryDirectory()
        let disk = files.path("disk")
        try makeSparseFile(disk, byteCount: 64 << 20)
        let harness = try BlockHarness(attaching: ["a": disk])
        let path = try harness.attachBlock("a")
        try Command.check("mkfs.ext4", ["-q", path])
        let mount = try Mount(path)
        #expect(truncate(disk, 128 << 20) == 0)
        try harness.command("device", "resize", "a")
        let size = try Command.check("blockdev", ["--getsize64", path])
        #expect(size == "\(128 << 20)\n")
        // Growing a mounted filesystem needs CAP_SYS_RESOURCE, which not every machine gives.
        try mount.unmount()
        try Command.check("e2fsck", ["-fp", path])
        try Command.check("resize2fs", [path])
        let larger = try Mount(path)
        try Command.check(
            "dd", ["if=/dev/zero", "of=\(larger.path)/large", "bs=1M", "count=80", "status=none"])
        try larger.unmount()
        try Command.check("e2fsck", ["-fn", path])
        try harness.command("block", "detach", path)
    }

    @Test func `a device that shrinks has no bytes beyond its end, and serves those before it`()
        throws
    {
        let files = try TemporaryDirectory()
        let disk = files.path("disk")
        try makeSparseFile(disk, byteCount: 64 << 20)
        let harness = try BlockHarness(attaching: ["a": disk])
        let path = try harness.attachBlock("a")
        let name = path.dropFirst("/dev/".count)
        let backing = try String(
            contentsOfFile: "/sys/block/\(name)/loop/backing_file", encoding: .utf8)
        let file = open(
            backing.trimmingCharacters(in: .newlines), O_RDWR | O_CLOEXEC)
        try #require(file >= 0, "\(backing): errno \(errno)")
        defer { close(file) }
        let block = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 4096)
        defer { block.deallocate() }
        block.initializeMemory(as: UInt8.self, repeating: 7, count: 4096)
        #expect(pwrite(file, block, 4096, 48 << 20) == 4096)
        #expect(pwrite(file, block, 4096, 16 << 20) == 4096)
        #expect(stillpoint_test_seek_data(file, 40 << 20) == 48 << 20)
        #expect(truncate(disk, 32 << 20) == 0)
        try harness.command("device", "resize", "a")
        #expect(try Command.check("blockdev", ["--getsize64", path]) == "\(32 << 20)\n")
        // The kernel may remember the former end for a while and ask for what lies beyond.
        #expect(stillpoint_test_seek_data(file, 40 << 20) == -1 && errno == ENXIO)
        #expect(pread(file, block, 4096, 48 << 20) <= 0)
        #expect(pwrite(file, block, 4096, 48 << 20) == -1)
        #expect(stillpoint_test_seek_data(file, 8 << 20) == 16 << 20)
        #expect(pread(file, block, 4096, 16 << 20) == 4096)
        #expect(block.load(as: UInt8.self) == 7)
        try harness.command("block", "detach", path)
    }

    @Test func `wrong targets are refused with a reason`() throws {
        let (harness, _) = try harness()
        let cases: [(arguments: [String], status: Int32, word: String)] = [
            (["attach", "nothing"], 3, "nothing"), (["attach", "disk@never"], 3, "never"),
            (["attach", "@s"], 2, "DEVICE"), (["attach", "disk@"], 2, "DEVICE"),
            (["attach", "a/b"], 3, "a/b"), (["detach", "/dev/loop9999"], 3, "loop9999"),
        ]
        for (arguments, status, word) in cases {
            let outcome = try Command.run(
                TestService.binary,
                ["block"] + arguments + ["--control", harness.service.controlPath])
            #expect(outcome.status == status, "\(arguments): \(outcome.diagnostics)")
            #expect(outcome.output.isEmpty)
            #expect(outcome.diagnostics.contains(word), "\(arguments): \(outcome.diagnostics)")
        }
        #expect(try harness.command("block", "list", "--json") == "[\n\n]")
    }

    @Test func `storage and origins above one of our own devices are refused`() throws {
        let (harness, _) = try harness(byteCount: Filesystem.byteCount)
        let other = try TestOrigin(.sparseFile, byteCount: mebibyte)
        try harness.command("device", "attach", "other", other.path)
        let block = try harness.attachBlock("disk")
        let raw = try harness.outcome("device", "attach", "self", block)
        #expect(raw.status == 1, "\(raw.diagnostics)")
        try Filesystem.ext4.make(on: block)
        let mount = try Mount(block)
        let inside = mount.path + "/inside.img"
        try makeSparseFile(inside, byteCount: mebibyte)
        let origin = try harness.outcome("device", "attach", "inside", inside)
        #expect(origin.status == 1)
        #expect(origin.diagnostics.contains("wait for themselves"), "\(origin.diagnostics)")
        let storage = try harness.outcome(
            "snapshot", "create", "--device", "other", "--storage", mount.path)
        #expect(storage.status == 1)
        #expect(storage.diagnostics.contains(mount.path), "\(storage.diagnostics)")
        try mount.unmount()
    }
}
