import Foundation
import Glibc
import TestSupport
import Testing

@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: PythonTools.areThere, "the Python packages cannot be had"))
struct `Every command and every exit status` {
    /// Commands whose success needs more than this walk: their own suites show it.
    private static let elsewhere: Set<String> = ["serve", "run"]

    @Test func `does what it says, in text and in JSON of its schema`() throws {
        let walk = Walk(try ControlHarness())
        let image = try walk.harness.image("vm1.img", byteCount: 64 << 20)
        try walk.harness.attach("vm2")
        try walk.does(["device", "attach", "vm1", image], schema: "Device", says: "attached vm1")
        try walk.does(["device", "list"], schema: "Device", isList: true, says: "vm1")
        try walk.does(["device", "show", "vm1"], schema: "Device", says: image)
        #expect(truncate(image, 80 << 20) == 0)
        try walk.does(["device", "resize", "vm1"], schema: "Device", says: "80 MiB")
        try walk.does(["probe"], schema: "Probe", says: "io_uring")
        try walk.does(["probe", image], schema: "Probe", says: "O_DIRECT")
        try snapshots(walk)
        try changes(walk)
        if canUseFUSE && canUseLoopDevices { try blocks(walk) }
        try walk.does(["status"], schema: "Status", says: "vm1")
        try walk.does(["top", "--interval", "1"], schema: "Top", says: "device(s)")
        try walk.does(["events"], schema: "Event", isList: true, says: "device-attached")
        let left = walk.harness.service.directory.path("left")
        #expect(mkdir(left, 0o700) == 0)
        try walk.does(
            ["thaw", "--runtime-dir", left], schema: "Thawed", says: "nothing was frozen")
        try walk.does(
            ["device", "detach", "vm1"], json: ["device", "detach", "vm2"], schema: "Detached",
            says: "detached vm1")
        let misfits = try PythonTools.misfits(walk.cases)
        #expect(misfits == "")
        var missing = try Walk.commands().subtracting(walk.done).subtracting(Self.elsewhere)
        if !(canUseFUSE && canUseLoopDevices) {
            print("skipped: `block` needs root, FUSE and loop devices")
            missing = missing.filter { !$0.hasPrefix("block") }
        }
        #expect(missing == [], "commands that the walk does not try")
    }

    private func snapshots(_ walk: Walk) throws {
        let storage = ["--storage", "memory:16M"]
        try walk.does(
            ["snapshot", "create", "--device", "vm1", "--name", "nightly"] + storage,
            json: ["snapshot", "create", "--device", "vm1", "--device", "vm2"] + storage,
            schema: "Snapshot", says: "-")
        for name in ["p1", "p2"] {
            try walk.harness.done(
                "snapshot", "create", "--device", "vm1", "--name", name, "--prepare",
                "--storage", "memory:16M")
        }
        try walk.does(
            ["snapshot", "take", "p1"], json: ["snapshot", "take", "p2"], schema: "Snapshot",
            says: "took p1")
        try walk.does(["snapshot", "list"], schema: "Snapshot", isList: true, says: "nightly")
        try walk.does(["snapshot", "show", "nightly"], schema: "Snapshot", says: "held")
        try walk.does(
            ["snapshot", "append-storage", "nightly", "--storage", "memory:8M"],
            schema: "Snapshot", says: "nightly has")
        for name in try walk.harness.snapshotNames() where name.count > 30 {
            try walk.harness.done("snapshot", "destroy", name)
        }
        try walk.does(
            ["snapshot", "destroy", "p1"], json: ["snapshot", "destroy", "p2"],
            schema: "Snapshot", says: "destroyed p1")
    }

