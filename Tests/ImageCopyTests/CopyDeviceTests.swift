import Foundation
import Glibc
import TestSupport
import Testing

/// Targets that are block devices or in use, and what must never be taken for the copy.
@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: canUseLoopDevices, "loop devices need root"))
struct `Copies onto block devices` {
    private func harness() throws -> CopyHarness {
        let harness = try CopyHarness(byteCount: 16 * mebibyte)
        var generator = SeededGenerator.announced("copies onto block devices")
        try harness.change(8, &generator)
        try harness.take("a")
        return harness
    }

    private func disk(_ name: String, _ harness: CopyHarness) throws -> LoopDevice {
        let path = harness.files.path(name)
        if access(path, F_OK) != 0 { try makeSparseFile(path, byteCount: harness.byteCount) }
        return try LoopDevice(over: path, sectorSize: 512)
    }

    @Test func `never take another disk under the same path for the copy`() throws {
        let harness = try harness()
        try makeSparseFile(harness.files.path("first"), byteCount: harness.byteCount)
        let node = try NumberedLoopDevice(over: harness.files.path("first"))
        try harness.command("copy", "disk@a", node.path)
        try node.leave()
        try makeSparseFile(harness.files.path("other"), byteCount: harness.byteCount)
        try Command.check("mkfs.ext4", ["-q", "-F", harness.files.path("other")])
        let before = try readFile(harness.files.path("other"), 0..<harness.byteCount)
        try node.come(over: harness.files.path("other"))
        try harness.write([UInt8](repeating: 3, count: 4096), at: mebibyte)
        try harness.take("b")
        try harness.expectRefusal(5, "full copy", ["copy", "disk@b", node.path, "--since", "a"])
        try harness.expectRefusal(4, "ext4", ["copy", "disk@b", node.path])
        #expect(try readFile(harness.files.path("other"), 0..<harness.byteCount) == before)
    }

    @Test func `know the disk again under another path`() throws {
        let harness = try harness()
        do {
            let disk = try disk("target", harness)
            try harness.command("copy", "disk@a", disk.path)
        }
        // Whatever comes first now gets the path that the disk had.
        try makeSparseFile(harness.files.path("stranger"), byteCount: mebibyte)
        let stranger = try LoopDevice(over: harness.files.path("stranger"), sectorSize: 512)
        let disk = try disk("target", harness)
        #expect(disk.path != stranger.path)
        try harness.write([UInt8](repeating: 3, count: 4096), at: mebibyte)
        try harness.take("b")
        try harness.command("copy", "disk@b", disk.path, "--since", "a")
        #expect(try readFile(disk.path, 0..<harness.byteCount) == harness.contents)
    }

    @Test func `notice who wrote to them, by the node or beneath it`() throws {
        let harness = try harness()
        let disk = try disk("target", harness)
        try harness.command("copy", "disk@a", disk.path)
        try harness.take("b")
        try write(5, to: disk.path, at: 9 * mebibyte)
        try harness.expectRefusal(5, "written", ["copy", "disk@b", disk.path, "--since", "a"])
        try harness.command("copy", "disk@a", disk.path, "--force")
        try write(5, to: harness.files.path("target"), at: 9 * mebibyte)
        try harness.expectRefusal(5, "written", ["copy", "disk@b", disk.path, "--since", "a"])
        try harness.expectRefusal(4, "changed since", ["copy", "disk@b", disk.path])
    }

    private func write(_ value: UInt8, to path: String, at offset: Int) throws {
        let file = open(path, O_WRONLY | O_CLOEXEC)
        defer { close(file) }
        guard pwrite(file, [value], 1, off_t(offset)) == 1, fsync(file) == 0 else {
            throw TestFailure("cannot write \(path)")
        }
    }

    @Test func `keep their record where the user says`() throws {
        let harness = try harness()
        let disk = try disk("target", harness)
        let record = harness.files.path("record")
        try harness.command("copy", "disk@a", disk.path, "--record", record)
        #expect(access(record, F_OK) == 0)
        try harness.write([UInt8](repeating: 3, count: 4096), at: mebibyte)
        try harness.take("b")
        try harness.expectRefusal(5, "no record", ["copy", "disk@b", disk.path, "--since", "a"])
        try harness.command(
            "copy", "disk@b", disk.path, "--since", "a", "--record", record)
        #expect(try readFile(disk.path, 0..<harness.byteCount) == harness.contents)
    }

