import ControlDocuments
import Foundation
import Glibc
import TestSupport
import Testing

@Suite struct `A size` {
    private static let sizes: [(text: String, bytes: UInt64)] = [
        ("0", 0), ("4096", 4096), ("512b", 512), ("10K", 10_240), ("10k", 10_240),
        ("10KB", 10_240), ("10KiB", 10_240), ("3M", 3_145_728), ("10GB", 10_737_418_240),
        ("10g", 10_737_418_240), ("10GiB", 10_737_418_240), ("1.5G", 1_610_612_736),
        ("0.5T", 549_755_813_888),
        ("1.1K", 1126), ("1.999999999T", 2_199_023_254_452),
        ("8388607T", 9_223_370_937_343_148_032),
    ]

    @Test(arguments: sizes)
    func `is read as people write it`(text: String, bytes: UInt64) {
        #expect(parseSize(text) == bytes)
    }

    @Test(arguments: [
        "", "G", "-1", "+1", "1 G", " 1", "1.G", ".5G", "1.5", "1..5G", "1.5.5G", "1e3", "0x10",
        "10i", "10iB", "10Gi", "10BG", "10P", "١K", "8388608T", "9223372036854775808",
        "8388607.9999999999T", "1.0000000001G", "10GBB",
    ])
    func `that is none is refused`(text: String) {
        #expect(parseSize(text) == nil)
    }

    @Test func `that names a place on a device is one of whole bytes`() {
        #expect(parseSize("1.5K", rounding: .none) == 1536)
        #expect(parseSize("1.1K", rounding: .none) == nil)
    }
}

