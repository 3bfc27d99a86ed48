import Foundation
import Glibc
import TestSupport
import Testing

/// Loop devices that others have, or had.
@Suite(.serialized, .needsBlockDevices)
struct `Loop devices of others` {
    @Test func `one whose filesystem hangs holds up no attach`() throws {
        let filesystem = try PowerCutFilesystem(byteCount: mebibyte)
        let loop = try LoopDevice(over: filesystem.diskPath, sectorSize: 512)
        let origins = try (0..<6).map { _ in try TestOrigin(.sparseFile, byteCount: mebibyte) }
        let harness = try BlockHarness()
        try withExtendedLifetime((filesystem, loop)) {
            try filesystem.hang()
            defer { filesystem.goOn() }
            // The kernel itself cannot tell now what is under it.
            let status = try Command.run(
                "timeout",
                [
                    "--signal=KILL", "1", "losetup", "--noheadings", "--output", "BACK-INO",
                    loop.path,
                ])
            #expect(status.status != 0 && status.output.isEmpty, "\(status.output)")
            for (index, origin) in origins.enumerated() {
                try harness.command("device", "attach", "disk-\(index)", origin.path)
            }
            let block = try harness.attachBlock("disk-0")
            #expect(try readFile(block, 0..<512) == [UInt8](repeating: 0, count: 512))
            try harness.command("block", "detach", block)
            // Some ask in vain, the rest know better.
            let askerCount = try Self.askerCount(harness)
            #expect((1...4).contains(askerCount))
        }
        let end = monotonicSeconds() + 60
        while try Self.askerCount(harness) > 0, monotonicSeconds() < end { sched_yield() }
        #expect(try Self.askerCount(harness) == 0)
        #expect(try harness.service.stop() == .exited(0))
    }

    /// Threads of the service that wait for the answer of a loop device.
    private static func askerCount(_ harness: BlockHarness) throws -> Int {
        let folder = "/proc/\(harness.service.process.processID)/task"
        return try FileManager.default.contentsOfDirectory(atPath: folder).filter { task in
            // A thread may have ended meanwhile.
            (try? String(contentsOfFile: "\(folder)/\(task)/comm", encoding: .utf8))
                == "loop-status\n"
        }.count
    }

    @Test func `a free one that somebody has open exclusively is passed over`() throws {
        let origin = try TestOrigin(.sparseFile, byteCount: mebibyte)
        let harness = try BlockHarness(attaching: ["disk": origin.path])
        let free = try Command.check("losetup", ["--find"])
            .trimmingCharacters(in: .whitespacesAndNewlines)
        let holder = open(free, O_RDONLY | O_EXCL | O_CLOEXEC)
        try #require(holder >= 0, "\(free): errno \(errno)")
        defer { close(holder) }
        let block = try harness.attachBlock("disk")
        #expect(block != free)
        #expect(try readFile(block, 0..<512) == [UInt8](repeating: 0, count: 512))
        try harness.command("block", "detach", block)
        #expect(try harness.service.stop() == .exited(0))
    }

    /// How the service gives a block device up.
    enum Ending: String, CaseIterable, Sendable {
        case detach, force, stop
    }

    @Test(arguments: Ending.allCases)
    func `one that has the number of ours, which was taken away, is left alone`(
        ending: Ending
    ) throws {
        let origin = try TestOrigin(.sparseFile, byteCount: mebibyte)
        let other = try TestOrigin(.sparseFile, byteCount: mebibyte)
        let harness = try BlockHarness(attaching: ["disk": origin.path])
        // Another test may be given the number first.
        var block: String
        let end = monotonicSeconds() + 120
        repeat {
            block = try harness.attachBlock("disk")
            let own = try Self.backingFile(of: block)
            // Without other users it goes at once; somebody may look at it for a moment.
            while try Self.backingFile(of: block) == own, monotonicSeconds() < end {
                _ = try Command.run("losetup", ["--detach", block])
            }
            _ = try Command.run("losetup", [block, other.path])
        } while try Self.backingFile(of: block) != other.path && monotonicSeconds() < end
        try #require(try Self.backingFile(of: block) == other.path)
        let ticket = ExitCleanup.shared.register("losetup --detach \(block)")
        defer {
            _ = try? Command.run("losetup", ["--detach", block])
            ExitCleanup.shared.withdraw(ticket)
        }
        switch ending {
        case .detach: try harness.command("block", "detach", block)
        case .force: try harness.command("device", "detach", "disk", "--force")
        case .stop: break
        }
        #expect(try harness.service.stop() == .exited(0))
        #expect(try Self.backingFile(of: block) == other.path)
    }

