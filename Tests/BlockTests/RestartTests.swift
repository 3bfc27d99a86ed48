import Foundation
import Glibc
import Synchronization
import TestSupport
import Testing

/// Where an origin lies.
enum OriginPlace: String, Sendable, CaseIterable {
    case disk
    case memory = "tmpfs"
}

/// A service that ends while its block devices are used, and the next one.
@Suite(.serialized, .needsBlockDevices)
struct `Block devices outlive the service` {
    /// One run: a load on a mounted filesystem, `again` for as long as it goes on, which says
    /// whether another service runs, then `settle` and all checks. Every second of those services
    /// holds a snapshot, which ends with it.
    private static func run(
        _ filesystem: Filesystem, on place: OriginPlace, seconds: Int,
        settle: (BlockHarness) throws -> Void = { _ in },
        again: (BlockHarness) throws -> Bool
    ) throws -> (load: RestartLoad, count: Int) {
        let origin = try TestOrigin(
            place == .disk ? .sparseFile : .tmpfsFile, byteCount: Filesystem.byteCount)
        let harness = try BlockHarness(attaching: ["disk": origin.path])
        let block = try harness.attachBlock("disk")
        let kernelLog = KernelLog()
        try filesystem.make(on: block)
        let folder = try TemporaryDirectory()
        let copy = folder.path("disk.copy")
        try harness.command("copy", "disk", copy, "--checkpoint", "before")
        let mount = try Mount(block)
        let load = RestartLoad(in: mount.path)
        let end = load.start(seconds: seconds)
        var count = 0
        while !load.hasFinished {
            guard try again(harness) else { continue }
            count += 1
            if count.isMultiple(of: 2) { try hold(harness) }
        }
        try settle(harness)
        let failures = try end()
        #expect(failures == [])
        try load.checkLog(in: mount.path)
        #expect(kernelLog.errors(of: String(block.dropFirst("/dev/".count))) == [])
        print("\(count) times: \(load.summary); pauses \(load.pauses.map { Int($0 * 1000) }) ms")
        try mount.unmount()
        try filesystem.check(block)
        // The history went on over all of them, and no change was missed: an increment onto the
        // copy of before makes it equal to the image.
        let history = try harness.command("device", "show", "disk", "--json")
        #expect(history.contains("\"continued\""), "\(history)")
        try harness.command("snapshot", "create", "--device", "disk", "--name", "after")
        try harness.command("copy", "disk@after", copy, "--since", "before")
        try harness.command("verify", copy, "disk@after")
        try harness.command("snapshot", "destroy", "after")
        try harness.command("block", "detach", block)
        try filesystem.check(origin.path)
        return (load, count)
    }

    /// Takes a snapshot that the load writes under. The service may come to its planned death
    /// meanwhile; one that lives has taken it.
    private static func hold(_ harness: BlockHarness) throws {
        do {
            try harness.command(
                "snapshot", "create", "--device", "disk", "--freeze", "none", "--storage",
                "memory:64M")
        } catch {
            guard (try? harness.service.process.wait(deadline: 1)) == nil else { return }
            throw error
        }
    }

    @Test(arguments: [
        (Filesystem.ext4, OriginPlace.disk), (.ext4, .memory), (.xfs, .disk), (.xfs, .memory),
    ])
    func `a kill at a random moment is not seen by anybody, nor does it cost anything`(
        filesystem: Filesystem, place: OriginPlace
    ) throws {
        var generator = SeededGenerator.announced("kills on \(filesystem), \(place)")
        let seconds = loadSeconds("kills on \(filesystem), \(place)", soak: 300, otherwise: 8)
        let (_, count) = try Self.run(filesystem, on: place, seconds: seconds) { harness in
            // The moment is what the test varies; nothing waits for it.
            usleep(useconds_t(Int.random(in: 0...500_000, using: &generator)))
            try harness.service.process.killAndWait()
            try harness.service.restart()
            return true
        }
        #expect(count > 1)
    }

    @Test(arguments: ["read", "done", "composed", "answered"])
    func `a service that dies at a step of a request is followed by one that goes on`(
        step: String
    ) throws {
        let seconds = loadSeconds("deaths at the step \(step)", soak: 120, otherwise: 6)
        var isArmed = false
        let (_, count) = try Self.run(
            .ext4, on: .disk, seconds: seconds,
            settle: { harness in
                if harness.service.process.isRunning { try harness.service.process.killAndWait() }
                try harness.service.restart()
            },
            again: { harness in
                if !isArmed {
                    try harness.service.process.killAndWait()
                    isArmed = true
                }
                // One that goes on has not come to its death yet.
                guard (try? harness.service.process.wait(deadline: 0.2)) != nil else {
                    return false
                }
                do {
                    try harness.service.restart(
                        environment: ["STILLPOINT_DIE_AT": "\(step):300"])
                } catch {
                    // It may die again before it is ready.
                    if harness.service.process.isRunning { throw error }
                }
                return true
            })
        #expect(count > 1)
    }

