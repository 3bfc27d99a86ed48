import Foundation
import Glibc
import TestSupport
import Testing

private let toolsAreThere =
    ["fio", "mkfs.ext4", "mkfs.xfs", "e2fsck", "xfs_repair", "fsfreeze"].allSatisfy {
        Command.exists($0)
    }

@Suite(
    .serialized, .enabled(if: LiveSupport.reason == nil, LiveSupport.comment),
    .enabled(if: toolsAreThere, "fio, e2fsprogs or xfsprogs is missing"))
struct `A copy of a live device` {
    @Test func `equals the filesystem as it was frozen, and goes on by what changed`() throws {
        let live = try MountedLive(.ext4, mebibytes: 32)
        let harness = try LiveHarness()
        let copy = harness.service.directory.path("copy.img")
        try harness.object("device", "attach", "d", live.mount, "--live")
        try Command.check("sh", ["-c", "echo first > \(live.mount)/file"])
        let first = try harness.object("copy", "d", copy, "--checkpoint", "one")
        #expect(first["full"] as? Bool == true)
        #expect(first["snapshot"] as? String == "one")
        #expect(first["consistency"] as? String == "filesystem")
        #expect(first["passes"] as? Int ?? 0 >= 1)
        #expect(try harness.wrongBlocks(copy, of: live, "d", since: "one").isEmpty)
        try Command.check(
            "sh", ["-c", "echo second > \(live.mount)/file; sync \(live.mount)/file"])
        let second = try harness.object(
            "copy", "d", copy, "--since", "one", "--checkpoint", "two", "--keep", "one")
        #expect(second["full"] as? Bool == false)
        #expect(second["changed_bytes"] as? Int ?? 0 < 8 << 20)
        #expect(try harness.wrongBlocks(copy, of: live, "d", since: "two").isEmpty)
        #expect(try harness.wrongBlocks(copy + "@one", of: live, "d", since: "one").isEmpty)
        #expect(try live.errors(ofCopy: copy) == "")
        // Nothing else is left of them.
        #expect(try harness.checkpoints() == ["one", "two"])
        let text = try Command.check(
            "debugfs", ["-R", "cat /file", copy], deadline: 60)
        #expect(text.contains("second"))
    }

    @Test func `under load lacks nothing that was written before its cut`() throws {
        let rounds = scaled(100, "copies of mounted filesystems under load")
        let generator = SeededGenerator.announced("load on copied filesystems")
        for kind in MountedLive.Kind.allCases {
            let live = try MountedLive(kind)
            let harness = try LiveHarness()
            let copy = harness.service.directory.path("copy.img")
            try harness.object("device", "attach", "d", live.disk.path, "--live")
            try live.load(seed: generator.seed)
            var freezes: [Int] = []
            for round in 1...max(2, rounds / 2) {
                let made = try harness.object(
                    "copy", "d", copy, "--since", "auto", "--checkpoint", "c\(round)")
                #expect(made["consistency"] as? String == "filesystem")
                #expect(made["full"] as? Bool == (round == 1))
                freezes.append(made["frozen_milliseconds"] as? Int ?? -1)
                let wrong = try harness.wrongBlocks(copy, of: live, "d", since: "c\(round)")
                #expect(wrong.isEmpty, "\(kind), round \(round): \(wrong.sorted())")
                #expect(try live.errors(ofCopy: copy) == "", "\(kind), round \(round)")
            }
            print("\(kind): \(freezes.count) copies, frozen for \(freezes.sorted()) ms")
            try live.rest()
        }
    }

