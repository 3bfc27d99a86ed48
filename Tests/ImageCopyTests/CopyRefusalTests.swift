import Foundation
import Glibc
import TestSupport
import Testing

/// What `copy` refuses, and with which exit status.
@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Copies are refused` {
    private func harness() throws -> CopyHarness {
        let harness = try CopyHarness(byteCount: 4 * mebibyte)
        try harness.write([UInt8](repeating: 7, count: mebibyte), at: 0)
        try harness.take("a")
        return harness
    }

    @Test func `of what is not there: 3, and of what is no image: 2`() throws {
        let harness = try harness()
        let target = harness.copyPath
        // No beginning of an id, which would name the snapshot as well.
        try harness.expectRefusal(3, "snapshot none was not found", ["copy", "disk@none", target])
        try harness.expectRefusal(3, "not of device other", ["copy", "other@a", target])
        for image in ["@a", "disk@", "disk@a:rw", "di sk@a"] {
            try harness.expectRefusal(2, "DEVICE@SNAPSHOT", ["copy", image, target])
        }
        try harness.expectRefusal(
            2, "--force", ["copy", "disk@a", target, "--since", "a", "--force"])
        try harness.copy("a")
        try harness.expectRefusal(
            3, "checkpoint none was not found", harness.copyArguments("a", since: "none"))
        let outcome = try Command.run(
            TestService.binary,
            harness.copyArguments("a") + ["--control", harness.files.path("no.sock")])
        #expect(outcome.status == 7)
    }

    @Test func `since a later cut: 2, of a prepared snapshot: 4`() throws {
        let harness = try harness()
        try harness.copy("a")
        try harness.take("b")
        try harness.expectRefusal(2, "later", harness.copyArguments("a", since: "b"))
        try harness.command(
            "snapshot", "create", "--device", "disk", "--name", "c", "--storage", "memory:8M",
            "--prepare")
        try harness.expectRefusal(4, "prepared", harness.copyArguments("c"))
    }

    @Test func `over a file that is no copy: 4, and the file stays as it is`() throws {
        let harness = try harness()
        let precious = Array("a letter".utf8)
        try Data(precious).write(to: URL(filePath: harness.copyPath))
        try harness.expectRefusal(4, "--force", harness.copyArguments("a"))
        try harness.expectRefusal(5, "full copy", harness.copyArguments("a", since: "a"))
        #expect(try readFile(harness.copyPath, 0..<precious.count) == precious)
        try harness.command("copy", "disk@a", harness.copyPath, "--force")
        try harness.expectCopyIsRight("forced")
        try harness.expectRefusal(1, "neither", ["copy", "disk@a", harness.files.root])
        try harness.expectRefusal(
            1, "No such file", ["copy", "disk@a", harness.files.path("no/file")])
    }

    @Test func `onto a target in use: 4, be it another copy's or an origin`() throws {
        let harness = try harness()
        try harness.copy("a")
        let other = open(harness.copyPath, O_RDONLY | O_CLOEXEC)
        #expect(flock(other, LOCK_EX) == 0)
        try harness.expectRefusal(4, "in use", harness.copyArguments("a"))
        close(other)
        try harness.copy("a")
        try harness.expectRefusal(
            4, "in use", ["copy", "disk@a", harness.files.path("disk"), "--force"])
    }

    @Test func `in increments onto a target that does not fit: 5, and a full copy helps`() throws {
        let harness = try harness()
        try harness.take("b")
        // No target, none that equals the base, one without a record, one that was written to.
        try harness.expectRefusal(5, "full copy", harness.copyArguments("b", since: "a"))
        #expect(access(harness.copyPath, F_OK) != 0)
        try harness.copy("a")
        try harness.write([UInt8](repeating: 8, count: 4096), at: 0)
        try harness.take("c")
        try harness.expectRefusal(5, "epoch", harness.copyArguments("c", since: "b"))
        let recordPath = harness.copyPath + ".stillpoint"
        let record = try Data(contentsOf: URL(filePath: recordPath))
        try Data("{}".utf8).write(to: URL(filePath: recordPath))
        try harness.expectRefusal(5, "damaged", harness.copyArguments("c", since: "a"))
        unlink(recordPath)
        try harness.expectRefusal(5, "no record", harness.copyArguments("c", since: "a"))
        try record.write(to: URL(filePath: recordPath))
        try write(1, to: harness.copyPath)
        try harness.expectRefusal(5, "changed", harness.copyArguments("c", since: "a"))
        try harness.expectRefusal(4, "complete copy", harness.copyArguments("c"))
        try harness.copy("c", isForced: true)
        try harness.expectCopyIsRight("a full copy after a refusal")
        try harness.command("device", "attach", "twin", try twin(of: harness))
        try harness.command(
            "snapshot", "create", "--device", "twin", "--name", "t", "--storage", "memory:8M")
        try harness.expectRefusal(
            5, "of device disk", ["copy", "twin@t", harness.copyPath, "--since", "t"])
        try harness.expectRefusal(4, "of device disk", ["copy", "twin@t", harness.copyPath])
    }

    private func write(_ value: UInt8, to path: String) throws {
        let file = open(path, O_WRONLY | O_CLOEXEC)
        defer { close(file) }
        guard pwrite(file, [value], 1, 0) == 1 else { throw TestFailure("cannot write \(path)") }
    }

    private func twin(of harness: CopyHarness) throws -> String {
        let path = harness.files.path("twin")
        try makeSparseFile(path, byteCount: harness.byteCount)
        return path
    }

    @Test func `when the image is corrupted: 6, or gone: 3`() throws {
        let harness = try CopyHarness(byteCount: 32 * mebibyte)
        var generator = SeededGenerator.announced("corrupted image")
        try harness.write(generator.bytes(32 * mebibyte), at: 0)
        try harness.take("base")
        try harness.copy("base")
        // Its storage would take what that of the next one cannot.
        try harness.destroy("base")
        try harness.take("small", storage: "memory:4M")
        for offset in stride(from: 0, to: 32 * mebibyte, by: mebibyte) {
            try harness.write(generator.bytes(mebibyte), at: offset)
        }
        try harness.expectRefusal(6, "lost data", harness.copyArguments("small"))
        try harness.expectRefusal(6, "lost data", harness.copyArguments("small", since: "base"))
        try harness.destroy("small")
        try harness.expectRefusal(3, "snapshot small was not found", harness.copyArguments("small"))
        try harness.take("next", storage: "memory:64M")
        try harness.copy("next", since: "base")
        try harness.expectCopyIsRight("past a corrupted image")
    }
}