    private func changes(_ walk: Walk) throws {
        try walk.does(
            ["checkpoint", "create", "monday", "--device", "vm1"],
            json: ["checkpoint", "create", "tuesday", "--device", "vm1", "--device", "vm2"],
            schema: "Checkpoint", says: "monday")
        try walk.does(["checkpoint", "list"], schema: "Checkpoint", isList: true, says: "monday")
        try walk.does(
            ["changes", "mark", "vm1", "--range", "0:4096"], schema: "Marked", says: "vm1")
        try walk.does(["changes", "vm1", "--since", "monday"], schema: "Changes", says: "4")
        try walk.does(["changes", "vm1"], schema: "Changes")
        try walk.does(
            ["changes", "vm1", "--since", "generation", "--until", "nightly"],
            schema: "Changes")
        let copies = walk.harness.service.directory
        try walk.does(
            ["copy", "vm1@nightly", copies.path("copy")],
            json: ["copy", "vm1@nightly", copies.path("copy2")], schema: "Copy", says: "copy")
        try walk.does(
            ["copies", copies.path("copy")], schema: "CopyEntry", isList: true, says: "complete")
        try walk.does(
            ["verify", copies.path("copy"), "vm1@nightly"], schema: "Verify", says: "equals")
        try walk.does(
            ["restore", copies.path("copy"), copies.path("restored"), "--yes"],
            schema: "Restore", says: "restored")
        try walk.does(
            ["checkpoint", "delete", "monday"], json: ["checkpoint", "delete", "tuesday"],
            schema: "Checkpoint", says: "monday")
        try walk.harness.done("snapshot", "destroy", "nightly")
    }

    private func blocks(_ walk: Walk) throws {
        try walk.does(
            ["block", "attach", "vm1"], json: ["block", "attach", "vm2"], schema: "Block",
            says: "/dev/vm1")
        try walk.does(["block", "list"], schema: "Block", isList: true, says: "vm1")
        try walk.fails(["device", "detach", "vm1"], 4, says: "block detach")
        let list = try walk.harness.document("block", "list") as? [[String: Any]] ?? []
        let paths = list.compactMap { $0["path"] as? String }
        #expect(paths.count == 2)
        try walk.does(
            ["block", "detach", paths[0]], json: ["block", "detach", paths[1]],
            schema: "Block", says: paths[0])
    }

    @Test func `says what is wrong, why, and the way out`() throws {
        let walk = Walk(try ControlHarness())
        let image = try walk.harness.attach("vm1", byteCount: 64 << 20)
        try notFound(walk)
        try busy(walk, image)
        try failed(walk, image)
        try wrongUsage(walk, image)
        try historyAndCorruption(walk, image)
        // Wrong usage, by every command there is.
        for command in try Walk.commands().sorted() {
            let words = command.split(separator: " ").map(String.init)
            let outcome = try Command.run(TestService.binary, words + ["--no-such-option"])
            #expect(outcome.status == 2, "\(command)")
            #expect(outcome.output == "")
            #expect(outcome.diagnostics.contains("Usage:"), "\(command): \(outcome.diagnostics)")
        }
        let quiet: Set<String> = [
            "status", "probe", "events", "device list", "snapshot list", "checkpoint list",
            "block list", "serve",
        ]
        let never = try Walk.commands().subtracting(walk.refused).subtracting(quiet)
            .subtracting(Self.elsewhere)
        #expect(never == [], "commands that were never refused")
    }

    private func notFound(_ walk: Walk) throws {
        let missing = [
            ["device", "show", "none"], ["device", "detach", "none"], ["snapshot", "show", "none"],
            ["snapshot", "take", "none"], ["snapshot", "destroy", "none"],
            ["snapshot", "append-storage", "none", "--storage", "memory:8M"],
            ["snapshot", "create", "--device", "none"], ["events", "--snapshot", "none"],
            ["checkpoint", "create", "c", "--device", "none"], ["checkpoint", "delete", "none"],
            ["changes", "none"], ["changes", "vm1", "--since", "none"],
            ["changes", "mark", "none", "--range", "0:4096"], ["block", "attach", "none"],
            ["block", "attach", "vm1@none"], ["block", "detach", "/dev/loop-none"],
            ["probe", "/none"], ["device", "attach", "none", "/none"],
            ["device", "resize", "none"],
            ["copy", "vm1@none", walk.harness.service.directory.path("copy")],
            ["copies", "/none"], ["verify", "/none", "vm1@none"], ["restore", "/none", "vm1"],
            ["thaw", "--runtime-dir", "/none"],
        ]
        for arguments in missing { try walk.fails(arguments, 3, says: "none") }
    }