    @Test func `is finished by the same command after service or command were killed`() throws {
        let rounds = scaled(50, "copies that are killed")
        var generator = SeededGenerator.announced("kills of copies")
        let live = try MountedLive(.ext4)
        let harness = try LiveHarness()
        let copy = harness.service.directory.path("copy.img")
        try harness.object("device", "attach", "d", live.disk.path, "--live")
        try live.load(seed: generator.seed)
        var limit = 1.0
        var killed = 0
        // Checkpoints of copies that were deleted with their records: no later copy knows them.
        var orphans: Set<String> = []
        for round in 1...max(4, rounds) {
            // Odd rounds make a new full copy, even ones bring it forward.
            if round % 2 == 1 {
                for file in [copy, copy + ".stillpoint"] { unlink(file) }
                orphans = Set(try harness.checkpoints().filter { $0.contains(".pass-") })
            }
            let arguments = [
                "copy", "d", copy, "--since", "auto", "--checkpoint", "k\(round)", "--control",
                harness.service.controlPath,
            ]
            let start = monotonicSeconds()
            let process = try ChildProcess(TestService.binary, arguments)
            usleep(UInt32.random(in: 0..<UInt32(limit * 1_000_000), using: &generator))
            let killsService = Bool.random(using: &generator)
            if killsService {
                try harness.kill()
            } else {
                process.send(signal: SIGKILL)
            }
            let ending = try process.wait(deadline: 120)
            if ending == .exited(0) {
                // It was faster; the next ones are killed earlier.
                limit = max(0.1, monotonicSeconds() - start)
                if killsService { try harness.service.restart() }
                continue
            }
            killed += 1
            #expect(try live.isWritable())
            if killsService { try harness.service.restart() }
            let outcome = try harness.command(Array(arguments.prefix(7)))
            // A run that is killed after its last step, and before it has ended, has made the copy.
            #expect(
                outcome.status == 0
                    || outcome.status == 4 && outcome.diagnostics.contains("is complete already"),
                "round \(round): \(outcome.diagnostics)")
            let wrong = try harness.wrongBlocks(copy, of: live, "d", since: "k\(round)")
            #expect(wrong.isEmpty, "round \(round): \(wrong.sorted())")
            #expect(try live.errors(ofCopy: copy) == "", "round \(round)")
            let left = Set(try harness.checkpoints().filter { $0.contains(".pass-") })
            #expect(left.isSubset(of: orphans), "round \(round): \(left), \(orphans)")
        }
        print("\(killed) copies were killed and finished")
        #expect(killed > 0)
        try live.rest()
    }

    /// A hierarchy of cgroups made of plain files: they keep what is written and limit nothing.
    private struct PlainGroups {
        let directory: TemporaryDirectory
        let disk: String

        init(_ live: MountedLive) throws {
            directory = try TemporaryDirectory()
            let name = (live.disk.path as NSString).lastPathComponent
            disk = try String(contentsOfFile: "/sys/block/\(name)/dev", encoding: .utf8)
                .trimmingCharacters(in: .whitespacesAndNewlines)
            try "io".write(
                toFile: directory.path("cgroup.controllers"), atomically: false, encoding: .utf8)
            for (group, limits) in [("fast", ""), ("slow", "\(disk) rbps=max wbps=4096")] {
                let folder = directory.path(group)
                try FileManager.default.createDirectory(
                    atPath: folder, withIntermediateDirectories: false)
                try limits.write(toFile: "\(folder)/io.max", atomically: false, encoding: .utf8)
            }
        }

        func limits(of group: String) throws -> String {
            try String(contentsOfFile: directory.path("\(group)/io.max"), encoding: .utf8)
                .trimmingCharacters(in: .whitespacesAndNewlines)
        }
    }

    @Test(arguments: [nil, SIGTERM, SIGKILL])
    func `gives cgroups back what they might write, however it ends`(signal: Int32?) throws {
        let live = try MountedLive(.ext4)
        let groups = try PlainGroups(live)
        let harness = try LiveHarness()
        let copy = harness.service.directory.path("copy.img")
        try harness.object("device", "attach", "d", live.disk.path, "--live")
        // A freeze that no disk allows, so that the limit is set.
        let process = try ChildProcess(
            TestService.binary,
            [
                "copy", "d", copy, "--checkpoint", "c", "--freeze-limit", "0.02",
                "--throttle-writers", "1M", "--control", harness.service.controlPath,
            ], environment: ["STILLPOINT_CGROUPS": groups.directory.root])
        let set = "\(groups.disk) wbps=1048576"
        let end = monotonicSeconds() + 120
        if let signal {
            while try groups.limits(of: "fast") != set, monotonicSeconds() < end { sched_yield() }
            process.send(signal: signal)
        }
        let ending = try process.wait(deadline: 120)
        #expect(signal != nil || ending == .exited(4))
        // After a SIGKILL the helper does it by itself. A plain file is empty for a moment.
        let lifted = "\(groups.disk) wbps=max"
        while try groups.limits(of: "fast") != lifted, monotonicSeconds() < end { sched_yield() }
        #expect(try groups.limits(of: "fast") == lifted)
        #expect(try groups.limits(of: "slow") == "\(groups.disk) rbps=max wbps=4096")
    }

    @Test func `refuses to slow writers down where there are no cgroups for it`() throws {
        let live = try MountedLive(.ext4)
        let empty = try TemporaryDirectory()
        let harness = try LiveHarness()
        let copy = harness.service.directory.path("copy.img")
        try harness.object("device", "attach", "d", live.disk.path, "--live")
        let refusal = try Command.run(
            TestService.binary,
            [
                "copy", "d", copy, "--throttle-writers", "1M", "--control",
                harness.service.controlPath,
            ], environment: ["STILLPOINT_CGROUPS": empty.root])
        #expect(refusal.status == 1)
        #expect(refusal.diagnostics.contains("version 2"), "\(refusal.diagnostics)")
        #expect(access(copy, F_OK) != 0)
        #expect(try harness.checkpoints().isEmpty)
    }

    @Test func `that cannot be short enough is refused with the figures and finished later`() throws
    {
        let live = try MountedLive(.ext4)
        let harness = try LiveHarness()
        let copy = harness.service.directory.path("copy.img")
        try harness.object("device", "attach", "d", live.disk.path, "--live")
        let command = ["copy", "d", copy, "--checkpoint", "c"]
        let refusal = try harness.command(command + ["--freeze-limit", "0.02"])
        #expect(refusal.status == 4)
        #expect(refusal.diagnostics.contains("passes"), "\(refusal.diagnostics)")
        #expect(refusal.diagnostics.contains("limit 20 ms"), "\(refusal.diagnostics)")
        let state = try Command.run(
            TestService.binary,
            ["copies", copy, "--json", "--control", harness.service.controlPath])
        #expect(state.output.contains("interrupted"))
        try harness.done("copy", "d", copy, "--checkpoint", "c")
        #expect(try harness.wrongBlocks(copy, of: live, "d", since: "c").isEmpty)
        #expect(try harness.checkpoints() == ["c"])
    }

    @Test func `of several devices is of one moment`() throws {
        let live = try MountedLive(.ext4, mebibytes: 32)
        let other = try MountedLive(.ext4, mebibytes: 32)
        let harness = try LiveHarness()
        let directory = harness.service.directory.path("copies")
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: false)
        try harness.object("device", "attach", "a", live.mount, "--live")
        try harness.object("device", "attach", "b", other.mount, "--live")
        // Numbers go to one disk, then to the other, each durably.
        let script = """
            n=0; while :; do n=$((n + 1))
            for d in \(live.mount) \(other.mount); do
            echo $n > $d/n.new; sync $d/n.new; mv $d/n.new $d/n; sync $d; done; echo $n; done
            """
        let writer = try ChildProcess("/bin/sh", ["-c", script])
        for _ in 0..<3 { _ = try writer.readLine(deadline: 60) }
        let outcome = try harness.command([
            "copy", "a", "b", "--to", directory, "--checkpoint", "c", "--json",
        ])
        #expect(outcome.status == 0, "\(outcome.diagnostics)")
        writer.send(signal: SIGKILL)
        _ = try writer.wait(deadline: 60)
        #expect(try harness.wrongBlocks(directory + "/a.img", of: live, "a", since: "c").isEmpty)
        #expect(try harness.wrongBlocks(directory + "/b.img", of: other, "b", since: "c").isEmpty)
        func number(_ name: String) throws -> Int {
            let text = try Command.check(
                "debugfs", ["-R", "cat /n", "\(directory)/\(name).img"], deadline: 60)
            return Int(text.trimmingCharacters(in: .whitespacesAndNewlines)) ?? -1
        }
        let (first, second) = (try number("a"), try number("b"))
        #expect(first > 0 && (first == second || first == second + 1), "\(first), \(second)")
    }

    @Test func `of a device that somebody writes to beside its filesystem is not made`() throws {
        let live = try MountedLive(.ext4, mebibytes: 32)
        let harness = try LiveHarness()
        let copy = harness.service.directory.path("copy.img")
        try harness.object("device", "attach", "d", live.mount, "--live")
        // The last block of the device, which the filesystem does not use.
        let writer = try ChildProcess(
            "fio",
            [
                "--name=beside", "--filename=\(live.disk.path)", "--offset=33550336", "--size=4096",
                "--rw=write", "--direct=1", "--ioengine=libaio", "--iodepth=8", "--time_based",
                "--runtime=600", "--status-interval=1", "--thread", "--allow_mounted_write=1",
            ])
        _ = try writer.readLine(deadline: 60)
        // On a busy machine the writer may rest for as long as a freeze takes.
        let end = monotonicSeconds() + 60
        var refusal = try harness.command(["copy", "d", copy, "--checkpoint", "c"])
        while refusal.status == 0, monotonicSeconds() < end {
            try harness.done("checkpoint", "delete", "c")
            refusal = try harness.command(["copy", "d", copy, "--checkpoint", "c", "--force"])
        }
        #expect(refusal.status == 4)
        #expect(refusal.diagnostics.contains("beside"), "\(refusal.diagnostics)")
        #expect(try harness.checkpoints().contains("c") == false)
        writer.send(signal: SIGKILL)
        _ = try writer.wait(deadline: 60)
        try harness.done("copy", "d", copy, "--checkpoint", "c", "--force")
        #expect(try harness.wrongBlocks(copy, of: live, "d", since: "c").isEmpty)
    }

    @Test(
        .enabled(
            if: access("/sys/fs/cgroup/blkio/tasks", W_OK) == 0,
            "no blkio cgroups, by which a loop device reads while a write of it hangs"),
        .enabled(
            if: isSoak,
            "the kernel may keep its reads waiting for a tag; STILLPOINT_SOAK=1 runs it"))
    func `has what was in flight during a pass in the next copy`() throws {
        let group = "/sys/fs/cgroup/blkio/stillpoint-test-\(getpid())"
        #expect(mkdir(group, 0o755) == 0)
        let ticket = ExitCleanup.shared.register("rmdir \(group)")
        defer {
            rmdir(group)
            ExitCleanup.shared.withdraw(ticket)
        }
        let lower = try MountedDisk(.ext4)
        let file = lower.path("disk.img")
        try makeSparseFile(file, byteCount: 8 << 20)
        let loop = try LoopDevice(over: file, sectorSize: 512)
        let harness = try LiveHarness()
        let copy = harness.service.directory.path("copy.img")
        try harness.object("device", "attach", "d", loop.path, "--live")
        try Command.check("fsfreeze", ["--freeze", lower.path])
        let script = """
            echo $$ > \(group)/cgroup.procs; echo begun; exec dd if=/dev/urandom of=\(loop.path) \
            bs=4096 count=1 seek=3 oflag=direct conv=notrunc status=none
            """
        let writer = try ChildProcess("/bin/sh", ["-c", script])
        do {
            defer { _ = try? Command.run("fsfreeze", ["--unfreeze", lower.path]) }
            #expect(try writer.readLine(deadline: 30) == "begun")
            let inflight = "/sys/block/\((loop.path as NSString).lastPathComponent)/inflight"
            while try !String(contentsOfFile: inflight, encoding: .utf8).hasSuffix("1\n") {
                usleep(1000)
            }
            try harness.done("copy", "d", copy, "--checkpoint", "one")
            #expect(try String(contentsOfFile: inflight, encoding: .utf8).hasSuffix("1\n"))
        }
        #expect(try writer.wait(deadline: 60) == .exited(0))
        #expect(try harness.changedBlocks("d", since: "one") == [3])
        try harness.done("copy", "d", copy, "--since", "one", "--checkpoint", "two")
        #expect(try readFile(copy, 0..<8 << 20) == readFile(file, 0..<8 << 20))
        #expect(try readFile(copy, 3 * 4096..<4 * 4096).contains { $0 != 0 })
    }
}
