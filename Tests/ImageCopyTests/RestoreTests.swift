import Foundation
import Glibc
import TestSupport
import Testing

/// `verify` and `restore` against the real service.
@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Copies are compared and brought back` {
    private func flip(_ path: String, at offset: Int) throws {
        let file = open(path, O_RDWR | O_CLOEXEC)
        defer { close(file) }
        var byte: UInt8 = 0
        guard pread(file, &byte, 1, off_t(offset)) == 1 else { throw TestFailure("pread") }
        byte ^= 0xFF
        guard pwrite(file, [byte], 1, off_t(offset)) == 1 else { throw TestFailure("pwrite") }
    }

    @Test func `verify finds one byte that differs, in data and in holes, and a wrong length`()
        throws
    {
        let harness = try CopyHarness(byteCount: 40 * mebibyte)
        var generator = SeededGenerator.announced("verify")
        try harness.write(generator.bytes(5 * mebibyte), at: mebibyte)
        try harness.take("a")
        try harness.copy("a")
        let verify = ["verify", harness.copyPath, "disk@a"]
        #expect(try harness.json(verify)["differing_bytes"] as? Int == 0)
        for place in [2 * mebibyte + 77, 30 * mebibyte + 5] {
            try flip(harness.copyPath, at: place)
            try harness.expectRefusal(1, "\(place / 4096 * 4096) (4096 bytes)", verify)
            try flip(harness.copyPath, at: place)
        }
        #expect(try harness.run(verify).status == 0)
        #expect(truncate(harness.copyPath, off_t(harness.byteCount - 4096)) == 0)
        try harness.expectRefusal(1, "4096 bytes", verify)
        #expect(truncate(harness.copyPath, off_t(harness.byteCount + 4096)) == 0)
        try harness.expectRefusal(1, "4096 bytes", verify)
        try harness.expectRefusal(3, "none", ["verify", harness.files.path("none"), "disk@a"])
    }

    @Test func `an audit proves that every difference was reported, and finds one that was not`()
        throws
    {
        let harness = try CopyHarness(byteCount: 40 * mebibyte)
        var generator = SeededGenerator.announced("audit")
        try harness.change(30, &generator)
        try harness.take("a")
        try harness.copy("a")
        try harness.change(30, &generator)
        try harness.take("b")
        let audit = ["verify", harness.copyPath, "disk@b", "--audit"]
        let result = try harness.json(audit)
        #expect(result["since"] as? String == "a")
        let reported = result["reported_bytes"] as? Int ?? 0
        #expect(result["differing_bytes"] as? Int ?? .max <= reported && reported > 0)
        // A difference where nothing changed; the record is made to fit, as no user could.
        let ranges = try harness.json(["changes", "disk", "--since", "a", "--until", "b"])
        let changed = (ranges["ranges"] as? [[String: Any]] ?? []).compactMap { range in
            (range["offset"] as? Int).map { $0..<$0 + (range["length"] as? Int ?? 0) }
        }
        let place = stride(from: 0, to: harness.byteCount, by: 4096).first { start in
            !changed.contains { $0.overlaps(start..<start + 4096) }
        }
        var facts = stat()
        #expect(stat(harness.copyPath, &facts) == 0)
        try flip(harness.copyPath, at: try #require(place))
        var times = [facts.st_atim, facts.st_mtim]
        #expect(utimensat(AT_FDCWD, harness.copyPath, &times, 0) == 0)
        try harness.expectRefusal(1, "not reported", audit)
    }

    @Test func `a device goes back to a version by what changed since, and history goes on`()
        throws
    {
        let harness = try CopyHarness(byteCount: 64 * mebibyte)
        var generator = SeededGenerator.announced("rollback")
        try harness.write(generator.bytes(30 * mebibyte), at: 0)
        try harness.command("copy", "disk", harness.copyPath, "--checkpoint", "a")
        let atA = harness.contents
        let changed = 160 * 4096
        for index in 0..<160 {
            try harness.write(generator.bytes(4096), at: index * 65536 * 4 + 4096)
        }
        try harness.take("held")
        let restore = ["restore", harness.copyPath, "disk", "--yes"]
        try harness.expectRefusal(4, "in use", restore)
        harness.disconnect()
        try waitUntil("the connection is closed") {
            try harness.json(["device", "show", "disk"])["connections"] as? Int == 0
        }
        try harness.expectRefusal(2, "--yes", ["restore", harness.copyPath, "disk"])
        let result = try harness.json(restore)
        #expect(result["quick"] as? Bool == true && result["since"] as? String == "a")
        let moved =
            (result["written_bytes"] as? Int ?? 0) + (result["zeroed_bytes"] as? Int ?? 0)
        #expect(moved <= changed * 11 / 10, "\(result)")
        #expect(try readFile(harness.files.path("disk"), 0..<harness.byteCount) == atA)
        // The snapshot that was held keeps what it held.
        try harness.command("copy", "disk@held", harness.files.path("held"))
        #expect(
            try readFile(harness.files.path("held"), 0..<harness.byteCount) == harness.contents)
        // The copy is brought forward from the cut that it equals.
        try harness.reconnect()
        try harness.takeContents()
        try harness.write(generator.bytes(8192), at: 50 * mebibyte)
        let next = try harness.json(
            ["copy", "disk", harness.copyPath, "--since", "auto", "--checkpoint", "b"])
        #expect(next["full"] as? Bool == false)
        try harness.expectCopyIsRight("after the restore")
    }

    @Test func `a device whose history does not know the copy is written whole`() throws {
        let harness = try CopyHarness(byteCount: 24 * mebibyte + 512)
        var generator = SeededGenerator.announced("whole restore")
        try harness.change(20, &generator)
        try harness.command("copy", "disk", harness.copyPath)
        let atCut = harness.contents
        try harness.change(20, &generator)
        harness.disconnect()
        try waitUntil("the connection is closed") {
            try harness.json(["device", "show", "disk"])["connections"] as? Int == 0
        }
        let result = try harness.json(["restore", harness.copyPath, "disk", "--yes"])
        #expect(result["quick"] as? Bool == false)
        #expect(try readFile(harness.files.path("disk"), 0..<harness.byteCount) == atCut)
        // Holes stay holes on the way to a file.
        let file = harness.files.path("restored")
        try harness.command("restore", harness.copyPath, file)
        #expect(try readFile(file, 0..<harness.byteCount) == atCut)
        #expect(
            harness.allocatedByteCount(file)
                <= harness.allocatedByteCount(harness.copyPath) + mebibyte)
        try harness.expectRefusal(2, "--yes", ["restore", harness.copyPath, file])
        try harness.expectRefusal(3, "device none", ["restore", harness.copyPath, "none"])
        try harness.expectRefusal(
            4, "origin", ["restore", harness.copyPath, harness.files.path("disk"), "--yes"])
    }

    @Test func `streams of differences bring a device back, and are refused where they do not fit`()
        throws
    {
        let harness = try CopyHarness(byteCount: 24 * mebibyte)
        var generator = SeededGenerator.announced("streams of differences")
        try harness.change(20, &generator)
        let copy = "\"$stillpoint\" copy disk -"
        func done(_ line: String) throws {
            let outcome = try harness.bash("cd \"$files\"; \(line)")
            #expect(outcome.status == 0, "\(line): \(outcome.diagnostics)")
        }
        try done("\(copy) --format diff --checkpoint a >full")
        let atA = harness.contents
        try harness.change(10, &generator)
        try done("\(copy) --format diff --checkpoint b --since a >increment")
        let atB = harness.contents
        try harness.change(10, &generator)
        harness.disconnect()
        try waitUntil("the connection is closed") {
            try harness.json(["device", "show", "disk"])["connections"] as? Int == 0
        }
        let disk = harness.files.path("disk")
        let restore = "\"$stillpoint\" restore - disk --yes"
        let early = try harness.bash("cd \"$files\"; \(restore) <increment")
        #expect(early.status == 5, "\(early.diagnostics)")
        try done("\(restore) <full")
        #expect(try readFile(disk, 0..<harness.byteCount) == atA)
        // The device equals the cut a now, by a name that says so.
        try done("\"$stillpoint\" checkpoint delete a")
        try done("\"$stillpoint\" checkpoint create a --device disk")
        try done("\(restore) <increment")
        #expect(try readFile(disk, 0..<harness.byteCount) == atB)
        for line in [
            "head -c -1 full | \(restore)", "head -c 100000 full | \(restore)",
            "echo nonsense | \(restore)", "true | \(restore)",
        ] {
            let outcome = try harness.bash("cd \"$files\"; \(line)")
            #expect(outcome.status == 1, "\(line): \(outcome.diagnostics)")
        }
    }
}