    private func busy(_ walk: Walk, _ image: String) throws {
        let other = try walk.harness.image("other.img")
        let run = walk.harness.service.directory.path("run")
        try walk.fails(["thaw", "--runtime-dir", run], 4, says: run)
        try walk.fails(["device", "attach", "vm1", other], 4, says: image)
        try walk.fails(["device", "attach", "vm2", image], 4, says: "vm1")
        try walk.harness.done("checkpoint", "create", "base", "--device", "vm1")
        try walk.harness.done(
            "snapshot", "create", "--device", "vm1", "--name", "s", "--storage", "memory:16M")
        let copy = walk.harness.service.directory.path("no-copy")
        try walk.fails(["copy", "vm1@s", copy, "--since", "base"], 5, says: "full copy")
        try walk.fails(["copy", "vm1@s", image], 4, says: image)
        try walk.fails(["device", "detach", "vm1"], 4, says: "--force")
        try walk.fails(["snapshot", "take", "s"], 4, says: "already")
        try walk.fails(
            ["snapshot", "create", "--device", "vm1", "--name", "s"], 4, says: "another name")
        try walk.fails(["checkpoint", "create", "s", "--device", "vm1"], 4, says: "another name")
        try walk.harness.done("checkpoint", "create", "after", "--device", "vm1")
        try walk.fails(["changes", "vm1", "--since", "after", "--until", "s"], 2, says: "after")
        try walk.harness.done("snapshot", "destroy", "s")
        try walk.fails(["changes", "vm1", "--until", "s"], 4, says: "s")
    }

    /// Names, sizes and values that cannot be, of every command that takes any.
    private func wrongUsage(_ walk: Walk, _ image: String) throws {
        let create = ["snapshot", "create", "--device", "vm1"]
        let cases: [(arguments: [String], words: String)] = [
            (["status", "extra"], "extra"), (["probe", ""], "the path is empty"),
            (["device", "list", "extra"], "extra"), (["device", "show"], "name"),
            (["device", "attach", "a b", image], "a b"),
            (["device", "attach", "vm9", image, "--sector-size", "513"], "513"),
            (["device", "resize", "vm1", "extra"], "extra"), (["device", "detach"], "name"),
            (create + ["--name", "a@b"], "a@b"), (create + ["--storage", "memory:much"], "much"),
            (create + ["--limit", "63K"], "limit"), (create + ["--limit", "-1"], "limit"),
            (create + ["--on-overflow", "never"], "never"),
            (create + ["--freeze", "none", "--freeze", "auto"], "freeze none"),
            (create + ["--device", "vm1"], "vm1"), (["snapshot", "take"], "snapshot"),
            (["snapshot", "show"], "snapshot"), (["snapshot", "destroy"], "snapshot"),
            (["snapshot", "list", "extra"], "extra"),
            (["snapshot", "append-storage", "s", "--storage", "memory:63K"], "63K"),
            (["checkpoint", "create", "a b", "--device", "vm1"], "a b"),
            (["checkpoint", "create", "c"], "--device"), (["checkpoint", "delete"], "name"),
            (["checkpoint", "list", "extra"], "extra"),
            (["changes", "vm1", "--format", "picture"], "picture"),
            (["changes", "mark", "vm1", "--range", "0:0"], "0"),
            (["changes", "mark", "vm1", "--range", "4096"], "4096"),
            (["events", "--timeout", "soon"], "soon"), (["events", "--after", "-1"], "after"),
            (["copy", "vm1@", "/var/tmp/none"], "DEVICE@SNAPSHOT"),
            (["block", "attach"], "target"), (["block", "detach"], "path"),
            (["block", "list", "extra"], "extra"),
            (["top", "--interval", "0"], "--interval 0"),
            (["thaw", "--runtime-dir", ""], "the path is empty"),
        ]
        for (arguments, words) in cases { try walk.fails(arguments, 2, says: words) }
    }

    private func failed(_ walk: Walk, _ image: String) throws {
        let empty = try walk.harness.image("empty.img", byteCount: 0)
        let odd = try walk.harness.image("odd.img", byteCount: 1000)
        try walk.fails(["device", "attach", "e", empty], 1, says: "empty")
        try walk.fails(["device", "attach", "e", odd], 1, says: "truncate")
        try walk.fails(["device", "attach", "e", "/proc"], 1, says: "/proc")
        try walk.fails(
            ["snapshot", "create", "--device", "vm1", "--storage", image], 4, says: image)
        try walk.fails(
            ["snapshot", "create", "--device", "vm1", "--storage", "/proc"], 1, says: "/proc")
        try walk.fails(["changes", "mark", "vm1", "--range", "1T:4096"], 2, says: "vm1")
    }

