import Foundation
import Glibc
import TestSupport
import Testing

/// Longest that anything may take after the service is gone.
private let hangSeconds = 30.0

/// The end of a service whose block devices are in use.
@Suite(.serialized, .needsBlockDevices)
struct `The end of a service with block devices` {
    @Test func `a kill of service and guardian under load hangs nobody and costs nothing synced`()
        throws
    {
        let rounds = isSoak ? 10 : 1
        print("kill under load: \(rounds) of 10 rounds; STILLPOINT_SOAK=1 runs all")
        for round in 0..<rounds {
            let filesystem = Filesystem.allCases[round % Filesystem.allCases.count]
            try Self.killUnderLoad(filesystem)
        }
    }

    private static func killUnderLoad(_ filesystem: Filesystem) throws {
        var generator = SeededGenerator.announced("kill under load on \(filesystem)")
        let origin = try TestOrigin(.sparseFile, byteCount: Filesystem.byteCount)
        let harness = try BlockHarness(attaching: ["disk": origin.path])
        let block = try harness.attachBlock("disk", "--temporary")
        try filesystem.make(on: block)
        let mount = try Mount(block)
        let path = mount.path
        var written = FileLoad(in: path, seed: generator.next())
        try written.writeFiles(20)
        let start = written
        let files = Background { () -> (FileLoad, failed: Bool) in
            var load = start
            do {
                try load.run(seconds: 120)
                return (load, false)
            } catch { return (load, true) }
        }
        let fio = Background {
            try Command.run(
                "fio",
                [
                    "--name=load", "--directory=\(path)", "--size=64M", "--rw=randrw", "--bs=4k",
                    "--ioengine=libaio", "--direct=1", "--iodepth=16", "--time_based",
                    "--runtime=120",
                ], deadline: 240)
        }
        // The moment is what the test varies; nothing waits for it.
        usleep(useconds_t(Int.random(in: 1_000_000...3_000_000, using: &generator)))
        try harness.killWithGuardian()
        let (load, hasFailed) = try files.value(within: hangSeconds)
        #expect(hasFailed, "file operations went on without the service")
        #expect(try fio.value(within: hangSeconds).status != 0, "fio saw no error")
        try mount.unmount(deadline: hangSeconds)

        try harness.service.restart()
        #expect(try harness.loopDevices().isEmpty)
        #expect(try harness.mounts().isEmpty)
        let again = try harness.attachBlock("disk")
        let second = try Mount(again)
        try load.checkSynced(in: second.path)
        #expect(load.synced.count > 0)
        print("\(load.synced.count) synced files are there after \(load.operationCount) operations")
        try second.unmount()
        try filesystem.check(again)
        try harness.command("block", "detach", again)
    }

    @Test func `a kill while a device with unwritten data is detached leaves no stuck process`()
        throws
    {
        var generator = SeededGenerator.announced("kill while detaching")
        let origin = try TestOrigin(.sparseFile, byteCount: 128 * mebibyte)
        let harness = try BlockHarness(attaching: ["disk": origin.path])
        for _ in 0..<scaled(60, "kills while detaching") {
            let block = try harness.attachBlock("disk", "--temporary")
            try Command.check("dd", ["if=/dev/zero", "of=\(block)", "bs=1M", "count=100"])
            let service = harness.service
            let detach = Background {
                try Command.run(
                    TestService.binary,
                    ["block", "detach", block, "--control", service.controlPath], deadline: 60)
            }
            usleep(useconds_t(Int.random(in: 0...150_000, using: &generator)))
            service.process.send(signal: SIGKILL)
            try service.process.wait(deadline: hangSeconds)
            _ = try detach.value(within: 60)
            try service.restart()
            // Detached already, or taken over: then a process of the killed service may still be
            // taking the loop device away.
            if try harness.command("block", "list").contains(block) {
                try harness.command("block", "detach", block)
            }
            #expect(try harness.loopDevices().isEmpty)
            #expect(try harness.mounts().isEmpty)
        }
    }

    @Test func `SIGTERM ends the block device of an image, and says who used it`() throws {
        let origin = try TestOrigin(.sparseFile, byteCount: Filesystem.byteCount)
        let harness = try BlockHarness(attaching: ["disk": origin.path])
        try Filesystem.ext4.make(on: try harness.attachBlock("disk", "--temporary"))
        try harness.command("block", "detach", harness.service.directory.path("dev/disk"))
        try harness.command(
            "snapshot", "create", "--device", "disk", "--name", "s", "--storage", "memory:64M")
        let image = try harness.attachBlock("disk@s")
        let mount = try Mount(image)
        #expect(try harness.service.stop() == .exited(0))
        let log = harness.service.log
        #expect(log.contains("is in use: mounted at \(mount.path)"), "\(log)")
        #expect(throws: (any Error).self) {
            var files = FileLoad(in: mount.path, seed: 1)
            try files.writeFiles(1)
        }
        try mount.unmount(deadline: hangSeconds)
        #expect(try harness.loopDevices().isEmpty)
        #expect(try harness.mounts().isEmpty)
        #expect(try harness.service.guardians().isEmpty, "nothing is left to wait for")
    }

    @Test func `SIGTERM leaves devices to the next service`() throws {
        let origin = try TestOrigin(.sparseFile, byteCount: 64 * mebibyte)
        let harness = try BlockHarness(attaching: ["disk": origin.path])
        let block = try harness.attachBlock("disk")
        try Command.check("dd", ["if=/dev/urandom", "of=\(block)", "bs=1M", "count=32"])
        let bytes = try readFile(block, 0..<32 * mebibyte)
        let user = open(block, O_RDONLY | O_CLOEXEC)
        #expect(user >= 0)
        #expect(try harness.service.stop() == .exited(0))
        #expect(try harness.loopDevices() == [block])
        let guardian = try #require(try harness.service.guardians().first)
        kill(guardian, SIGTERM)
        try harness.service.restart()
        let end = monotonicSeconds() + hangSeconds
        while kill(guardian, 0) == 0, monotonicSeconds() < end { sched_yield() }
        #expect(kill(guardian, 0) != 0, "the former guardian goes when all is taken over")
        #expect(try harness.service.guardians().count == 1)
        #expect(try readFile(block, 0..<32 * mebibyte) == bytes)
        let list = try harness.command("block", "list", "--json")
        #expect(list.contains("\"takeovers\" : 1"), "\(list)")
        close(user)
        // Nobody uses it now: nothing of it stays behind, and the next start makes it again.
        #expect(try harness.service.stop() == .exited(0))
        #expect(try harness.loopDevices().isEmpty)
        #expect(try harness.mounts().isEmpty)
        #expect(try harness.service.guardians().isEmpty)
        try harness.service.restart()
        #expect(try harness.loopDevices().count == 1)
        try harness.command("block", "detach", "disk")
        #expect(try harness.loopDevices().isEmpty)
        #expect(try harness.mounts().isEmpty)
        #expect(try origin.read(0..<32 * mebibyte) == bytes)
    }
}
