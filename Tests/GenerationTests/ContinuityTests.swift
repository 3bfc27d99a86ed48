import Foundation
import Glibc
import TestSupport
import Testing

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `The history of a device` {
    @Test func `goes on over a clean stop, and changes made before it are still named`() throws {
        let harness = try GenerationHarness()
        try harness.attachImage()
        let first = try harness.history()
        #expect(!first.isContinued)
        #expect(first.reason.contains("first time"))
        try harness.checkpoint("base")
        try harness.write(1, block: 3)
        try harness.write(1, block: 5000)
        for round in 0..<3 {
            try harness.stop()
            #expect(access(harness.runningMap, F_OK) != 0)
            try harness.service.restart()
            let now = try harness.history()
            #expect(now.isContinued, "\(now.reason)")
            #expect(now.generation == first.generation)
            #expect(now.epoch == 2)
            try harness.write(1, block: 100 + round)
        }
        #expect(try harness.changedBlocks(since: "base") == [3, 100, 101, 102, 5000])
    }

    @Test func `goes on over detach and attach, and belongs to the device's name`() throws {
        let harness = try GenerationHarness()
        let path = try harness.attachImage()
        try harness.checkpoint("base")
        try harness.write(1, block: 7)
        try harness.done(["device", "detach", "vm"])
        try harness.done(["device", "attach", "vm", path])
        #expect(try harness.history().isContinued)
        #expect(try harness.changedBlocks(since: "base") == [7])
        try harness.done(["device", "detach", "vm"])
        try harness.done(["device", "attach", "other", path])
        let other = try #require(try harness.json(["device", "show", "other"]) as? [String: Any])
        #expect(other["history"] as? String == "new")
        // Nothing was written through it, so the first name's history holds still.
        try harness.done(["device", "detach", "other"])
        try harness.done(["device", "attach", "vm", path])
        #expect(try harness.history().isContinued)
    }

    @Test func `goes on over kill -9 under load, and names every block that changed`() throws {
        let harness = try GenerationHarness()
        let path = try harness.attachImage()
        let generation = try harness.history().generation
        var generator = SeededGenerator.announced("kills under load")
        for round in 0..<(isSoak ? 20 : 4) {
            try harness.checkpoint("base\(round)")
            let before = try readFile(path, 0..<64 << 20)
            let load = try KilledLoad(harness, seed: generator.next())
            try load.waitForWrites(Int.random(in: 1...3000, using: &generator))
            try harness.service.process.killAndWait()
            load.join()
            try harness.service.restart()
            let now = try harness.history()
            #expect(now.isContinued, "round \(round): \(now.reason)")
            #expect(now.generation == generation)
            let after = try readFile(path, 0..<64 << 20)
            let changed = try harness.changedBlocks(since: "base\(round)")
            #expect(load.acknowledged.isSubset(of: changed))
            #expect(changed.isSubset(of: load.issued))
            for block in 0..<(64 << 20) / 4096 where !changed.contains(block) {
                let range = block * 4096..<(block + 1) * 4096
                guard before[range] == after[range] else {
                    Issue.record("round \(round): block \(block) changed and is not named")
                    break
                }
            }
        }
    }

    @Test func `of a file goes on under another boot id after a clean stop only`() throws {
        let harness = try GenerationHarness()
        try harness.attachImage()
        try harness.checkpoint("base")
        try harness.stop()
        try harness.service.restart(environment: ["STILLPOINT_BOOT_ID": "second"])
        #expect(try harness.history().isContinued)
        #expect(try harness.status(ofChangesSince: "base") == 0)
        try harness.service.process.killAndWait()
        try harness.service.restart(environment: ["STILLPOINT_BOOT_ID": "third"])
        let now = try harness.history()
        #expect(!now.isContinued)
        #expect(now.reason.contains("machine was restarted"))
        let outcome = try harness.run(["changes", "vm", "--since", "base", "--json"])
        #expect(outcome.status == 5)
        #expect(outcome.hasNoAnswer)
        #expect(outcome.diagnostics.contains("full backup"))
        #expect((try harness.event("history-new")["device"] as? String) == "vm")
    }

    @Test(arguments: [true, false])
    func `ends with a write by somebody else`(isKilled: Bool) throws {
        let harness = try GenerationHarness()
        let path = try harness.attachImage()
        try harness.checkpoint("base")
        try harness.write(1, block: 1)
        if isKilled {
            try harness.killed()
        } else {
            try harness.stop()
        }
        try overwrite(path, at: 8192, [9])
        try harness.service.restart()
        let now = try harness.history()
        #expect(!now.isContinued)
        #expect(now.reason.contains("written to"))
        #expect(try harness.status(ofChangesSince: "base") == 5)
    }

    @Test(arguments: [true, false])
    func `ends when another file has taken the origin's place`(isKilled: Bool) throws {
        let harness = try GenerationHarness()
        let path = try harness.attachImage()
        try harness.checkpoint("base")
        if isKilled { try harness.service.process.killAndWait() } else { try harness.stop() }
        try Command.check("cp", ["--archive", path, path + ".copy"])
        #expect(rename(path + ".copy", path) == 0)
        try harness.service.restart()
        #expect(try harness.history().reason.contains("another file"))
        #expect(try harness.status(ofChangesSince: "base") == 5)
    }

    @Test(.enabled(if: canUseLoopDevices, "needs loop devices"))
    func `of a block device goes on over stop and kill, and ends with others' writes`() throws {
        let origin = try TestOrigin(.loop512, byteCount: 16 << 20)
        let harness = try GenerationHarness()
        try harness.done(["device", "attach", "vm", origin.path])
        try harness.checkpoint("base")
        try harness.write(1, block: 2)
        try harness.stop()
        try harness.service.restart()
        try harness.expectContinued()
        try harness.write(1, block: 3)
        try harness.service.process.killAndWait()
        try harness.service.restart()
        try harness.expectContinued()
        #expect(try harness.changedBlocks(since: "base") == [2, 3])
        try harness.stop()
        try overwrite(origin.path, at: 0, [UInt8](repeating: 1, count: 512))
        try harness.service.restart()
        #expect(try harness.history().reason.contains("written to"))
        #expect(try harness.status(ofChangesSince: "base") == 5)
    }

    @Test(.enabled(if: canUseLoopDevices, "needs loop devices"))
    func `of a block device outlives a restart of the machine on the operator's word`() throws {
        let origin = try TestOrigin(.loop512, byteCount: 16 << 20)
        let harness = try GenerationHarness()
        try harness.done(["device", "attach", "vm", origin.path])
        try harness.checkpoint("one")
        try harness.stop()
        try harness.service.restart(environment: ["STILLPOINT_BOOT_ID": "second"])
        #expect(try harness.history().reason.contains("--exclusive"))
        #expect(try harness.status(ofChangesSince: "one") == 5)
        try harness.done(["device", "detach", "vm"])
        try harness.done(["device", "attach", "vm", origin.path, "--exclusive"])
        try harness.checkpoint("two")
        try harness.write(1, block: 2)
        try harness.stop()
        // Remembered: nothing is said about it again.
        try harness.service.restart(environment: ["STILLPOINT_BOOT_ID": "third"])
        try harness.expectContinued()
        #expect(try harness.changedBlocks(since: "two") == [2])
    }

    @Test func `has a guardian that ends with the service, and is replaced when it ends`() throws {
        let harness = try GenerationHarness()
        let path = try harness.attachImage()
        let first = try #require(try harness.guardians().first)
        kill(first, SIGTERM)
        #expect(try harness.guardians() == [first], "SIGTERM is no reason to go")
        kill(first, SIGKILL)
        try harness.waitForEnd(of: first)
        let end = monotonicSeconds() + 60
        while try !harness.isWatched(path) {
            guard monotonicSeconds() < end else { throw TestFailure("no other guardian came") }
            sched_yield()
        }
        #expect(harness.service.log.contains("is started again"))
        try harness.killed()
        try harness.service.restart()
        try harness.expectContinued()
        #expect(try harness.guardians().count == 1)
        try harness.stop()
        try harness.service.restart()
        try harness.expectContinued()
    }

    @Test func `goes on after a clean stop with a guardian that hangs, which is ended`() throws {
        let harness = try GenerationHarness()
        try harness.attachImage()
        let guardian = try #require(try harness.guardians().first)
        kill(guardian, SIGSTOP)
        try harness.stop()
        #expect(harness.service.log.contains("the guardian does not answer"))
        try harness.service.restart()
        try harness.expectContinued()
    }

    @Test func `ends when no guardian saw the service die`() throws {
        let harness = try GenerationHarness()
        try harness.attachImage()
        let guardian = try #require(try harness.guardians().first)
        kill(harness.service.process.processID, SIGSTOP)
        kill(guardian, SIGKILL)
        try harness.service.process.killAndWait()
        try harness.service.restart()
        #expect(try harness.history().reason.contains("no guardian"))
    }

    @Test func `needs a runtime directory that no other service uses`() throws {
        let harness = try GenerationHarness()
        let directory = try TemporaryDirectory()
        let outcome = try Command.run(
            TestService.binary,
            [
                "serve", "--control", directory.path("c.sock"), "--state-dir",
                directory.path("state"), "--nbd", "unix:" + directory.path("n.sock"),
                "--runtime-dir", harness.service.directory.path("run"),
            ])
        #expect(outcome.status == 4)
        #expect(outcome.diagnostics.contains("--runtime-dir"))
    }
}
