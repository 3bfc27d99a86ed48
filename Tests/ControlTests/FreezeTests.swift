import Foundation
import Glibc
import TestSupport
import Testing

private let mebibyte = 1 << 20

@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: canFreeze, "needs loop devices, mkfs.ext4, mkfs.xfs and fsfreeze"))
struct `Filesystems that are frozen for a snapshot` {
    @Test func `are named in it, the last mounted first, and can be written afterwards`() throws {
        let disks = [try MountedDisk(.ext4), try MountedDisk(.xfs)]
        let harness = try ControlHarness()
        try harness.attach("a")
        let taken = try harness.object(
            "snapshot", "create", "--device", "a", "--name", "s", "--freeze", disks[0].path,
            "--freeze", disks[1].path + "/")
        #expect(taken["frozen"] as? [String] == [disks[1].path, disks[0].path])
        #expect(taken["consistency"] as? String == "filesystem")
        #expect((taken["freeze_errors"] as? [Any])?.isEmpty == true)
        for disk in disks {
            #expect(try disk.isWritable())
            // Nobody has it frozen: freezing it succeeds.
            try Command.check("fsfreeze", ["--freeze", disk.path])
            try Command.check("fsfreeze", ["--unfreeze", disk.path])
        }
        #expect(!FileManager.default.fileExists(atPath: harness.frozenList))
        let shown = try harness.command("snapshot", "show", "s").output
        #expect(shown.contains("frozen") && shown.contains(disks[0].path))
    }

    @Test(.enabled(if: canUseFUSE, "needs /dev/fuse"))
    func `stand still while the gates are closed, and go on when the cut is called off`() throws {
        let filesystem = try PowerCutFilesystem(byteCount: 4 * mebibyte)
        let disk = try MountedDisk()
        let harness = try ControlHarness(attaching: ["a": filesystem.diskPath])
        // A write that is under way for longer than gates may be closed.
        try filesystem.delay("write", milliseconds: 6000)
        let client = try NBDClient(.unix(path: harness.service.socketPath), export: "a")
        try client.send(
            NBDRequest(
                .write, cookie: 1, length: 4096, payload: [UInt8](repeating: 3, count: 4096)))
        try client.send(NBDRequest(.cache, cookie: 2, length: 4096))
        #expect(try client.receiveChunk().cookie == 2)
        // Writes one file after the other and says after each how long it took.
        let writer = try ChildProcess(
            "/bin/bash",
            [
                "-c",
                """
                while [ ! -e \(disk.path)/stop ]; do
                    start=$EPOCHREALTIME; echo x > \(disk.path)/file; end=$EPOCHREALTIME
                    echo $(( (${end/./} - ${start/./}) / 1000 ))
                done
                """,
            ])
        _ = try writer.readLine(deadline: 60)
        let outcome = try harness.command(
            "snapshot", "create", "--device", "a", "--name", "s", "--freeze", disk.path)
        #expect(outcome.status == 4)
        #expect(outcome.diagnostics.contains("writers would have waited longer than 1 s"))
        #expect(try disk.isWritable())
        #expect(FileManager.default.createFile(atPath: disk.path("stop"), contents: nil))
        let stalls = try writer.readToEnd(deadline: 60).split(separator: "\n").compactMap {
            Int($0)
        }
        let longest = stalls.max() ?? 0
        #expect(longest >= 900, "it stood still for the second that the gates were closed")
        #expect(longest < 20_000)
        #expect(try client.receiveChunk().error == nil)
        #expect(try harness.object("device", "show", "a")["epoch"] as? Int == 1)
    }