    @Test func `SIGTERM hands over, and the next service goes on`() throws {
        let seconds = loadSeconds("planned restarts", soak: 120, otherwise: 6)
        let (_, count) = try Self.run(.ext4, on: .disk, seconds: seconds) { harness in
            usleep(200_000)
            #expect(try harness.service.stop() == .exited(0))
            try harness.service.restart()
            return true
        }
        #expect(count > 1)
    }

    @Test func `a program with other versions of the messages takes over, and gives back`() throws {
        let seconds = loadSeconds("changing programs", soak: 60, otherwise: 6)
        var versions = ["1-2", "1-1", "1-3"]
        let (_, count) = try Self.run(.ext4, on: .memory, seconds: seconds) { harness in
            usleep(200_000)
            if versions[0] == "1-3" {
                try harness.service.process.killAndWait()
            } else {
                #expect(try harness.service.stop() == .exited(0))
            }
            try harness.service.restart(
                environment: ["STILLPOINT_TAKEOVER_VERSIONS": versions[0]])
            versions.append(versions.removeFirst())
            return true
        }
        #expect(count > 1)
    }

    @Test(.enabled(if: Command.exists("qemu-io"), "needs qemu-io (qemu-utils)"))
    func `an NBD client that connects again sees no error either`() throws {
        let origin = try TestOrigin(.sparseFile, byteCount: 64 * mebibyte)
        let service = try TestService(attaching: ["disk": origin.path])
        let client = try ChildProcess(
            "qemu-io",
            [
                "--image-opts",
                "driver=nbd,server.type=unix,server.path=\(service.socketPath),export=disk,"
                    + "reconnect-delay=60",
            ], withInput: true)
        let isOver = Mutex(false)
        let written = DispatchSemaphore(value: 0)
        let writer = Background { () -> Int in
            var number = 0
            while !(isOver.withLock { $0 }) {
                let pattern = number % 255 + 1
                try client.writeLine("write -P \(pattern) \(number % 64)M 64k")
                var line = ""
                while !line.contains("wrote") {
                    guard let next = try client.readLine(deadline: 120) else {
                        throw TestFailure("the client ended: \(line)")
                    }
                    line = next
                    if line.contains("failed") { throw TestFailure(line) }
                }
                number += 1
                written.signal()
            }
            return number
        }
        let rounds = scaled(80, "restarts under an NBD client")
        for round in 0..<rounds {
            usleep(100_000)
            if round % 2 == 0 {
                #expect(try service.stop() == .exited(0))
            } else {
                try service.process.killAndWait()
            }
            try service.restart()
            // QEMU tries again once a second: the next end comes when it has written again.
            while written.wait(timeout: .now()) == .success {}
            guard written.wait(timeout: .now() + 120) == .success else {
                // What the client saw, if it saw an error.
                _ = try writer.value(within: 10)
                throw TestFailure("round \(round): the client does not go on")
            }
        }
        isOver.withLock { $0 = true }
        let count = try writer.value(within: 300)
        #expect(count >= rounds)
        client.closeInput()
        #expect(try client.wait(deadline: 60) == .exited(0))
        #expect(try service.stop() == .exited(0))
        for number in max(0, count - 64)..<count {
            let place = (number % 64) << 20
            let bytes = try origin.read(place..<place + 65536)
            #expect(bytes.allSatisfy { $0 == UInt8(number % 255 + 1) }, "write \(number)")
        }
    }

    // MARK: No next service

    private func harness(limit: Int) throws -> (BlockHarness, String, TestOrigin) {
        let origin = try TestOrigin(.sparseFile, byteCount: Filesystem.byteCount)
        let harness = try BlockHarness(
            attaching: ["disk": origin.path], extraArguments: ["--restart-limit", "\(limit)"])
        return (harness, try harness.attachBlock("disk"), origin)
    }

    @Test func `without a next service I/O fails at the limit and not before`() throws {
        let (harness, block, origin) = try harness(limit: 4)
        try Filesystem.ext4.make(on: block)
        let mount = try Mount(block)
        let guardian = try #require(try harness.service.guardians().first)
        try harness.service.process.killAndWait()
        let begin = monotonicSeconds()
        let writer = Background { () -> Int32 in
            let file = open(block, O_RDONLY | O_CLOEXEC | 0o40000)
            defer { close(file) }
            var memory: UnsafeMutableRawPointer?
            guard posix_memalign(&memory, 4096, 4096) == 0 else { return 0 }
            defer { free(memory) }
            return pread(file, memory!, 4096, 128 << 20) < 0 ? errno : 0
        }
        #expect(try writer.value(within: 60) == EIO)
        #expect(monotonicSeconds() - begin > 3)
        let end = monotonicSeconds() + 60
        while kill(guardian, 0) == 0, monotonicSeconds() < end { sched_yield() }
        try mount.unmount(deadline: 60)
        try harness.service.restart()
        let status = try harness.command("status", "--json")
        #expect(status.contains("\"let_go\""), "\(status)")
        #expect(harness.service.log.contains("were given up"), "\(harness.service.log)")
        try Filesystem.ext4.check(harness.service.directory.path("dev/disk"))
        withExtendedLifetime(origin) {}
    }