    private func historyAndCorruption(_ walk: Walk, _ image: String) throws {
        let client = try NBDClient(.unix(path: walk.harness.service.socketPath), export: "vm1")
        for index in 0..<8 {
            try client.write(UInt64(index) << 20, [UInt8](repeating: 1, count: 1 << 20))
        }
        try walk.harness.done("checkpoint", "create", "old", "--device", "vm1")
        try walk.harness.done(
            "snapshot", "create", "--device", "vm1", "--name", "small", "--storage", "memory:4M")
        for index in 0..<8 {
            try client.write(UInt64(index) << 20, [UInt8](repeating: 2, count: 1 << 20))
        }
        try walk.fails(["changes", "vm1", "--until", "small"], 6, says: "small")
        let copy = walk.harness.service.directory.path("copy")
        try walk.fails(["copy", "vm1@small", copy], 6, says: "small")
        #expect(
            try walk.harness.object("snapshot", "show", "small")["state"] as? String == "corrupted")
        client.shutdownSending()
        try walk.harness.done("device", "detach", "vm1", "--force")
        // Another disk under the same name: what was known of the old one says nothing of it.
        #expect(unlink(image) == 0)
        try walk.harness.attach("vm1", byteCount: 64 << 20)
        try walk.fails(["changes", "vm1", "--since", "old"], 5, says: "full backup")
    }

    @Test func `ends with 7 by every client command without a service`() throws {
        let directory = try TemporaryDirectory()
        let named = [
            "snapshot create": ["--device", "a"], "checkpoint create": ["c", "--device", "a"],
            "device attach": ["a", "/a"], "snapshot append-storage": ["s", "--storage", "/a"],
            "changes mark": ["a", "--range", "0:4096"], "block attach": ["a"],
            "block detach": ["/dev/loop0"], "copy": ["a@s", directory.path("copy")],
            "verify": [directory.path("copy"), "a@s"], "restore": [directory.path("copy"), "a"],
        ]
        let plain: Set<String> = [
            "status", "events", "device list", "snapshot list", "checkpoint list", "block list",
            "top",
        ]
        for command in try Walk.commands().subtracting(["serve", "run", "probe", "thaw"])
            .sorted()
        {
            let words = command.split(separator: " ").map(String.init)
            let rest = named[command] ?? (plain.contains(command) ? [] : ["a"])
            let outcome = try Command.run(
                TestService.binary, words + rest + ["--control", directory.path("none.sock")],
                deadline: 60)
            #expect(outcome.status == 7, "\(command): \(outcome.diagnostics)")
            #expect(outcome.output == "")
            #expect(outcome.diagnostics.contains("stillpoint serve"), "\(command)")
        }
    }

    @Test(
        .enabled(if: isRoot, "only root can become somebody else"),
        .enabled(if: Command.exists("setpriv"), "setpriv is not installed"))
    func `tells who may not that they may not`() throws {
        let harness = try ControlHarness()
        let other = ["--reuid", "65534", "--regid", "65534", "--clear-groups", TestService.binary]
        // The way to the socket is open, the socket is not.
        chmod(harness.service.directory.root, 0o755)
        for form in [[], ["--json"]] {
            let status = try Command.run(
                "setpriv", other + ["status", "--control", harness.service.controlPath] + form)
            #expect(status.status == 7)
            #expect(status.hasNoAnswer)
            #expect(status.diagnostics.contains("Permission denied"))
            let thaw = try Command.run(
                "setpriv",
                other + ["thaw", "--runtime-dir", harness.service.directory.path("run")] + form)
            #expect(thaw.status == 1)
            #expect(thaw.hasNoAnswer)
            #expect(thaw.diagnostics.contains("Permission denied"))
        }
        let serve = try Command.run(
            "setpriv",
            other + [
                "serve", "--control", "/proc/none/c.sock", "--state-dir",
                harness.service.directory.path("state"),
            ])
        #expect(serve.status == 1)
        #expect(serve.diagnostics.contains("Permission denied"), "\(serve.diagnostics)")
        let image = try harness.image("disk.img")
        let probe = try Command.run("setpriv", other + ["probe", image])
        #expect(probe.status == 1)
        #expect(probe.diagnostics.contains("Permission denied"), "\(probe.diagnostics)")
    }
}