    @Test func `are busy when somebody else has one frozen, and the others are thawed`() throws {
        let disks = [try MountedDisk(), try MountedDisk()]
        let harness = try ControlHarness()
        try harness.attach("a")
        // The first one mounted is the last one frozen.
        try Command.check("fsfreeze", ["--freeze", disks[0].path])
        let arguments = [
            "snapshot", "create", "--device", "a", "--freeze", disks[0].path, "--freeze",
            disks[1].path, "--control", harness.service.controlPath,
        ]
        let refused = try Command.run(TestService.binary, arguments)
        #expect(refused.status == 4)
        #expect(
            refused.diagnostics.contains(
                "the filesystem at \(disks[0].path) is frozen already by somebody else"))
        #expect(try disks[1].isWritable())
        #expect(try harness.snapshotNames().isEmpty)
        let taken = try Command.run(
            TestService.binary, arguments + ["--freeze-best-effort", "--name", "s"])
        #expect(taken.status == 0)
        let shown = try harness.object("snapshot", "show", "s")
        #expect(shown["frozen"] as? [String] == [disks[1].path])
        #expect(shown["consistency"] as? String == "crash")
        #expect((shown["freeze_errors"] as? [String])?.first?.contains(disks[0].path) == true)
        let events = try harness.command("events", "--snapshot", "s").output
        #expect(events.contains("freeze-failed"))
        #expect(try disks[1].isWritable())
        // It is still the other one's freeze.
        try Command.check("fsfreeze", ["--unfreeze", disks[0].path])
    }

    @Test func `are refused when they hold an origin, storage or the state`() throws {
        let disk = try MountedDisk()
        let stateDisk = try MountedDisk()
        let harness = try ControlHarness(
            extraArguments: ["--state-dir", stateDisk.path("state")])
        try harness.attach("a")
        func refusal() throws -> String {
            let outcome = try harness.command(
                "snapshot", "create", "--device", "a", "--name", "s", "--freeze", disk.path)
            #expect(outcome.status == 1)
            return outcome.diagnostics
        }
        let state = try harness.command(
            "snapshot", "create", "--device", "a", "--freeze", stateDisk.path,
            "--freeze-best-effort")
        #expect(state.status == 1)
        #expect(state.diagnostics.contains("holds the state directory"))

        try makeSparseFile(disk.path("b.img"), byteCount: mebibyte)
        try harness.done("device", "attach", "b", disk.path("b.img"))
        #expect(try refusal().contains("holds the origin of device b"))
        try harness.done("device", "detach", "b")

        try makeSparseFile(disk.path("c.img"), byteCount: mebibyte)
        let loop = try LoopDevice(over: disk.path("c.img"), sectorSize: 512)
        try harness.done("device", "attach", "c", loop.path)
        #expect(try refusal().contains("holds the origin of device c"))
        try harness.done("device", "detach", "c")

        try harness.done(
            "snapshot", "create", "--device", "a", "--name", "other", "--storage", disk.path,
            "--limit", "8M")
        #expect(try refusal().contains("holds storage of snapshot other"))
        try harness.done("snapshot", "destroy", "other")

        #expect(try disk.isWritable() && stateDisk.isWritable())
        #expect(try harness.snapshotNames().isEmpty)
        try harness.done(
            "snapshot", "create", "--device", "a", "--name", "s", "--freeze", disk.path)
    }

    @Test func `are refused when they are none, or of a kind that cannot be frozen`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let memory = try MountedMemoryDisk()
        let cases: [(freeze: [String], status: Int32, reason: String)] = [
            ([memory.path], 1, "is of a type that cannot be frozen"),
            ([memory.path + "/nothing"], 3, "No such file or directory"),
            ([harness.service.directory.root], 3, "nothing is mounted at"),
            (["none", "auto"], 2, "freeze none cannot be combined"),
        ]
        for (freeze, status, reason) in cases {
            let outcome = try Command.run(
                TestService.binary,
                ["snapshot", "create", "--device", "a", "--control", harness.service.controlPath]
                    + freeze.flatMap { ["--freeze", $0] })
            #expect(outcome.status == status)
            #expect(outcome.diagnostics.contains(reason))
        }
        #expect(try harness.snapshotNames().isEmpty)
        let taken = try harness.object(
            "snapshot", "create", "--device", "a", "--freeze", memory.path,
            "--freeze-best-effort")
        #expect(taken["consistency"] as? String == "crash")
        let answer = try harness.http(
            "POST", "/v1/snapshots", body: #"{"devices":["a"],"freeze":["here"]}"#)
        #expect(answer.status == 400)
    }

    @Test(.enabled(if: canUseFUSE, "needs /dev/fuse"))
    func `too slowly are given up at the limit, and thawed when they come back`() throws {
        let filesystem = try PowerCutFilesystem(byteCount: 32 * mebibyte)
        let slow = try MountedDisk(over: filesystem.diskPath)
        let fast = try MountedDisk()
        let harness = try ControlHarness(
            environment: ["STILLPOINT_FREEZE_MILLISECONDS": "2000"])
        try harness.attach("a")
        try Command.check("sync", ["--file-system", slow.path])
        try filesystem.delay("write", milliseconds: 6000)
        let arguments = [
            "snapshot", "create", "--device", "a", "--name", "s", "--freeze", slow.path,
            "--freeze", fast.path, "--control", harness.service.controlPath,
        ]
        let refused = try Command.run(TestService.binary, arguments)
        #expect(refused.status == 4)
        #expect(
            refused.diagnostics.contains(
                "the filesystem at \(slow.path) was not frozen within 2.0 s"))
        // Sooner than the slow one's freeze returns.
        #expect(try fast.isWritable(within: 3))
        try filesystem.clearFaults()
        #expect(try slow.isWritable())
        // Its thread may be on its way out still, which is told apart from a slow disk by nothing.
        try harness.waitUntil("the list of frozen filesystems is gone") {
            !FileManager.default.fileExists(atPath: harness.frozenList)
        }
        let taken = try Command.run(TestService.binary, arguments)
        #expect(taken.status == 0)
        #expect(try slow.isWritable())
    }

    @Test(.enabled(if: canUseFUSE, "needs /dev/fuse"))
    func `are thawed after a kill in the middle`() throws {
        let filesystem = try PowerCutFilesystem(byteCount: 32 * mebibyte)
        let slow = try MountedDisk(over: filesystem.diskPath)
        let fast = try MountedDisk()
        let harness = try ControlHarness()
        try harness.attach("a")
        try Command.check("sync", ["--file-system", slow.path])
        try filesystem.delay("write", milliseconds: 8000)
        let client = try ChildProcess(
            TestService.binary,
            [
                "snapshot", "create", "--device", "a", "--freeze", slow.path, "--freeze",
                fast.path, "--control", harness.service.controlPath,
            ])
        // The list is written before anything is frozen.
        try harness.waitUntil("the list of frozen filesystems is there") {
            FileManager.default.fileExists(atPath: harness.frozenList)
        }
        let list = try String(contentsOfFile: harness.frozenList, encoding: .utf8)
        #expect(list == "\(fast.path)\n\(slow.path)\n")
        try harness.waitUntil("the fast one is frozen") { try !fast.isWritable(within: 0.2) }
        harness.service.process.send(signal: SIGKILL)
        #expect(try client.wait(deadline: 60) != .exited(0))
        try harness.service.process.wait(deadline: 60)
        // Here the freeze of the slow one came back to nobody.
        try filesystem.clearFaults()
        try harness.service.restart()
        #expect(try fast.isWritable())
        #expect(try slow.isWritable())
        #expect(!FileManager.default.fileExists(atPath: harness.frozenList))
        #expect(try harness.snapshotNames().isEmpty)
    }

    @Test func `are thawed by command when service and guardian were killed`() throws {
        let slow = try MountedDisk()
        let fast = try MountedDisk()
        let harness = try ControlHarness()
        try harness.attach("a")
        // What a service and a guardian leave that are killed at once in the middle of a cut.
        try Command.check("fsfreeze", ["--freeze", fast.path])
        try Command.check("fsfreeze", ["--freeze", slow.path])
        try "\(fast.path)\n\(slow.path)\n/no/such/mount\n".write(
            toFile: harness.frozenList, atomically: false, encoding: .utf8)
        let thaw = ["thaw", "--runtime-dir", harness.service.directory.path("run")]
        let refused = try Command.run(TestService.binary, thaw)
        #expect(refused.status == 4)
        #expect(refused.diagnostics.contains("is running and thaws what it froze"))
        #expect(try !fast.isWritable(within: 0.2))
        let guardian = try #require(try guardians(of: harness.service.process.processID).first)
        kill(guardian, SIGSTOP)
        try harness.service.process.killAndWait()
        kill(guardian, SIGKILL)
        let done = try Command.run(TestService.binary, thaw + ["--json"])
        #expect(done.status == 0, "\(done.diagnostics)")
        let document = try JSONSerialization.jsonObject(with: Data(done.output.utf8))
        #expect((document as? [String: [String]])?["thawed"] == [slow.path, fast.path])
        #expect(try fast.isWritable() && slow.isWritable())
        #expect(!FileManager.default.fileExists(atPath: harness.frozenList))
        let again = try Command.run(TestService.binary, thaw)
        #expect(again.status == 0 && again.output == "nothing was frozen\n")
    }

    @Test(.enabled(if: canUseFUSE, "needs /dev/fuse"))
    func `are those on local block devices, without being named`() throws {
        let harness = try ControlHarness()
        // A service that is killed at the end of the test would leave its block devices.
        defer { _ = try? harness.service.stop() }
        try harness.attach("a", byteCount: 64 * mebibyte)
        try harness.attach("b")
        let disk = try MountedDisk(onDevice: try harness.blockDevice("a"))
        try "before".write(toFile: disk.path("file"), atomically: true, encoding: .utf8)
        let frozen = try harness.object("snapshot", "create", "--device", "a", "--name", "s")
        #expect(frozen["frozen"] as? [String] == [disk.path])
        #expect(frozen["consistency"] as? String == "filesystem")
        #expect(try disk.isWritable())
        try "after".write(toFile: disk.path("file"), atomically: true, encoding: .utf8)
        let crash = try harness.object(
            "snapshot", "create", "--device", "a", "--name", "c", "--freeze", "none")
        #expect((crash["frozen"] as? [String])?.isEmpty == true)
        #expect(crash["consistency"] as? String == "crash")
        // The journal of a frozen filesystem is empty.
        #expect(try !harness.needsRecovery("a@s"))
        #expect(try harness.needsRecovery("a@c"))
        // Nobody here sees who writes to b.
        let both = try harness.object("snapshot", "create", "--device", "a", "--device", "b")
        #expect(both["frozen"] as? [String] == [disk.path])
        #expect(both["consistency"] as? String == "crash")
        // A filesystem on an image is not one on the device.
        let image = try harness.blockDevice("a@s")
        let mounted = harness.service.directory.path("image")
        #expect(mkdir(mounted, 0o700) == 0)
        try Command.check("mount", [image, mounted])
        defer { umount2(mounted, Int32(MNT_DETACH)) }
        #expect(try String(contentsOfFile: mounted + "/file", encoding: .utf8) == "before")
        let again = try harness.object("snapshot", "create", "--device", "a")
        #expect(again["frozen"] as? [String] == [disk.path])
        try Command.check("umount", [mounted])
        try Command.check("umount", [disk.path])
        let unmounted = try harness.object("snapshot", "create", "--device", "a")
        #expect((unmounted["frozen"] as? [String])?.isEmpty == true)
    }

    @Test(
        .enabled(if: canUseFUSE, "needs /dev/fuse"),
        .enabled(if: Command.exists("sfdisk"), "needs sfdisk"))
    func `are not those of another mount namespace, and the snapshot tells which`() throws {
        let harness = try ControlHarness()
        defer { _ = try? harness.service.stop() }
        let image = try harness.image("a.img", byteCount: 100 * mebibyte)
        let table = harness.service.directory.path("table")
        try "label: gpt\n,40M\n,40M\n".write(toFile: table, atomically: true, encoding: .utf8)
        try Command.check("sh", ["-c", "sfdisk -q \(image) < \(table)"])
        try harness.done("device", "attach", "a", image)
        let block = try harness.object("block", "attach", "a", "--partitions")
        let path = try #require((block["node"] ?? block["path"]) as? String)
        let disk = try MountedDisk(onDevice: path + "p1")
        try Command.check("mkfs.ext4", ["-q", path + "p2"])
        let elsewhere = harness.service.directory.path("elsewhere")
        #expect(mkdir(elsewhere, 0o700) == 0)
        let container = try ChildProcess(
            inMountNamespace: "mount \(path)p2 \(elsewhere) && echo mounted && read -r line")
        #expect(try container.readLine(deadline: 60) == "mounted")
        let snapshot = try harness.object("snapshot", "create", "--device", "a", "--name", "s")
        #expect(snapshot["frozen"] as? [String] == [disk.path])
        #expect(snapshot["consistency"] as? String == "crash")
        let errors = try #require(snapshot["freeze_errors"] as? [String])
        #expect(errors.count == 1)
        #expect(
            errors.first?.contains("\(elsewhere) is mounted only in the mount namespace of") == true
        )
        let none = try harness.object("snapshot", "create", "--device", "a", "--freeze", "none")
        #expect((none["freeze_errors"] as? [String])?.isEmpty == true)
        container.closeInput()
        try container.wait(deadline: 60)
        let after = try harness.object("snapshot", "create", "--device", "a")
        #expect(after["consistency"] as? String == "filesystem")
    }

    @Test(.enabled(if: canUseFUSE, "needs /dev/fuse"))
    func `on a local block device keep no killed service from ending`() throws {
        let filesystem = try PowerCutFilesystem(byteCount: 64 * mebibyte)
        let harness = try ControlHarness(attaching: ["a": filesystem.diskPath])
        defer { _ = try? harness.service.stop() }
        let disk = try MountedDisk(onDevice: try harness.blockDevice("a"))
        try Command.check("sync", ["--file-system", disk.path])
        // The freeze waits for writes that the service itself has to perform.
        try filesystem.delay("write", milliseconds: 8000)
        let client = try ChildProcess(
            TestService.binary,
            ["snapshot", "create", "--device", "a", "--control", harness.service.controlPath])
        try harness.waitUntil("the list of frozen filesystems is there") {
            FileManager.default.fileExists(atPath: harness.frozenList)
        }
        harness.service.process.send(signal: SIGKILL)
        try harness.service.process.wait(deadline: 60)
        #expect(try client.wait(deadline: 60) != .exited(0))
        try filesystem.clearFaults()
        try harness.service.restart()
        // Its device is gone, and it is frozen no more: it can be unmounted.
        try Command.check("umount", [disk.path], deadline: 60)
        #expect(!FileManager.default.fileExists(atPath: harness.frozenList))
    }
}