@Suite struct `A name that was mistyped` {
    @Test func `is answered with the nearest one`() {
        let names = ["nightly", "weekly", "vm1", "vm10", "a"]
        #expect(nearestName(to: "nighty", among: names) == "nightly")
        #expect(nearestName(to: "Nihgtly", among: names) == "nightly")
        #expect(nearestName(to: "vm11", among: names) == "vm1")
        #expect(nearestName(to: "vm2", among: names) == "vm1")
        #expect(nearestName(to: "monthly", among: names) == nil)
        #expect(nearestName(to: "b", among: names) == nil)
        #expect(nearestName(to: "", among: names) == nil)
        #expect(nearestName(to: "vm1", among: ["vm1"]) == nil)
        #expect(nearestName(to: String(repeating: "x", count: 1000), among: names) == nil)
    }
}

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `A command that fails` {
    @Test(arguments: [
        (["statsu"], "Did you mean 'status'?"), (["device", "shwo", "x"], "Did you mean 'show'?"),
        (["snapsot", "list"], "Did you mean 'snapshot'?"),
        (["status", "--jsno"], "Did you mean '--json'?"),
    ])
    func `names the command or option that was meant`(arguments: [String], hint: String) throws {
        let outcome = try Command.run(TestService.binary, arguments)
        #expect(outcome.status == 2)
        #expect(outcome.diagnostics.contains(hint), "\(outcome.diagnostics)")
    }

    @Test func `prints one error document with its code when JSON was asked for`() throws {
        let harness = try ControlHarness()
        try harness.attach("vm1")
        try harness.done("checkpoint", "create", "monday", "--device", "vm1")
        let cases: [([String], Int32, String, String)] = [
            (["device", "show", "vm2"], 3, "no_such_device", "did you mean \"vm1\"?"),
            (["changes", "vm2", "--since", "monday"], 3, "no_such_device", "vm2"),
            (["changes", "vm1", "--since", "mondya"], 3, "no_such_base", "\"monday\"?"),
            (["changes", "vm1", "--until", "s"], 3, "no_such_snapshot", "s"),
            (["checkpoint", "delete", "mnday"], 3, "no_such_checkpoint", "\"monday\"?"),
            (["snapshot", "show", "s"], 3, "no_such_snapshot", "s"),
            (["device", "attach", "x", "/nonexistent/disk"], 3, "no_such_file", "/nonexistent"),
            (["checkpoint", "create", "monday", "--device", "vm1"], 4, "name_taken", "monday"),
            (["block", "detach", "/dev/loop9999"], 3, "no_such_block", "loop9999"),
            (["events", "--after", "99"], 4, "events_restarted", "99"),
            (["snapshot", "create", "--device", "vm1", "--limit", "much"], 2, "invalid", "much"),
            (["snapshot", "list", "--bogus"], 2, "invalid", "--bogus"),
            (["devcie", "list"], 2, "invalid", "'device'"),
        ]
        for (arguments, status, code, words) in cases {
            let outcome = try Command.run(
                TestService.binary,
                arguments + ["--json", "--control", harness.service.controlPath])
            #expect(outcome.status == status, "\(arguments): \(outcome.diagnostics)")
            #expect(outcome.errorCode == code, "\(arguments): \(outcome.output)")
            #expect(outcome.output.contains(words.replacingOccurrences(of: "\"", with: "\\\"")))
            #expect(outcome.diagnostics.contains(words), "\(arguments): \(outcome.diagnostics)")
        }
        let directory = try TemporaryDirectory()
        let none = try Command.run(
            TestService.binary, ["status", "--json", "--control", directory.path("c.sock")])
        #expect(none.status == 7 && none.errorCode == "not_reachable")
    }

    @Test func `says so when its output cannot be written`() throws {
        let harness = try ControlHarness()
        try harness.attach("vm1")
        for options in ["", "--json"] {
            let outcome = try Command.run(
                "sh",
                [
                    "-c",
                    "\(TestService.binary) device list \(options) "
                        + "--control \(harness.service.controlPath) >/dev/full",
                ])
            #expect(outcome.status == 1)
            #expect(outcome.diagnostics.contains("No space left on device"))
        }
        // Nobody listens for `ready`: a service serves others.
        #expect(try harness.service.stop() == .exited(0))
    }

    @Test(.enabled(if: isRoot, "only root can become somebody else"))
    func `says who may use the control socket to somebody who may not`() throws {
        let harness = try ControlHarness()
        let program = harness.service.directory.path("stillpoint")
        // Where everybody may run it; the socket is for root alone.
        let place = try TemporaryDirectory()
        #expect(chmod(place.root, 0o755) == 0)
        try Command.check("cp", [TestService.binary, place.path("stillpoint")])
        #expect(program != place.path("stillpoint"))
        for folderMode in [mode_t(0o700), 0o755] {
            #expect(chmod(harness.service.directory.root, folderMode) == 0)
            let outcome = try Command.run(
                "setpriv",
                [
                    "--reuid", "65534", "--regid", "65534", "--clear-groups",
                    place.path("stillpoint"), "status", "--control", harness.service.controlPath,
                ])
            #expect(outcome.status == 7)
            #expect(outcome.diagnostics.contains("Permission denied"))
            #expect(outcome.diagnostics.contains("user root"), "\(outcome.diagnostics)")
            #expect(outcome.diagnostics.contains("sudo"))
        }
    }

    @Test func `never fails for the length of a socket path that the service took`() throws {
        for length in 103...107 {
            let directory = try TemporaryDirectory()
            let name = String(repeating: "c", count: length - directory.root.utf8.count - 1)
            let control = directory.path(name)
            let service = try ChildProcess(
                TestService.binary,
                [
                    "serve", "--control", control, "--state-dir", directory.path("state"),
                    "--runtime-dir", directory.path("run"), "--nbd",
                    "unix:" + directory.path("n.sock"),
                ], diagnostics: directory.path("log"))
            try #require(try service.readLine(deadline: 120) == "ready")
            let status = try Command.run(TestService.binary, ["status", "--control", control])
            #expect(status.status == 0, "\(length): \(status.diagnostics)")
            let events = try Command.run(TestService.binary, ["events", "--control", control])
            #expect(events.status == 0, "\(length): \(events.diagnostics)")
            service.send(signal: SIGTERM)
            #expect(try service.wait(deadline: 120) == .exited(0))
            let gone = try Command.run(TestService.binary, ["status", "--control", control])
            #expect(gone.status == 7 && gone.diagnostics.contains("No such file"))
        }
    }
}

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Completion in the shell` {
    /// What bash would offer for the last of `words`.
    private func offered(_ harness: ControlHarness, _ words: String...) throws -> [String] {
        let directory = try TemporaryDirectory()
        let script = try Command.check(
            TestService.binary, ["--generate-completion-script", "bash"])
        let quoted = words.map { "'\($0)'" }.joined(separator: " ")
        let text = """
            \(script)
            PATH=\((TestService.binary as NSString).deletingLastPathComponent):$PATH
            COMP_WORDS=(stillpoint \(quoted))
            COMP_CWORD=\(words.count)
            COMP_LINE="${COMP_WORDS[*]}"
            COMP_POINT=${#COMP_LINE}
            COMP_TYPE=9
            _stillpoint stillpoint "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
            printf '%s\\n' "${COMPREPLY[@]}"
            """
        try text.write(toFile: directory.path("script"), atomically: true, encoding: .utf8)
        let outcome = try Command.run(
            "bash", [directory.path("script")],
            environment: ["STILLPOINT_CONTROL": harness.service.controlPath], deadline: 60)
        return outcome.output.split(separator: "\n").map(String.init).sorted()
    }

    @Test func `offers names of devices, snapshots, checkpoints and formats`() throws {
        let harness = try ControlHarness()
        for name in ["alpha", "beta"] { try harness.attach(name) }
        try harness.done("checkpoint", "create", "monday", "--device", "alpha")
        try harness.done(
            "snapshot", "create", "--device", "beta", "--name", "nightly", "--storage",
            "memory:16M")
        #expect(try offered(harness, "device", "show", "") == ["alpha", "beta"])
        #expect(try offered(harness, "device", "show", "al") == ["alpha"])
        #expect(try offered(harness, "snapshot", "create", "--device", "b") == ["beta"])
        #expect(try offered(harness, "snapshot", "show", "") == ["nightly"])
        #expect(try offered(harness, "checkpoint", "delete", "mo") == ["monday"])
        let bases = try offered(harness, "changes", "show", "alpha", "--since", "")
        #expect(bases == ["generation", "monday", "nightly"])
        let formats = try offered(harness, "changes", "show", "alpha", "--format", "")
        #expect(formats == ["heatmap", "json", "ranges", "table"])
        #expect(try offered(harness, "block", "attach", "beta@") == ["beta@nightly"])
        #expect(try harness.service.stop() == .exited(0))
        // Without a service there is nothing to offer, and nothing to say.
        #expect(try offered(harness, "device", "show", "") == [])
    }
}