    @Test func `one of a service in another mount namespace is not taken for a stale one`() throws {
        let origin = try TestOrigin(.sparseFile, byteCount: mebibyte)
        let harness = try BlockHarness(attaching: ["disk": origin.path])
        let own = try harness.attachBlock("disk")
        let file = try #require(try Self.backingFile(of: own))
        try harness.command("block", "detach", own)
        #expect(try harness.service.stop() == .exited(0))
        let folder = (file as NSString).deletingLastPathComponent
        // The same paths as the service's, over a filesystem that only the namespace sees.
        let script = """
            mount -t tmpfs none \(harness.mountDirectory) && mkdir -p \(folder) \
                && truncate -s 1M \(file) && losetup --find --show \(file) && read -r line
            """
        let namespace = try ChildProcess(inMountNamespace: script)
        let block = try #require(try namespace.readLine(deadline: 60))
        let ticket = ExitCleanup.shared.register("losetup --detach \(block)")
        defer {
            _ = try? Command.run("losetup", ["--detach", block])
            ExitCleanup.shared.withdraw(ticket)
        }
        try #require(try Self.backingFile(of: block) == file)
        try harness.service.restart()
        #expect(try Self.backingFile(of: block) == file)
        #expect(try harness.service.stop() == .exited(0))
        namespace.closeInput()
        try namespace.wait(deadline: 60)
    }

    /// The path of the file behind a loop device; nil when it has none.
    private static func backingFile(of path: String) throws -> String? {
        let name = (path as NSString).lastPathComponent
        let file = "/sys/block/\(name)/loop/backing_file"
        guard FileManager.default.fileExists(atPath: file) else { return nil }
        // It may go between the two.
        return (try? String(contentsOfFile: file, encoding: .utf8))?
            .trimmingCharacters(in: .newlines)
    }

    @Test(arguments: [false, true])
    func `partitions of what a loop device was before are none of its new disk`(
        hasOwn: Bool
    ) throws {
        let harness = try BlockHarness()
        // Which loop device is taken is the kernel's choice, and others take some, too.
        for round in 0..<20 {
            let origin = try TestOrigin(.sparseFile, byteCount: 32 * mebibyte)
            if hasOwn { try Self.partition(origin.path, "label: gpt\n,20M\n") }
            try harness.command("device", "attach", "disk-\(round)", origin.path)
            let stale = try Self.leaveStalePartitions()
            let block = try harness.attachBlock(
                "disk-\(round)", hasOwn ? "--partitions" : "--temporary")
            let path = block
            guard path == stale else {
                try Self.dropPartitions(of: stale)
                continue
            }
            #expect(try Self.partitions(of: path) == (hasOwn ? ["1": 20 * mebibyte] : [:]))
            try harness.command("block", "detach", path)
            #expect(try Self.partitions(of: path).isEmpty)
            return
        }
        Issue.record("no loop device with stale partitions was taken in 20 rounds")
    }

    private static func partition(_ path: String, _ table: String) throws {
        let directory = try TemporaryDirectory()
        let file = directory.path("table")
        try table.write(toFile: file, atomically: true, encoding: .utf8)
        try Command.check("sh", ["-c", "sfdisk -q \(path) < \(file)"])
    }

    /// Returns a loop device that was detached while it had two partitions.
    private static func leaveStalePartitions() throws -> String {
        let directory = try TemporaryDirectory()
        let file = directory.path("former")
        try makeSparseFile(file, byteCount: 32 * mebibyte)
        try partition(file, "label: gpt\n,10M\n,10M\n")
        let former = try LoopDevice(over: file, sectorSize: 512)
        // The kernel takes away those that it found by itself, not those it was told of.
        try Command.check("partx", ["--update", former.path])
        return former.path
    }

    /// Leaves nothing to whoever takes a loop device next; one that is taken already is theirs.
    private static func dropPartitions(of path: String) throws {
        let name = (path as NSString).lastPathComponent
        guard !FileManager.default.fileExists(atPath: "/sys/block/\(name)/loop") else { return }
        // None are there any more when a service has had it meanwhile.
        _ = try Command.run("partx", ["--delete", path])
    }

    /// The partitions of a block device by number, with their sizes in bytes.
    private static func partitions(of path: String) throws -> [String: Int] {
        let name = (path as NSString).lastPathComponent
        let folder = "/sys/block/\(name)"
        var found: [String: Int] = [:]
        for entry in try FileManager.default.contentsOfDirectory(atPath: folder)
        where entry.hasPrefix(name + "p") {
            let size = try String(contentsOfFile: "\(folder)/\(entry)/size", encoding: .utf8)
            found[String(entry.dropFirst(name.count + 1))] =
                (Int(size.trimmingCharacters(in: .newlines)) ?? -1) * 512
        }
        return found
    }
}