extension ControlHarness {
    /// Attaches a device or image as a local block device and returns its path.
    func blockDevice(_ target: String) throws -> String {
        guard let path = try object("block", "attach", target)["node"] as? String else {
            throw TestFailure("block attach \(target) names no path")
        }
        return path
    }

    /// Whether the ext4 on an image has something in its journal.
    func needsRecovery(_ image: String) throws -> Bool {
        let path = try blockDevice(image)
        defer { _ = try? command("block", "detach", path) }
        return try Command.check("dumpe2fs", ["-h", path]).contains("needs_recovery")
    }

    var frozenList: String { service.directory.path("run/frozen") }

    /// Waits for something that no event tells of.
    func waitUntil(_ what: String, _ condition: () throws -> Bool) throws {
        let end = monotonicSeconds() + 60
        while try !condition() {
            guard monotonicSeconds() < end else { throw TestFailure("\(what): not within 60 s") }
            sched_yield()
        }
    }
}

/// A tmpfs, which cannot be frozen, unmounted when the object goes.
private final class MountedMemoryDisk {
    let path: String
    private let directory: TemporaryDirectory
    private let ticket: Int

    init() throws {
        directory = try TemporaryDirectory()
        path = directory.path("memory")
        guard mkdir(path, 0o700) == 0 else { throw TestFailure("mkdir: \(errno)") }
        ticket = ExitCleanup.shared.register("umount --lazy \(path)")
        try Command.check("mount", ["-t", "tmpfs", "none", path])
    }

    deinit {
        umount2(path, Int32(MNT_DETACH))
        ExitCleanup.shared.withdraw(ticket)
    }
}
