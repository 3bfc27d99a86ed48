import Foundation
import Glibc
import TestSupport
import Testing

private let mebibyte = 1 << 20

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `A snapshot that cannot be had` {
    @Test(.enabled(if: canUseFUSE, "needs /dev/fuse"))
    func `is called off when writers would wait too long, with nothing changed`() throws {
        let filesystem = try PowerCutFilesystem(byteCount: 4 * mebibyte)
        let harness = try ControlHarness(attaching: ["a": filesystem.diskPath])
        try harness.done("snapshot", "create", "--device", "a", "--name", "p", "--prepare")
        try filesystem.delay("write", milliseconds: 6000)
        let writer = try NBDClient(.unix(path: harness.service.socketPath), export: "a")
        try writer.send(
            NBDRequest(
                .write, cookie: 1, length: 4096, payload: [UInt8](repeating: 3, count: 4096)))
        // Answered at once, and requests are taken in order: then the write is under way.
        try writer.send(NBDRequest(.cache, cookie: 2, length: 4096))
        #expect(try writer.receiveChunk().cookie == 2)
        for arguments in [["create", "--device", "a", "--name", "s"], ["take", "p"]] {
            let outcome = try Command.run(
                TestService.binary,
                ["snapshot"] + arguments + ["--control", harness.service.controlPath])
            #expect(outcome.status == 4)
            #expect(
                outcome.diagnostics.contains(
                    "writers would have waited longer than 1 s; nothing was changed"))
        }
        #expect(try harness.snapshotNames() == ["p"])
        #expect(try harness.exportNames() == ["a"])
        #expect(try harness.object("device", "show", "a")["epoch"] as? Int == 1)
        let reply = try writer.receiveChunk()
        #expect(reply.cookie == 1 && reply.error == nil)
        try filesystem.clearFaults()
        #expect(try harness.object("snapshot", "take", "p")["state"] as? String == "held")
        #expect(try harness.unnamedFileCount() == 1)
    }

    @Test(.enabled(if: isRoot, "needs the right to mount"))
    func `is refused with 507 when there is no room for its storage`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let full = try SmallFilesystem(byteCount: 2 * mebibyte)
        let bytes = [UInt8](repeating: 1, count: 2 * mebibyte - (64 << 10))
        let file = full.path + "/x"
        try #require(FileManager.default.createFile(atPath: file, contents: Data(bytes)))
        let answer = try harness.http(
            "POST", "/v1/snapshots", body: "{\"devices\":[\"a\"],\"storage\":[\"\(full.path)\"]}")
        #expect(answer.status == 507)
        let error = try #require(answer.document["error"] as? [String: Any])
        #expect(error["code"] as? String == "no_space")
        #expect(
            try harness.command("snapshot", "create", "--device", "a", "--storage", full.path)
                .status == 1)
        #expect(try harness.snapshotNames().isEmpty)
    }

    @Test(
        .enabled(if: isRoot, "needs the right to mount"),
        .enabled(if: Command.exists("qemu-io"), "needs qemu-io (qemu-utils)"))
    func `any longer, its filesystem being full, is given up without an error to writers`()
        throws
    {
        let harness = try ControlHarness()
        try harness.attach("a", byteCount: 64 * mebibyte)
        try harness.fill("a", 1, length: 64 * mebibyte)
        let small = try SmallFilesystem(byteCount: 24 * mebibyte)
        try harness.done(
            "snapshot", "create", "--device", "a", "--name", "s", "--storage", small.path,
            "--limit", "1G")
        try harness.fill("a", 2, length: 64 * mebibyte)
        #expect(try harness.holds("a", 2, length: 64 * mebibyte))
        let shown = try harness.object("snapshot", "show", "s")
        #expect(shown["state"] as? String == "corrupted")
        let events = try harness.command("events", "--snapshot", "s")
        #expect(events.output.split(separator: "\n").count { $0.contains("corrupted") } == 1)
        try harness.done("snapshot", "destroy", "s")
        #expect(try harness.unnamedFileCount() == 0)
    }
}

/// A filesystem in memory of a given size, unmounted when the object goes.
private final class SmallFilesystem {
    let path: String
    private let directory: TemporaryDirectory
    private let ticket: Int

    init(byteCount: Int) throws {
        directory = try TemporaryDirectory()
        path = directory.path("small")
        guard mkdir(path, 0o700) == 0 else { throw TestFailure("mkdir: \(errno)") }
        ticket = ExitCleanup.shared.register("umount --lazy \(path)")
        try Command.check("mount", ["-t", "tmpfs", "-o", "size=\(byteCount)", "none", path])
    }

    deinit {
        umount2(path, Int32(MNT_DETACH))
        ExitCleanup.shared.withdraw(ticket)
    }
}
