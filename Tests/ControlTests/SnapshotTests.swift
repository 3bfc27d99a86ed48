import Foundation
import Glibc
import TestSupport
import Testing

private let mebibyte = 1 << 20

@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: Command.exists("qemu-io"), "needs qemu-io (qemu-utils)"))
struct `A snapshot` {
    @Test func `is created, listed, shown and destroyed, and says so in JSON`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        try harness.fill("a", 7, length: 4 * mebibyte)
        let made = try harness.command("snapshot", "create", "--device", "a", "--name", "s1")
        #expect(made.status == 0)
        let id = made.output.trimmingCharacters(in: .newlines)
        #expect(UUID(uuidString: id) != nil && made.output == id + "\n")
        #expect(try harness.snapshotNames() == ["s1"])
        try harness.fill("a", 9, length: 2 * mebibyte)
        for name in ["s1", id, String(id.prefix(8)), String(id.prefix(8)).uppercased()] {
            let shown = try harness.object("snapshot", "show", name)
            #expect(shown["id"] as? String == id)
            #expect(
                Set(shown.keys) == [
                    "id", "name", "state", "created_at", "taken_at", "cut_microseconds",
                    "drain_microseconds", "frozen", "freeze_errors", "consistency",
                    "on_overflow", "devices", "storage", "warnings",
                ])
            #expect(shown["state"] as? String == "held")
            #expect(shown["consistency"] as? String == "crash")
            let device = try #require((shown["devices"] as? [[String: Any]])?.first)
            #expect(device["image"] as? String == "a@s1")
            #expect(device["size"] as? Int == 16 * mebibyte)
            #expect(device["epoch"] as? Int == 1)
            #expect(device["error"] is NSNull)
            #expect(device["copied_bytes"] as? Int == 2 * mebibyte)
            let storage = try #require(shown["storage"] as? [String: Any])
            #expect(storage["stored_bytes"] as? Int == 2 * mebibyte)
            #expect(storage["limit"] as? Int == 64 * mebibyte)
            #expect((storage["sources"] as? [Any])?.count == 1)
        }
        let device = try harness.object("device", "show", "a")
        #expect(device["snapshots"] as? [String] == [id])
        #expect(device["epoch"] as? Int == 2)
        #expect(try harness.command("snapshot", "show", "s1").output.contains("a@s1"))
        #expect(try harness.command("snapshot", "list").output.contains(id))
        #expect(try harness.command("status").output.contains("s1"))
        let last = try harness.object("snapshot", "destroy", "s1")
        #expect(last["state"] as? String == "destroyed")
        #expect(try harness.snapshotNames().isEmpty)
        #expect(try harness.exportNames() == ["a"])
        #expect(try harness.unnamedFileCount() == 0)
        #expect(try harness.command("snapshot", "destroy", "s1").status == 3)
    }

    @Test func `keeps the state of two devices at the cut while they are overwritten`() throws {
        try #require(Command.exists("nbdcopy") && Command.exists("nbdinfo"))
        let harness = try ControlHarness()
        for name in ["a", "b"] { try harness.attach(name, byteCount: 32 * mebibyte) }
        try harness.fill("a", 1, length: 24 * mebibyte)
        try harness.fill("b", 2, offset: 4096, length: 8 * mebibyte)
        try harness.done(
            "snapshot", "create", "--device", "a", "--device", "b", "--name", "both", "--storage",
            harness.service.directory.path(""), "--limit", "256M")
        let list = try Command.check("nbdinfo", ["--list", "--json", harness.service.uri("")])
        for name in ["a@both", "a@both:rw", "b@both", "b@both:rw"] {
            #expect(list.contains("\"\(name)\""))
        }
        let writers = try ["a", "b"].map { name in
            try ChildProcess(
                "qemu-io",
                ["-f", "raw", harness.service.uri(name)]
                    + (1...20).flatMap { ["-c", "write -P \($0 + 100) 0 32M"] })
        }
        for round in 0..<2 {
            for (name, pattern, offset, length) in [
                ("a", UInt8(1), 0, 24 * mebibyte), ("b", 2, 4096, 8 * mebibyte),
            ] {
                let copy = harness.service.directory.path("\(name)\(round).copy")
                try Command.check("nbdcopy", [harness.service.uri("\(name)@both"), copy])
                var expected = [UInt8](repeating: 0, count: 32 * mebibyte)
                for place in offset..<offset + length { expected[place] = pattern }
                #expect(try Data(contentsOf: URL(filePath: copy)) == Data(expected))
            }
        }
        for writer in writers { #expect(try writer.wait(deadline: 300) == .exited(0)) }
        #expect(try harness.holds("a", 120, length: 32 * mebibyte))
        #expect(try harness.service.stop() == .exited(0))
    }

    @Test func `has images of which one is read-only and one forgets what is written to it`()
        throws
    {
        let harness = try ControlHarness()
        try harness.attach("a")
        try harness.fill("a", 1, length: mebibyte)
        try harness.done("snapshot", "create", "--device", "a", "--name", "s")
        #expect(throws: TestFailure.self) { try harness.fill("a@s", 2, length: 4096) }
        try harness.fill("a@s:rw", 2, length: 4096)
        #expect(try harness.holds("a@s:rw", 2, length: 4096))
        #expect(try harness.holds("a@s", 1, length: mebibyte))
        #expect(try harness.holds("a", 1, length: mebibyte))
        // The empty name still means the only device.
        #expect(try harness.holds("", 1, length: mebibyte))
    }

    @Test func `that is only prepared can be taken, once, and destroyed at any time`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        try harness.fill("a", 1, length: mebibyte)
        let made = try harness.object(
            "snapshot", "create", "--device", "a", "--name", "s", "--prepare")
        #expect(made["state"] as? String == "prepared")
        #expect(made["taken_at"] is NSNull)
        #expect(try harness.exportNames() == ["a"])
        try harness.fill("a", 2, length: mebibyte)
        #expect(try harness.object("snapshot", "take", "s")["state"] as? String == "held")
        #expect(try harness.holds("a@s", 2, length: mebibyte))
        #expect(try harness.command("snapshot", "take", "s").status == 4)
        try harness.done("snapshot", "create", "--device", "a", "--name", "t", "--prepare")
        #expect(try harness.command("device", "detach", "a").status == 4)
        try harness.done("snapshot", "destroy", "t")
        try harness.done("snapshot", "destroy", "s")
        #expect(try harness.unnamedFileCount() == 0)
        try harness.done("device", "detach", "a")
    }

    @Test func `is refused with a reason, and nothing is left of it`() throws {
        let harness = try ControlHarness()
        let origin = try harness.attach("a")
        try harness.attach("b")
        let folder = harness.service.directory.path("")
        try harness.done("snapshot", "create", "--device", "a", "--name", "taken")
        let existing = try harness.image("existing", byteCount: 1 << 20)
        let before = try harness.unnamedFileCount()
        let refusals: [([String], Int32, String)] = [
            (["--device", "none"], 3, "none"),
            (["--device", "b", "--device", "none"], 3, "none"),
            (["--device", "b", "--name", "taken"], 4, "taken"),
            (["--device", "b", "--storage", existing], 4, "exists already"),
            (["--device", "b", "--storage", origin], 4, "exists already"),
            (["--device", "b", "--storage", folder, "--storage", existing], 4, "exists already"),
            (["--device", "b", "--storage", "/nonexistent/storage"], 1, "/nonexistent"),
            (["--device", "b", "--storage", "/proc"], 1, "/proc"),
            (
                ["--device", "b", "--name", UUID().uuidString.lowercased()], 2,
                "could be the id of a snapshot"
            ),
        ]
        for (arguments, status, reason) in refusals {
            let outcome = try Command.run(
                TestService.binary,
                ["snapshot", "create", "--control", harness.service.controlPath] + arguments)
            #expect(outcome.status == status, "\(arguments): \(outcome.diagnostics)")
            #expect(outcome.hasNoAnswer)
            #expect(outcome.diagnostics.contains(reason), "\(outcome.diagnostics)")
        }
        #expect(try harness.snapshotNames() == ["taken"])
        #expect(try harness.unnamedFileCount() == before)
        #expect(try harness.exportNames() == ["a", "a@taken", "a@taken:rw", "b"])
        for arguments in [["show"], ["take"], ["destroy"]] {
            let outcome = try harness.command("snapshot", arguments[0], "none")
            #expect(outcome.status == 3)
        }
        // What was refused holds nothing: the device can go.
        try harness.done("device", "detach", "b")
    }

    @Test(.enabled(if: canUseLoopDevices, "needs loop devices"))
    func `is refused storage on its origin, and block devices with content or too small`() throws {
        let harness = try ControlHarness()
        let file = try harness.image("disk", byteCount: 64 * mebibyte)
        let device = try LoopDevice(over: file, sectorSize: 512)
        try harness.done("device", "attach", "a", device.path)
        let same = try harness.command(
            "snapshot", "create", "--device", "a", "--storage", device.path)
        #expect(same.status == 4, "\(same.diagnostics)")
        let small = try LoopDevice(
            over: try harness.image("small", byteCount: 48 << 10), sectorSize: 512)
        let tooSmall = try harness.command(
            "snapshot", "create", "--device", "a", "--storage", small.path)
        #expect(tooSmall.status == 1)
        #expect(tooSmall.diagnostics.contains("give at least 64K"))
        let other = try LoopDevice(
            over: try harness.image("other", byteCount: 32 * mebibyte), sectorSize: 512)
        try Command.check("mkswap", [other.path])
        let full = try harness.command(
            "snapshot", "create", "--device", "a", "--storage", other.path)
        #expect(full.status == 4)
        #expect(full.diagnostics.contains("swap"))
        try harness.done(
            "snapshot", "create", "--device", "a", "--storage", other.path, "--force", "--name",
            "s")
        try harness.fill("a", 5, length: 8 * mebibyte)
        #expect(try harness.holds("a@s", 0, length: 8 * mebibyte))
        try harness.done("snapshot", "destroy", "s")
    }

    @Test func `holds its devices until it is destroyed, or the detach is forced`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        try harness.attach("b")
        try harness.done(
            "snapshot", "create", "--device", "a", "--device", "b", "--name", "s")
        let refused = try harness.command("device", "detach", "a")
        #expect(refused.status == 4)
        #expect(refused.diagnostics.contains("snapshot(s) s"))
        #expect(try harness.exportNames() == ["a", "a@s", "a@s:rw", "b", "b@s", "b@s:rw"])
        // A reader that sits on the image is sent away.
        let reader = try NBDClient(.unix(path: harness.service.socketPath), export: "a@s")
        try harness.done("device", "detach", "a", "--force")
        try reader.drainUntilClosed()
        #expect(try harness.snapshotNames().isEmpty)
        #expect(try harness.exportNames() == ["b"])
        #expect(try harness.unnamedFileCount() == 0)
        try harness.done("device", "detach", "b")
    }

    @Test func `is given more storage while it is held`() throws {
        let harness = try ControlHarness()
        try harness.attach("a", byteCount: 32 * mebibyte)
        try harness.fill("a", 1, length: 32 * mebibyte)
        try harness.done(
            "snapshot", "create", "--device", "a", "--name", "s", "--storage", "memory:8M")
        try harness.done(
            "snapshot", "append-storage", "s", "--storage",
            harness.service.directory.path("more"), "--limit", "64M")
        #expect(access(harness.service.directory.path("more"), F_OK) != 0)
        try harness.fill("a", 2, length: 32 * mebibyte)
        #expect(try harness.holds("a@s", 1, length: 32 * mebibyte))
        let storage = try #require(
            try harness.object("snapshot", "show", "s")["storage"] as? [String: Any])
        #expect((storage["sources"] as? [Any])?.count == 2)
        #expect(storage["limit"] as? Int == 72 * mebibyte)
        #expect(storage["stored_bytes"] as? Int == 32 * mebibyte)
        #expect(
            try harness.command("snapshot", "append-storage", "none", "--storage", "memory:8M")
                .status == 3)
    }

    @Test func `that throttles is saved by storage that comes in time`() throws {
        let harness = try ControlHarness()
        try harness.attach("a", byteCount: 32 * mebibyte)
        try harness.fill("a", 1, length: 32 * mebibyte)
        try harness.done(
            "snapshot", "create", "--device", "a", "--name", "s", "--storage", "memory:4M",
            "--on-overflow", "throttle:300")
        let writer = try ChildProcess(
            "qemu-io",
            ["-f", "raw", harness.service.uri("a")]
                + (0..<32).flatMap { ["-c", "write -P 2 \($0)M 1M"] })
        let low = try harness.command(
            "events", "--snapshot", "s", "--after", "2", "--timeout", "300")
        #expect(low.output.contains("low-space"))
        try harness.done("snapshot", "append-storage", "s", "--storage", "memory:64M")
        #expect(try writer.wait(deadline: 300) == .exited(0))
        #expect(try harness.object("snapshot", "show", "s")["state"] as? String == "held")
        #expect(try harness.holds("a@s", 1, length: 32 * mebibyte))
    }

    @Test func `leaves no file behind, however the service ends, and does not outlive it`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let folder = harness.service.directory.path("storage")
        #expect(mkdir(folder, 0o700) == 0)
        for isKilled in [false, true] {
            try harness.done(
                "snapshot", "create", "--device", "a", "--name", isKilled ? "killed" : "stopped",
                "--storage", folder, "--storage", folder + "/named")
            try harness.done("snapshot", "create", "--device", "a", "--prepare")
            try harness.fill("a", 3, length: 8 * mebibyte)
            #expect(try harness.unnamedFileCount() == 3)
            #expect(try FileManager.default.contentsOfDirectory(atPath: folder).isEmpty)
            if isKilled {
                try harness.service.process.killAndWait()
            } else {
                #expect(try harness.service.stop() == .exited(0))
            }
            #expect(try FileManager.default.contentsOfDirectory(atPath: folder).isEmpty)
            try harness.service.restart()
            #expect(try harness.deviceNames() == ["a"])
            #expect(try harness.snapshotNames().isEmpty)
            #expect(try harness.exportNames() == ["a"])
            #expect(try harness.unnamedFileCount() == 0)
        }
    }

    @Test func `is made once of many that ask for one name, and destroyed once`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let makers = try (0..<6).map { _ in
            try ChildProcess(
                TestService.binary,
                [
                    "snapshot", "create", "--device", "a", "--name", "s", "--control",
                    harness.service.controlPath,
                ])
        }
        let made = try makers.map { try $0.wait(deadline: 300) }
        #expect(made.count { $0 == .exited(0) } == 1)
        #expect(made.count { $0 == .exited(4) } == 5)
        let enders = try (0..<6).map { _ in
            try ChildProcess(
                TestService.binary,
                ["snapshot", "destroy", "s", "--control", harness.service.controlPath])
        }
        let ended = try enders.map { try $0.wait(deadline: 300) }
        #expect(ended.count { $0 == .exited(0) } == 1)
        #expect(ended.count { $0 == .exited(3) } == 5)
        #expect(try harness.unnamedFileCount() == 0)
    }
}
