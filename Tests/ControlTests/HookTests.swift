import Foundation
import Glibc
import TestSupport
import Testing

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `A hook` {
    @Test func `is told of the snapshot, before and after`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        try harness.attach("b")
        // Others of this prefix are for the tests themselves.
        let names = "^STILLPOINT_(CONTROL|DEVICES|ERROR|PHASE|RESULT|SNAPSHOT_)"
        let place = harness.service.directory.root
        let hook = try harness.script(
            "hook", "env | grep -E '\(names)' | sort > \(place)/env.$STILLPOINT_PHASE")
        let id =
            try harness.object(
                "snapshot", "create", "--device", "a", "--device", "b", "--name", "s", "--pre",
                hook,
                "--post", hook)["id"] as? String
        let common = [
            "STILLPOINT_CONTROL=\(harness.service.controlPath)", "STILLPOINT_DEVICES=a b",
        ]
        let snapshot = ["STILLPOINT_SNAPSHOT_ID=\(id ?? "")", "STILLPOINT_SNAPSHOT_NAME=s"]
        #expect(
            try harness.lines("env.pre") == common + ["STILLPOINT_PHASE=pre"] + snapshot)
        #expect(
            try harness.lines("env.post")
                == [common[0], common[1], "STILLPOINT_ERROR=", "STILLPOINT_PHASE=post"]
                + ["STILLPOINT_RESULT=taken"] + snapshot)
    }

    @Test(.enabled(if: canFreeze, "needs loop devices, mkfs.ext4 and fsfreeze"))
    func `finds filesystems thawed, before and after`() throws {
        let disk = try MountedDisk()
        let harness = try ControlHarness()
        try harness.attach("a")
        let hook = try harness.script("hook", "echo $STILLPOINT_PHASE >> \(disk.path)/phases")
        let taken = try harness.object(
            "snapshot", "create", "--device", "a", "--freeze", disk.path, "--pre", hook, "--post",
            hook, "--hook-timeout", "20")
        #expect(taken["frozen"] as? [String] == [disk.path])
        #expect(try String(contentsOfFile: disk.path("phases"), encoding: .utf8) == "pre\npost\n")
    }

    @Test func `that fails calls the take off, and the one after runs all the same`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let pre = try harness.script("pre", "echo the database is away >&2; exit 3")
        let post = try harness.script(
            "post",
            "echo $STILLPOINT_RESULT $STILLPOINT_ERROR > \(harness.service.directory.root)/post.log"
        )
        let outcome = try harness.command(
            "snapshot", "create", "--device", "a", "--name", "s", "--pre", pre, "--post", post)
        #expect(outcome.status == 1 && outcome.hasNoAnswer)
        let reason =
            "snapshot s was not taken: pre hook \(pre) ended with status 3: the database is away"
        #expect(outcome.diagnostics.contains(reason))
        #expect(try harness.lines("post.log").first?.hasPrefix("failed " + reason) == true)
        #expect(try harness.snapshotNames().isEmpty)
        #expect(try harness.object("device", "show", "a")["epoch"] as? Int == 1)
        #expect(try harness.unnamedFileCount() == 0)
    }

    @Test func `that fails afterwards is told of, and the snapshot stands`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let post = try harness.script("post", "echo cannot go on; kill -15 $$")
        try harness.done("snapshot", "create", "--device", "a", "--name", "s", "--post", post)
        #expect(try harness.object("snapshot", "show", "s")["state"] as? String == "held")
        let events = try harness.command("events", "--snapshot", "s").output
        #expect(events.contains("hook-failed"))
        #expect(events.contains("was killed by signal 15: cannot go on"))
    }

    @Test func `that hangs is killed at its limit with all it started, and no write waits`() throws
    {
        let harness = try ControlHarness()
        try harness.attach("a")
        let pre = try harness.script(
            "pre",
            "sleep 600 & echo $! > \(harness.service.directory.root)/child; trap '' TERM; sleep 601"
        )
        let client = try ChildProcess(
            TestService.binary,
            [
                "snapshot", "create", "--device", "a", "--pre", pre, "--hook-timeout", "2",
                "--control", harness.service.controlPath,
            ])
        try harness.waitUntil("the hook runs") {
            try FileManager.default.fileExists(atPath: harness.service.directory.path("child"))
                && !harness.lines("child").isEmpty
        }
        let child = try #require(pid_t(try harness.lines("child")[0]))
        let writer = try NBDClient(.unix(path: harness.service.socketPath), export: "a")
        var longest = 0.0
        var count = 0
        let began = monotonicSeconds()
        // The hook hangs for all of this second.
        while monotonicSeconds() - began < 1 {
            let start = monotonicSeconds()
            let reply = try writer.perform(
                NBDRequest(
                    .write, offset: UInt64(count % 64) * 4096, length: 4096,
                    payload: [UInt8](repeating: 1, count: 4096)))
            #expect(reply.error == nil)
            longest = max(longest, monotonicSeconds() - start)
            count += 1
        }
        print("\(count) writes beside a hook that hangs, the longest took \(longest) s")
        #expect(longest < 0.5)
        #expect(try client.wait(deadline: 60) == .exited(1))
        #expect(monotonicSeconds() - began < 30)
        try harness.waitUntil("the hook's child is gone") { isGone(child) }
        #expect(harness.service.log.contains("took longer than 2 s and was killed"))
        #expect(try harness.snapshotNames().isEmpty)
    }

    @Test func `that leaves a process with its output behind holds nobody up`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let pre = try harness.script(
            "pre", "sleep 600 & echo $! > \(harness.service.directory.root)/child")
        let began = monotonicSeconds()
        try harness.done(
            "snapshot", "create", "--device", "a", "--pre", pre, "--hook-timeout", "300")
        #expect(monotonicSeconds() - began < 100)
        let child = try #require(pid_t(try harness.lines("child")[0]))
        #expect(!isGone(child), "what it left lives on")
        kill(child, SIGKILL)
    }

    @Test func `may print as much as it likes`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let pre = try harness.script(
            "pre", "head -c 3000000 /dev/zero | tr '\\0' x; echo the end; exit 1")
        let outcome = try harness.command("snapshot", "create", "--device", "a", "--pre", pre)
        #expect(outcome.status == 1)
        #expect(outcome.diagnostics.contains("xxxthe end"))
        #expect(outcome.diagnostics.utf8.count < 4096)
    }

    @Test func `inherits nothing of the service but its environment`() throws {
        let harness = try ControlHarness(environment: ["NOTIFY_SOCKET": ""])
        try harness.attach("a")
        let pre = try harness.script(
            "pre",
            "ls -l /proc/self/fd > \(harness.service.directory.root)/fds; pwd > "
                + "\(harness.service.directory.root)/directory; "
                + "grep Sig /proc/self/status > \(harness.service.directory.root)/signals")
        try harness.done("snapshot", "create", "--device", "a", "--pre", pre)
        // Its three, and the directory that ls itself reads.
        #expect(try harness.lines("fds").count { $0.contains("->") } == 4)
        #expect(try harness.lines("directory") == ["/"])
        // Blocked and ignored, but for two that the C library keeps to itself.
        for line in try harness.lines("signals")
        where line.hasPrefix("SigBlk") || line.hasPrefix("SigIgn") {
            let signals = UInt64(line.split(separator: "\t").last ?? "", radix: 16)
            #expect(signals.map { $0 & ~(3 << 31) } == 0, "\(line)")
        }
    }

    @Test func `of a prepared snapshot runs when it is taken`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let hook = try harness.script(
            "hook", "echo $STILLPOINT_PHASE >> \(harness.service.directory.root)/phases")
        try harness.done(
            "snapshot", "create", "--device", "a", "--name", "s", "--prepare", "--pre", hook,
            "--post", hook)
        #expect(
            !FileManager.default.fileExists(atPath: harness.service.directory.path("phases")))
        try harness.done("snapshot", "take", "s")
        #expect(try harness.lines("phases") == ["pre", "post"])
    }

    @Test func `that is none is refused before anything is made`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let plain = try harness.image("plain")
        let cases: [(arguments: [String], status: Int32, reason: String)] = [
            (["--pre", "/does/not/exist"], 3, "does not exist"),
            (["--post", plain], 1, "cannot be run"),
            (["--post", harness.service.directory.root], 1, "cannot be run"),
            (["--pre", plain, "--hook-timeout", "0"], 2, "time limit of 0 s"),
            (["--pre", plain, "--hook-timeout", "3601"], 2, "give 1 to 3600 seconds"),
            (["--hook-timeout", "5"], 2, "needs --pre or --post"),
        ]
        for (arguments, status, reason) in cases {
            let outcome = try Command.run(
                TestService.binary,
                ["snapshot", "create", "--device", "a", "--control", harness.service.controlPath]
                    + arguments)
            #expect(outcome.status == status)
            #expect(outcome.diagnostics.contains(reason))
        }
        let bodies = [
            #"{"devices":["a"],"hooks":{"pre":"relative"}}"#,
            #"{"devices":["a"],"hooks":{"before":"/bin/true"}}"#,
            #"{"devices":["a"],"hooks":{"pre":3}}"#,
            #"{"devices":["a"],"hooks":{"pre":"/bin/true","timeout_seconds":-1}}"#,
        ]
        for body in bodies {
            #expect(try harness.http("POST", "/v1/snapshots", body: body).status == 400)
        }
        #expect(try harness.snapshotNames().isEmpty)
    }

    private func isGone(_ process: pid_t) -> Bool {
        guard kill(process, 0) == 0 else { return true }
        // Ended and not reaped by whoever adopted it: that is gone as well.
        let stat = (try? String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8)) ?? ""
        return stat.isEmpty || stat.contains(") Z")
    }
}

/// Makes a shell script, by a process of its own: a file that this one had open for writing is busy
/// for as long as a program that it starts at the same time has not begun.
func makeScript(_ path: String, _ body: String) throws {
    try Command.check(
        "/bin/sh",
        [
            "-c", "printf '%s\\n' \"$1\" > \"$2\" && chmod 700 \"$2\"", "sh",
            "#!/bin/bash\n" + body, path,
        ])
}

extension ControlHarness {
    /// Makes a shell script and returns its path.
    fileprivate func script(_ name: String, _ body: String) throws -> String {
        let path = service.directory.path(name)
        try makeScript(path, body)
        return path
    }

    /// The lines of a file in the service's directory.
    fileprivate func lines(_ name: String) throws -> [String] {
        try String(contentsOfFile: service.directory.path(name), encoding: .utf8)
            .split(separator: "\n").map(String.init)
    }
}