    @Test func `refuse a disk that holds data of no known kind`() throws {
        let harness = try harness()
        var generator = SeededGenerator.announced("unknown data")
        try makeRandomFile(
            harness.files.path("full"), byteCount: harness.byteCount, generator: &generator)
        let before = try readFile(harness.files.path("full"), 0..<harness.byteCount)
        let disk = try disk("full", harness)
        try harness.expectRefusal(4, "not known", ["copy", "disk@a", disk.path])
        #expect(try readFile(disk.path, 0..<harness.byteCount) == before)
    }

    @Test func `refuse one that is too small`() throws {
        let harness = try harness()
        try makeSparseFile(harness.files.path("small"), byteCount: harness.byteCount - 4096)
        let disk = try disk("small", harness)
        for force in [[], ["--force"]] {
            try harness.expectRefusal(1, "larger", ["copy", "disk@a", disk.path] + force)
        }
    }

    @Test(.enabled(if: canUseFUSE, "it needs FUSE"))
    func `refuse what the service shows, and what lies on it`() throws {
        let harness = try harness()
        let block = try harness.command("block", "attach", "disk")
            .trimmingCharacters(in: .whitespacesAndNewlines)
        try harness.expectRefusal(4, "--force", ["copy", "disk@a", block])
        let image = try harness.command("block", "attach", "disk@a")
            .trimmingCharacters(in: .whitespacesAndNewlines)
        try harness.expectRefusal(4, "disk@a", ["copy", "disk@a", image])
        // A file in a filesystem on it, and a loop device over that file.
        let mounted = try MountedDisk(onDevice: block)
        try harness.expectRefusal(4, block, ["copy", "disk@a", block])
        try harness.expectRefusal(4, block, ["copy", "disk@a", mounted.path("copy")])
        #expect(access(mounted.path("copy"), F_OK) != 0)
        try makeSparseFile(mounted.path("file"), byteCount: mebibyte)
        let loop = try LoopDevice(over: mounted.path("file"), sectorSize: 512)
        try harness.expectRefusal(4, block, ["copy", "disk@a", loop.path])
    }

    @Test func `refuse an origin in any guise`() throws {
        let harness = try harness()
        try harness.expectRefusal(
            4, "origin of device disk",
            ["copy", "disk@a", harness.files.path("disk"), "--force"])
        #expect(link(harness.files.path("disk"), harness.files.path("link")) == 0)
        try harness.expectRefusal(
            4, "origin of device disk", ["copy", "disk@a", harness.files.path("link")])
        let loop = try LoopDevice(over: harness.files.path("disk"), sectorSize: 512)
        try harness.expectRefusal(
            4, "origin of device disk", ["copy", "disk@a", loop.path, "--force"])
    }

    @Test func `refuse a file that others use: under a loop device, in QEMU`() throws {
        let harness = try harness()
        try harness.copy("a")
        try harness.take("b")
        do {
            let loop = try LoopDevice(over: harness.copyPath, sectorSize: 512)
            try harness.expectRefusal(4, loop.path, harness.copyArguments("b", since: "a"))
        }
        try harness.expectCopyHolds("a")
        guard Command.exists("qemu-nbd") else {
            print("skipped: qemu-nbd is not installed")
            return
        }
        let socket = harness.files.path("qemu.sock")
        let server = try ChildProcess(
            "/usr/bin/env",
            ["qemu-nbd", "--persistent", "--format=raw", "--socket=\(socket)", harness.copyPath])
        defer { server.send(signal: SIGKILL) }
        try waitUntil("qemu-nbd listens") { access(socket, F_OK) == 0 }
        try harness.expectRefusal(4, "QEMU", harness.copyArguments("b", since: "a"))
    }
}

/// Waits for something that no event tells.
func waitUntil(_ what: String, _ isTrue: () throws -> Bool) throws {
    let end = monotonicSeconds() + 60
    while !(try isTrue()) {
        guard monotonicSeconds() < end else { throw TestFailure("in vain: \(what)") }
        sched_yield()
    }
}