    @Test func `a guardian that is killed is replaced by one that holds what it held`() throws {
        let (harness, block, origin) = try harness(limit: 60)
        let first = try #require(try harness.service.guardians().first)
        kill(first, SIGKILL)
        let end = monotonicSeconds() + 60
        while try harness.service.guardians().isEmpty
            || harness.service.guardians().contains(first)
        {
            guard monotonicSeconds() < end else { throw TestFailure("no other guardian came") }
            sched_yield()
        }
        // Asked after it, so answered when the new one holds all.
        let other = try TestOrigin(.sparseFile, byteCount: mebibyte)
        try harness.command("device", "attach", "other", other.path)
        try harness.service.process.killAndWait()
        try harness.service.restart()
        #expect(try harness.loopDevices() == [block])
        var byte: UInt8 = 1
        let file = open(block, O_RDONLY | O_CLOEXEC)
        defer { close(file) }
        #expect(pread(file, &byte, 1, 0) == 1)
        withExtendedLifetime(origin) {}
    }

    @Test func `service and guardian killed at once leave errors, and no hang`() throws {
        let (harness, block, origin) = try harness(limit: 60)
        try Filesystem.ext4.make(on: block)
        let mount = try Mount(block)
        try harness.killWithGuardian()
        #expect(throws: (any Error).self) {
            var files = FileLoad(in: mount.path, seed: 1)
            try files.writeFiles(1)
        }
        try mount.unmount(deadline: 60)
        try harness.service.restart()
        #expect(try harness.loopDevices().count == 1, "it is made again")
        withExtendedLifetime(origin) {}
    }

    @Test func `a guardian of another version is told apart from none`() throws {
        let (harness, block, origin) = try harness(limit: 120)
        try harness.service.process.killAndWait()
        #expect(throws: (any Error).self) {
            try harness.service.restart(environment: ["STILLPOINT_TAKEOVER_VERSIONS": "7-9"])
        }
        #expect(harness.service.log.contains("versions 1 to 1"), "\(harness.service.log)")
        // It goes on holding: a program that understands it takes over.
        try harness.service.restart(environment: ["STILLPOINT_TAKEOVER_VERSIONS": "1-2"])
        #expect(try harness.loopDevices() == [block])
        var byte: UInt8 = 1
        let file = open(block, O_RDONLY | O_CLOEXEC)
        defer { close(file) }
        #expect(pread(file, &byte, 1, 0) == 1)
        withExtendedLifetime(origin) {}
    }

    @Test func `users go on waiting for a device that is missing at the next start`() throws {
        let harness = try BlockHarness()
        let files = try TemporaryDirectory()
        let disk = files.path("disk")
        try makeSparseFile(disk, byteCount: 16 * mebibyte)
        try harness.command("device", "attach", "disk", disk)
        let block = try harness.attachBlock("disk")
        try harness.service.process.killAndWait()
        #expect(rename(disk, disk + ".away") == 0)
        try harness.service.restart()
        #expect(harness.service.log.contains("\(block) waits for device disk"))
        let reader = Background { () -> Int in
            var byte: UInt8 = 1
            let file = open(block, O_RDONLY | O_CLOEXEC)
            defer { close(file) }
            return pread(file, &byte, 1, 0)
        }
        #expect(rename(disk + ".away", disk) == 0)
        try harness.command("device", "attach", "disk", disk)
        #expect(try reader.value(within: 60) == 1)
        #expect(try harness.loopDevices() == [block])
        try harness.command("block", "detach", block)
    }

    @Test func `a machine that restarts finds the same name, and what was not remembered is gone`()
        throws
    {
        let (harness, _, origin) = try harness(limit: 60)
        let link = harness.service.directory.path("dev/disk")
        try Filesystem.ext4.make(on: link)
        let other = try TestOrigin(.sparseFile, byteCount: 16 * mebibyte)
        try harness.command("device", "attach", "other", other.path)
        try harness.command("block", "attach", "other", "--temporary")
        try harness.loseMachine()
        try harness.service.restart()
        let mount = try Mount(link)
        try mount.unmount()
        #expect(access(harness.service.directory.path("dev/other"), F_OK) != 0)
        try harness.command("block", "detach", link)
        #expect(access(link, F_OK) != 0)
        #expect(try harness.service.stop() == .exited(0))
        try harness.service.restart()
        #expect(try harness.loopDevices().isEmpty, "what was detached is not made again")
        withExtendedLifetime(origin) {}
    }
}
