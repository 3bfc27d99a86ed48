import Foundation
import Glibc
import TestSupport
import Testing

private let mebibyte = 1 << 20

extension ControlHarness {
    /// The blocks of 4 KiB that `changes` reports, as JSON; also checks that its totals are right.
    func changedBlocks(
        _ device: String, since: String? = nil, until: String? = nil
    ) throws -> Set<Int> {
        var arguments = ["changes", device, "--json", "--control", service.controlPath]
        if let since { arguments += ["--since", since] }
        if let until { arguments += ["--until", until] }
        let text = try Command.check(TestService.binary, arguments, deadline: 300)
        let document = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any]
        let ranges = try #require(document?["ranges"] as? [[String: Int]])
        #expect(document?["next_offset"] is NSNull)
        #expect(document?["changed_bytes"] as? Int == ranges.reduce(0) { $0 + $1["length"]! })
        var blocks: Set<Int> = []
        var lastEnd = -1
        for range in ranges {
            let (offset, length) = (range["offset"]!, range["length"]!)
            #expect(offset > lastEnd, "ranges ascend and do not touch")
            lastEnd = offset + length
            blocks.formUnion(offset / 4096..<(lastEnd + 4095) / 4096)
        }
        return blocks
    }

    /// Writes to blocks of an export.
    func write(_ export: String, blocks: Int...) throws {
        let client = try NBDClient(.unix(path: service.socketPath), export: export)
        for block in blocks {
            try client.write(
                UInt64(block * 4096), [UInt8](repeating: UInt8.random(in: 1...255), count: 4096))
        }
    }

    /// The status and message of a command that must fail, and print nothing.
    func failure(_ arguments: String...) throws -> (status: Int32, message: String) {
        let outcome = try Command.run(
            TestService.binary, arguments + ["--control", service.controlPath], deadline: 300)
        #expect(outcome.status != 0 && outcome.hasNoAnswer)
        return (outcome.status, outcome.diagnostics)
    }

    /// The checkpoints by name.
    func checkpoints() throws -> [String: [String: Any]] {
        let list = try document("checkpoint", "list") as? [[String: Any]] ?? []
        return Dictionary(uniqueKeysWithValues: list.map { ($0["name"] as? String ?? "", $0) })
    }
}

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `A checkpoint` {
    @Test func `is one cut over several devices, listed with what it remembers`() throws {
        let harness = try ControlHarness()
        for name in ["a", "b"] { try harness.attach(name) }
        try harness.write("a", blocks: 1)
        let made = try harness.object(
            "checkpoint", "create", "monday", "--device", "a", "--device", "b")
        #expect(Set(made.keys) == ["name", "created_at", "snapshot", "devices"])
        #expect(made["name"] as? String == "monday" && made["snapshot"] is NSNull)
        let devices = try #require(made["devices"] as? [[String: Any]])
        #expect(devices.map { $0["device"] as? String } == ["a", "b"])
        for device in devices {
            #expect(Set(device.keys) == ["device", "generation", "epoch", "size", "usable"])
            #expect(device["epoch"] as? Int == 1 && device["size"] as? Int == 16 * mebibyte)
            #expect(device["usable"] as? Bool == true)
            let shown = try harness.object("device", "show", device["device"] as? String ?? "")
            #expect(shown["generation"] as? String == device["generation"] as? String)
            #expect(shown["epoch"] as? Int == 2)
        }
        try harness.write("a", blocks: 7, 8, 300)
        try harness.write("b", blocks: 4)
        #expect(try harness.changedBlocks("a", since: "monday") == [7, 8, 300])
        #expect(try harness.changedBlocks("b", since: "monday") == [4])
        #expect(try harness.command("checkpoint", "list").output.contains("monday"))
        #expect(try harness.command("checkpoint", "delete", "monday").status == 0)
        #expect(try harness.checkpoints().isEmpty)
        #expect(try harness.failure("checkpoint", "delete", "monday").status == 3)
        #expect(try harness.failure("changes", "a", "--since", "monday").status == 3)
    }

    @Test func `of three consumers of different age serves each, whichever is deleted`() throws {
        for order in [["x", "y", "z"], ["z", "y", "x"], ["y", "z", "x"], ["y", "x", "z"]] {
            let harness = try ControlHarness()
            try harness.attach("a")
            var expected: [String: Set<Int>] = [:]
            for (number, name) in ["x", "y", "z"].enumerated() {
                try harness.done("checkpoint", "create", name, "--device", "a")
                expected[name] = []
                let block = 16 * number + 3
                try harness.write("a", blocks: block, 1000)
                for known in expected.keys { expected[known]?.formUnion([block, 1000]) }
            }
            for name in order {
                for (known, blocks) in expected {
                    let answer = try harness.changedBlocks("a", since: known)
                    #expect(answer.isSuperset(of: blocks))
                    #expect(
                        Set(blocks.map { $0 / 16 }).isSuperset(of: answer.map { $0 / 16 }))
                    // Made last, it has been the newest ever since.
                    if known == "z" { #expect(answer == blocks) }
                }
                try harness.done("checkpoint", "delete", name)
                expected[name] = nil
                let fresh = 2000 + expected.count
                try harness.write("a", blocks: fresh)
                for known in expected.keys { expected[known]?.insert(fresh) }
                #expect(try harness.failure("changes", "a", "--since", name).status == 3)
            }
        }
    }

    @Test func `is left by a named snapshot and stays when that is destroyed`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let made = try harness.object("snapshot", "create", "--device", "a", "--name", "s")
        let id = try #require(made["id"] as? String)
        let parts = try #require(made["devices"] as? [[String: Any]])
        let checkpoint = try #require(try harness.checkpoints()["s"])
        #expect(checkpoint["snapshot"] as? String == id)
        let part = try #require((checkpoint["devices"] as? [[String: Any]])?.first)
        #expect(part["epoch"] as? Int == parts[0]["epoch"] as? Int)
        #expect(part["generation"] as? String == parts[0]["generation"] as? String)
        try harness.write("a", blocks: 5)
        #expect(try harness.changedBlocks("a", since: "s") == [5])
        #expect(try harness.changedBlocks("a", since: id) == [5])
        // Neither may anybody else be called so, snapshot or checkpoint, before or after its end.
        for _ in 0..<2 {
            let other = try harness.failure("checkpoint", "create", "s", "--device", "a")
            #expect(other.status == 4 && other.message.contains("s exists"))
            #expect(
                try harness.failure("snapshot", "create", "--device", "a", "--name", "s").status
                    == 4)
            if try harness.snapshotNames() == ["s"] { try harness.done("snapshot", "destroy", "s") }
        }
        #expect(try harness.changedBlocks("a", since: "s") == [5])
        try harness.done("checkpoint", "delete", "s")
        try harness.done("snapshot", "create", "--device", "a", "--name", "s")
        // While the snapshot has the name, nobody gets it by the checkpoint's end.
        try harness.done("checkpoint", "delete", "s")
        #expect(try harness.failure("checkpoint", "create", "s", "--device", "a").status == 4)
        try harness.done("snapshot", "destroy", "s")
        try harness.done("checkpoint", "create", "s", "--device", "a")
    }

    @Test func `is left by a prepared snapshot at its take, and never by an unnamed one`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        try harness.done("snapshot", "create", "--device", "a", "--name", "s", "--prepare")
        #expect(try harness.checkpoints().isEmpty)
        #expect(try harness.failure("checkpoint", "create", "s", "--device", "a").status == 4)
        try harness.write("a", blocks: 1)
        try harness.done("snapshot", "take", "s")
        try harness.write("a", blocks: 2)
        #expect(try harness.changedBlocks("a", since: "s") == [2])
        // The cut of an unnamed one is no base: the older one stays exact.
        try harness.done("snapshot", "create", "--device", "a")
        try harness.write("a", blocks: 3)
        #expect(try Array(harness.checkpoints().keys) == ["s"])
        #expect(try harness.changedBlocks("a", since: "s") == [2, 3])
    }

    @Test func `is refused with a reason, and nothing is left of it`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let refusals: [([String], Int32, String)] = [
            (["x", "--device", "none"], 3, "none"),
            (["x", "--device", "a", "--device", "none"], 3, "none"),
            (["x", "--device", "a", "--device", "a"], 2, "twice"),
            (["generation", "--device", "a"], 2, "tracking began"),
            (["-x", "--device", "a"], 2, "name"),
            ([" ", "--device", "a"], 2, "not a valid name"),
            ([UUID().uuidString, "--device", "a"], 2, "could be the id"),
            (["x"], 2, "--device"),
        ]
        for (arguments, status, reason) in refusals {
            let outcome = try Command.run(
                TestService.binary,
                ["checkpoint", "create", "--control", harness.service.controlPath] + arguments)
            #expect(outcome.status == status, "\(arguments): \(outcome.diagnostics)")
            #expect(outcome.hasNoAnswer && outcome.diagnostics.contains(reason))
        }
        #expect(try harness.checkpoints().isEmpty)
        let epoch = try harness.object("device", "show", "a")["epoch"] as? Int
        #expect(epoch == 1)
    }

    @Test func `that cannot be recorded does not exist, and its name is free`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        try harness.done("checkpoint", "create", "old", "--device", "a")
        try harness.write("a", blocks: 1)
        // A directory where the new file would be made: nothing can be written there, even by root.
        let blocked = harness.service.directory.path("state/checkpoints.json.new")
        #expect(mkdir(blocked, 0o700) == 0)
        for arguments in [
            ["checkpoint", "create", "x", "--device", "a"],
            ["snapshot", "create", "--device", "a", "--name", "x"],
            ["checkpoint", "delete", "old"],
        ] {
            let outcome = try Command.run(
                TestService.binary, arguments + ["--control", harness.service.controlPath])
            #expect(outcome.status == 1 && outcome.hasNoAnswer)
            #expect(outcome.diagnostics.contains("could not be"))
        }
        #expect(try harness.snapshotNames().isEmpty)
        #expect(try harness.exportNames() == ["a"])
        #expect(try Array(harness.checkpoints().keys) == ["old"])
        #expect(rmdir(blocked) == 0)
        // The cut that was not recorded is no base: since the old one all is exact.
        try harness.write("a", blocks: 2)
        #expect(try harness.changedBlocks("a", since: "old") == [1, 2])
        try harness.done("checkpoint", "create", "x", "--device", "a")
    }

    @Test func `is remembered over a restart, and a damaged memory is not guessed at`() throws {
        let harness = try ControlHarness()
        let path = try harness.attach("a")
        try harness.done("checkpoint", "create", "kept", "--device", "a")
        try harness.done("snapshot", "create", "--device", "a", "--name", "left")
        let before = try harness.checkpoints()
        #expect(try harness.service.stop() == .exited(0))
        try harness.service.restart()
        let after = try harness.checkpoints()
        #expect(Set(after.keys) == ["kept", "left"])
        for (name, checkpoint) in after {
            #expect(
                checkpoint["created_at"] as? String == before[name]?["created_at"] as? String)
            #expect(checkpoint["snapshot"] as? String == before[name]?["snapshot"] as? String)
        }
        #expect(try harness.failure("checkpoint", "create", "kept", "--device", "a").status == 4)
        #expect(try harness.service.stop() == .exited(0))
        let file = harness.service.directory.path("state/checkpoints.json")
        for damage in ["", "{", "{\"version\":1}", "{\"version\":2,\"checkpoints\":[]}"] {
            try damage.write(toFile: file, atomically: true, encoding: .utf8)
            let state = harness.service.directory.path("state")
            let outcome = try TestService.refusal(arguments: [
                "serve", "--state-dir", state, "--runtime-dir", harness.service.directory.path("r"),
                "--control", harness.service.directory.path("c2"), "--nbd",
                "unix:" + harness.service.directory.path("n2"),
            ])
            #expect(outcome.status == 1, "\(damage)")
            #expect(outcome.diagnostics.contains("checkpoints.json"))
            #expect(outcome.diagnostics.contains("move"))
        }
        _ = path
    }

    @Test func `of a device that is detached or has another history is not usable`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        try harness.attach("b")
        try harness.done("checkpoint", "create", "x", "--device", "a", "--device", "b")
        try harness.done("device", "detach", "b")
        let devices = try #require(try harness.checkpoints()["x"]?["devices"] as? [[String: Any]])
        #expect(devices.map { $0["usable"] as? Bool } == [true, false])
        #expect(try harness.failure("changes", "b", "--since", "x").status == 3)
        // Another disk under the same name has nothing to do with it.
        let other = try harness.image("other.img", byteCount: 16 * mebibyte)
        try harness.done("device", "attach", "b", other)
        let unknown = try harness.failure("changes", "b", "--since", "x")
        #expect(unknown.status == 5 && unknown.message.contains("make a full backup"))
        let (status, answer) = try harness.http("GET", "/v1/devices/b/changes?since=x")
        #expect(status == 410)
        #expect((answer["error"] as? [String: Any])?["code"] as? String == "history_unknown")
        let after = try #require(try harness.checkpoints()["x"]?["devices"] as? [[String: Any]])
        #expect(after.map { $0["usable"] as? Bool } == [true, false])
    }
}
