import Foundation
import TestSupport
import Testing

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `The command line` {
    @Test(arguments: [
        ["bogus"], ["device"], ["device", "show"], ["device", "attach", "vm1"],
        ["device", "attach", "a b", "/disk.img"], ["status", "--bogus"],
        ["device", "attach", "vm1", "/disk.img", "--sector-size", "513"],
        ["serve", "--nbd", "nowhere"], ["serve", "--attach", "vm1"],
        ["serve", "--attach", "=/disk.img"], ["serve", "--loops", "0"],
        ["serve", "--attach", "a=/x", "--attach", "a=/y"],
        ["snapshot", "create"], ["snapshot", "create", "--device", "a b"],
        ["snapshot", "create", "--device", "a", "--device", "a"],
        ["snapshot", "create", "--device", "a", "--name", "a@b"],
        ["snapshot", "create", "--device", "a", "--storage", "memory:much"],
        ["snapshot", "create", "--device", "a", "--storage", "memory:63K"],
        ["snapshot", "create", "--device", "a", "--storage", "memory:8388608T"],
        ["snapshot", "create", "--device", "a", "--limit", "63K"],
        ["snapshot", "create", "--device", "a", "--on-overflow", "throttle:0"],
        ["snapshot", "create", "--device", "a", "--on-overflow", "never"],
        ["snapshot", "append-storage", "s"], ["snapshot", "take"],
        ["events", "--timeout", "soon"],
        ["serve", "--control", "/" + String(repeating: "x", count: 200)],
    ])
    func `ends with 2 on wrong usage and prints nothing on standard output`(
        arguments: [String]
    ) throws {
        let outcome = try Command.run(TestService.binary, arguments)
        // `device` alone asks for help, which is no mistake.
        if arguments == ["device"] {
            #expect(outcome.status == 0)
            return
        }
        #expect(outcome.status == 2, "\(outcome.diagnostics)")
        #expect(outcome.output == "")
        #expect(!outcome.diagnostics.isEmpty)
    }

    @Test(arguments: [["--help"], ["--version"], ["serve", "--help"], ["device", "attach", "-h"]])
    func `prints help and version on standard output and ends with 0`(
        arguments: [String]
    ) throws {
        let outcome = try Command.run(TestService.binary, arguments)
        #expect(outcome.status == 0)
        #expect(!outcome.output.isEmpty)
        #expect(outcome.diagnostics == "")
    }

    @Test(arguments: [
        ["status"], ["device", "list"], ["device", "attach", "vm1", "/disk.img"],
        ["snapshot", "list"], ["events", "--follow"],
    ])
    func `ends with 7 when no service listens`(arguments: [String]) throws {
        let directory = try TemporaryDirectory()
        // At once: nothing is tried again, so this deadline is far more than it takes.
        let outcome = try Command.run(
            TestService.binary, arguments + ["--control", directory.path("none.sock")],
            deadline: 30)
        #expect(outcome.status == 7)
        #expect(outcome.output == "")
        #expect(outcome.diagnostics.contains("none.sock"))
        #expect(outcome.diagnostics.contains("No such file or directory"))
    }

    @Test func `attaches, lists, shows and detaches a device`() throws {
        let harness = try ControlHarness()
        let image = try harness.image("disk.img", byteCount: 1 << 20 | 4096)
        #expect(try harness.command("device", "attach", "vm1", image).status == 0)
        #expect(try harness.command("device", "attach", "vm1", image).status == 0)
        #expect(try harness.deviceNames() == ["vm1"])
        #expect(try harness.command("device", "list").output.contains(image))
        #expect(try harness.command("device", "show", "vm1").output.contains("read/write"))
        let device = try #require(
            try harness.document("device", "show", "vm1") as? [String: Any])
        #expect(
            Set(device.keys) == [
                "name", "path", "size", "sector_size", "block_size", "chunk_size", "chunk_count",
                "read_only", "block_device", "rotational", "access", "loop", "attached_at",
                "connections", "counters", "epoch", "snapshots", "generation", "exclusive",
                "history", "history_reason", "mode", "granularity", "origin_state", "last_cut",
            ])
        #expect(device["name"] as? String == "vm1")
        #expect(device["path"] as? String == image)
        #expect(device["size"] as? Int == 1 << 20 | 4096)
        #expect(device["chunk_count"] as? Int == 17)
        #expect(device["read_only"] as? Bool == false)
        #expect(try harness.command("device", "detach", "vm1").status == 0)
        #expect(try harness.deviceNames().isEmpty)
        #expect(try harness.command("device", "detach", "vm1").status == 3)
        #expect(try harness.service.stop() == .exited(0))
    }

    @Test func `ends with 3 for what does not exist`() throws {
        let harness = try ControlHarness()
        for arguments in [["device", "show", "vm1"], ["device", "detach", "no/name"]] {
            let outcome = try Command.run(
                TestService.binary, arguments + ["--control", harness.service.controlPath])
            #expect(outcome.status == 3, "\(outcome.diagnostics)")
            #expect(outcome.output == "")
        }
        let outcome = try harness.command("device", "attach", "vm1", "/nonexistent/disk.img")
        #expect(outcome.status == 3)
        #expect(outcome.diagnostics.contains("/nonexistent/disk.img"))
    }

    @Test func `ends with 4 for a name or an origin in use, and changes nothing`() throws {
        let harness = try ControlHarness()
        let first = try harness.image("first.img")
        let second = try harness.image("second.img")
        let link = harness.service.directory.path("link.img")
        try FileManager.default.createSymbolicLink(atPath: link, withDestinationPath: first)
        #expect(try harness.command("device", "attach", "vm1", first).status == 0)
        let sameName = try harness.command("device", "attach", "vm1", second)
        #expect(sameName.status == 4)
        #expect(sameName.diagnostics.contains(first))
        let sameOrigin = try harness.command("device", "attach", "vm2", link)
        #expect(sameOrigin.status == 4)
        #expect(sameOrigin.diagnostics.contains("vm1"))
        #expect(try harness.command("device", "attach", "vm1", first, "--read-only").status == 4)
        #expect(try harness.deviceNames() == ["vm1"])
    }

    @Test func `of many that attach one name at once, one wins and the rest are told`() throws {
        let harness = try ControlHarness()
        let images = try (0..<8).map { try harness.image("disk\($0).img") }
        let children = try images.map { image in
            try ChildProcess(
                TestService.binary,
                ["device", "attach", "vm1", image, "--control", harness.service.controlPath],
                diagnostics: image + ".log")
        }
        let endings = try children.map { try $0.wait(deadline: 300) }
        #expect(endings.count { $0 == .exited(0) } == 1)
        #expect(endings.count { $0 == .exited(4) } == 7)
        #expect(try harness.deviceNames() == ["vm1"])
    }

    @Test func `probe tells what the machine offers without a service`() throws {
        let outcome = try Command.run(TestService.binary, ["probe", "--json"])
        #expect(outcome.status == 0)
        let document = try JSONSerialization.jsonObject(with: Data(outcome.output.utf8))
        let ring = (document as? [String: Any])?["io_uring"] as? [String: Any]
        #expect(ring?["usable"] as? Bool == true)
        #expect(try Command.run(TestService.binary, ["probe", "/nonexistent"]).status == 3)
    }
}
