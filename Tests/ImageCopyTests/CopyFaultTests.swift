import Foundation
import Glibc
import TestSupport
import Testing

/// Copies that cannot go on, and how they do in the end.
@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Copies that meet an obstacle` {
    @Test(.enabled(if: isRoot, "mounting needs root"))
    func `go on where they were when a full target has room again`() throws {
        let harness = try CopyHarness(byteCount: 64 * mebibyte)
        var generator = SeededGenerator.announced("a full target")
        try harness.write(generator.bytes(64 * mebibyte), at: 0)
        try harness.take("a")
        let memory = try MountedMemory(byteCount: 40 * mebibyte)
        let target = memory.path + "/copy"
        try harness.expectRefusal(1, "no room left", ["copy", "disk@a", target])
        try Command.check("mount", ["-o", "remount,size=100M", memory.path])
        // The snapshot's storage holds what is overwritten meanwhile.
        let atCut = harness.contents
        try harness.write(generator.bytes(mebibyte), at: 60 * mebibyte)
        let result = try harness.json(["copy", "disk@a", target])
        #expect(result["transferred_bytes"] as? Int ?? .max <= 40 * mebibyte, "\(result)")
        #expect(result["notes"] as? [String] == [])
        #expect(try readFile(target, 0..<harness.byteCount) == atCut)
    }

    @Test(.enabled(if: isRoot, "mounting needs root"))
    func `begin anew for another cut, and say so`() throws {
        let harness = try CopyHarness(byteCount: 64 * mebibyte)
        var generator = SeededGenerator.announced("a full target and another cut")
        try harness.write(generator.bytes(64 * mebibyte), at: 0)
        try harness.take("a")
        let memory = try MountedMemory(byteCount: 40 * mebibyte)
        let target = memory.path + "/copy"
        try harness.expectRefusal(1, "no room left", ["copy", "disk@a", target])
        try Command.check("mount", ["-o", "remount,size=100M", memory.path])
        try harness.write(generator.bytes(mebibyte), at: 0)
        try harness.take("b")
        let result = try harness.json(["copy", "disk@b", target])
        #expect((result["notes"] as? [String])?.first?.contains("disk@a") == true, "\(result)")
        #expect(try readFile(target, 0..<harness.byteCount) == harness.contents)
    }

    @Test func `leave nothing new beyond the limit on file sizes, and lose nothing old`() throws {
        let harness = try CopyHarness(byteCount: 16 * mebibyte)
        var generator = SeededGenerator.announced("limit on file sizes")
        try harness.change(10, &generator)
        try harness.take("a")
        let copy = "\"$stillpoint\" copy disk@a \"$files/copy\""
        let refused = try harness.bash("ulimit -f 1024; exec \(copy)")
        #expect(refused.status == 1)
        #expect(refused.diagnostics.contains("ulimit"), "\(refused.diagnostics)")
        #expect(access(harness.copyPath, F_OK) != 0)
        #expect(access(harness.copyPath + ".stillpoint", F_OK) != 0)
        try harness.copy("a")
        // It would have to grow, and stays what it was.
        #expect(truncate(harness.files.path("disk"), off_t(32 * mebibyte)) == 0)
        try harness.command("device", "resize", "disk")
        try harness.take("b")
        let grown = try harness.bash(
            "ulimit -f 20480; exec \"$stillpoint\" copy disk@b \"$files/copy\" --since a")
        #expect(grown.status == 1, "\(grown.diagnostics)")
        #expect(grown.diagnostics.contains("ulimit"), "\(grown.diagnostics)")
        try harness.expectCopyHolds("a")
        try harness.copy("b", since: "a")
    }

    @Test func `refuse a name that is no text instead of writing to another file`() throws {
        let harness = try CopyHarness(byteCount: mebibyte)
        try harness.take("a")
        let outcome = try harness.bash(
            "mkdir \"$files/t\"; \"$stillpoint\" copy disk@a \"$files/t/caf\"$'\\xe9'.img")
        #expect(outcome.status == 2)
        #expect(outcome.diagnostics.contains("caf\\xe9.img"), "\(outcome.diagnostics)")
        let made = try FileManager.default.contentsOfDirectory(atPath: harness.files.path("t"))
        #expect(made == [])
    }

    @Test func `name snapshots as the user did`() throws {
        let harness = try CopyHarness(byteCount: mebibyte)
        try harness.command("checkpoint", "create", "base", "--device", "disk")
        let id = try harness.command("snapshot", "create", "--device", "disk")
            .trimmingCharacters(in: .whitespacesAndNewlines)
        try harness.command("copy", "disk@\(id.prefix(8))", harness.copyPath)
        try harness.take("later")
        try harness.copy("later", isForced: true)
        let outcome = try harness.run(
            ["copy", "disk@\(id.prefix(8))", harness.copyPath, "--since", "base"])
        #expect(outcome.status == 5)
        #expect(
            outcome.diagnostics.contains("later than that of \(id.prefix(8)),")
                || outcome.diagnostics.contains("later than that of \(id.prefix(8));"),
            "\(outcome.diagnostics)")
    }

    @Test func `a stream is the image, through a pipe and onto standard output`() throws {
        let harness = try CopyHarness(byteCount: 24 * mebibyte + 512)
        var generator = SeededGenerator.announced("streams")
        try harness.change(30, &generator)
        try harness.take("a")
        for line in [
            "cd \"$files\"; \"$stillpoint\" copy disk@a - | cat >copy",
            "cd \"$files\"; \"$stillpoint\" copy disk@a - >copy",
            "cd \"$files\"; \"$stillpoint\" copy disk@a /dev/stdout | cat >copy",
            "cd \"$files\"; mkfifo fifo; cat fifo >copy & \"$stillpoint\" copy disk@a fifo; wait",
        ] {
            let outcome = try harness.bash("set -o pipefail; \(line)")
            #expect(outcome.status == 0, "\(outcome.diagnostics)")
            #expect(try readFile(harness.copyPath, 0..<harness.byteCount) == harness.contents)
            unlink(harness.copyPath)
        }
        #expect(access(harness.files.path("-"), F_OK) != 0)
        try harness.expectRefusal(2, "--format diff", ["copy", "disk@a", "-", "--since", "a"])
    }
}

extension CopyHarness {
    /// The copy is complete and equals the cut, as its record says.
    func expectCopyHolds(
        _ name: String, sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let record = try record()
        #expect(record["state"] as? String == "complete", sourceLocation: sourceLocation)
        let equals = record["equals"] as? [String: Any]
        #expect(equals?["snapshot"] as? String == name, sourceLocation: sourceLocation)
    }
}
