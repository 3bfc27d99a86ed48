import Foundation
import Glibc
import TestSupport
import Testing

/// `copy` as a nightly job uses it: without a snapshot, with versions.
@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Copies of devices` {
    private func snapshotCount(_ harness: CopyHarness) throws -> Int {
        let text = try harness.command("snapshot", "list", "--json")
        return (try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [Any])?.count ?? -1
    }

    private func checkpoints(_ harness: CopyHarness) throws -> [String] {
        let text = try harness.command("checkpoint", "list", "--json")
        let list = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [[String: Any]]
        return list?.compactMap { $0["name"] as? String }.sorted() ?? []
    }

    @Test func `make a snapshot of their own, and leave its name alone`() throws {
        let harness = try CopyHarness(byteCount: 16 * mebibyte)
        var generator = SeededGenerator.announced("copies of devices")
        try harness.change(10, &generator)
        try harness.command("copy", "disk", harness.copyPath, "--checkpoint", "monday")
        try harness.expectCopyIsRight("the first")
        #expect(try snapshotCount(harness) == 0)
        #expect(try checkpoints(harness) == ["monday"])
        try harness.change(10, &generator)
        let next = try harness.json(
            ["copy", "disk", harness.copyPath, "--since", "monday", "--checkpoint", "tuesday"])
        #expect(next["full"] as? Bool == false)
        try harness.expectCopyIsRight("the second")
        #expect(try snapshotCount(harness) == 0)
        // Also when the copy fails.
        try harness.expectRefusal(1, "neither", ["copy", "disk", harness.files.root])
        #expect(try snapshotCount(harness) == 0)
        try harness.expectRefusal(3, "none", ["copy", "none", harness.files.path("other")])
        try harness.expectRefusal(
            2, "--checkpoint", ["copy", "disk@s", harness.copyPath, "--checkpoint", "c"])
    }

    @Test func `leave no snapshot behind when they are killed`() throws {
        let harness = try CopyHarness(byteCount: 64 * mebibyte)
        var generator = SeededGenerator.announced("killed copies of devices")
        try harness.write(generator.bytes(48 * mebibyte), at: 0)
        for round in 0..<sized("killed copies of devices", soak: 60, otherwise: 6) {
            let process = try ChildProcess(
                TestService.binary,
                ["copy", "disk", harness.copyPath, "--control", harness.service.controlPath])
            // The instant is the test's subject, not a synchronisation.
            let end = monotonicSeconds() + Double.random(in: 0...0.3, using: &generator)
            while monotonicSeconds() < end { sched_yield() }
            process.send(signal: [SIGKILL, SIGTERM, SIGINT][round % 3])
            _ = try process.wait(deadline: 60)
            try waitUntil("the snapshot goes") { try self.snapshotCount(harness) == 0 }
            for name in ["copy", "copy.stillpoint"] { unlink(harness.files.path(name)) }
        }
    }

    @Test func `bring a target forward by themselves, night after night, and keep versions`()
        throws
    {
        let harness = try CopyHarness(byteCount: 16 * mebibyte)
        var generator = SeededGenerator.announced("nights")
        var nights: [[UInt8]] = []
        let count = sized("nights", soak: 30, otherwise: 5)
        for night in 0..<count {
            try harness.change(6, &generator)
            var arguments = ["copy", "disk", harness.copyPath, "--since", "auto"]
            if night > 0 { arguments += ["--keep", "n\(night - 1)"] }
            arguments += ["--checkpoint", "n\(night)"]
            let result = try harness.json(arguments)
            #expect(result["full"] as? Bool == (night == 0), "night \(night): \(result)")
            try harness.expectCopyIsRight("night \(night), seed \(generator.seed)")
            nights.append(harness.contents)
        }
        for night in 0..<count - 1 {
            let version = harness.copyPath + "@n\(night)"
            #expect(try readFile(version, 0..<harness.byteCount) == nights[night])
            #expect(access(version + ".stillpoint", F_OK) == 0)
        }
        // A name that is taken is refused, and the copy stays what it was.
        try harness.expectRefusal(
            4, "another name",
            ["copy", "disk", harness.copyPath, "--since", "auto", "--keep", "n0"])
        try harness.expectCopyHolds("n\(count - 1)")
    }

    @Test func `name cuts by themselves with --since auto, and forget those they have left`()
        throws
    {
        let harness = try CopyHarness(byteCount: 16 * mebibyte)
        var generator = SeededGenerator.announced("automatic names")
        for round in 0..<3 {
            try harness.change(4, &generator)
            let result = try harness.json(["copy", "disk", harness.copyPath, "--since", "auto"])
            #expect(result["full"] as? Bool == (round == 0), "\(result)")
            try harness.expectCopyIsRight("round \(round)")
            #expect(try checkpoints(harness).count == 1)
        }
        // What the device does not know any more makes a full copy, beside the old one.
        try harness.command("checkpoint", "delete", try checkpoints(harness)[0])
        try harness.change(4, &generator)
        let result = try harness.json(
            ["copy", "disk", harness.copyPath, "--since", "auto", "--keep", "old"])
        #expect(result["full"] as? Bool == true)
        #expect((result["notes"] as? [String])?.isEmpty == false)
        try harness.expectCopyIsRight("a full one")
        #expect(access(harness.copyPath + "@old.stillpoint", F_OK) == 0)
        #expect(access(harness.copyPath + ".unfinished", F_OK) != 0)
        #expect(access(harness.copyPath + ".unfinished.stillpoint", F_OK) != 0)
        // So does a target that was written to.
        let file = open(harness.copyPath, O_WRONLY)
        #expect(pwrite(file, [1], 1, 0) == 1)
        close(file)
        let again = try harness.json(["copy", "disk", harness.copyPath, "--since", "auto"])
        #expect(again["full"] as? Bool == true, "\(again)")
        try harness.expectCopyIsRight("after somebody wrote to it")
    }

    @Test func `of several devices are of one cut, in a directory`() throws {
        let harness = try CopyHarness(byteCount: 8 * mebibyte)
        var generator = SeededGenerator.announced("several devices")
        try harness.change(5, &generator)
        try makeRandomFile(
            harness.files.path("second"), byteCount: 4 * mebibyte, generator: &generator)
        try harness.command("device", "attach", "second", harness.files.path("second"))
        let directory = harness.files.path("all")
        #expect(mkdir(directory, 0o700) == 0)
        for round in 0..<2 {
            let text = try harness.command(
                "copy", "disk", "second", "--to", directory, "--since", "auto", "--json")
            let list = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [[String: Any]]
            #expect(list?.count == 2)
            #expect(list?.allSatisfy { $0["full"] as? Bool == (round == 0) } == true, "\(text)")
            #expect(Set(list?.compactMap { $0["snapshot"] as? String } ?? []).count == 1)
            #expect(
                try readFile(directory + "/disk.img", 0..<harness.byteCount) == harness.contents)
            try harness.change(5, &generator)
        }
        #expect(
            try readFile(directory + "/second.img", 0..<4 * mebibyte)
                == readFile(harness.files.path("second"), 0..<4 * mebibyte))
        try harness.expectRefusal(2, "--to", ["copy", "disk", "second", harness.copyPath])
    }
}
