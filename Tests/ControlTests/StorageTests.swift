import Foundation
import Glibc
import TestSupport
import Testing

private let mebibyte = 1 << 20

@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: Command.exists("qemu-io"), "needs qemu-io (qemu-utils)"))
struct `Storage of a snapshot` {
    private func storage(_ harness: ControlHarness, _ name: String) throws -> [String: Any] {
        try #require(try harness.object("snapshot", "show", name)["storage"] as? [String: Any])
    }

    @Test(arguments: ["memory:8M", "memory:1M", "file"])
    func `that is small is enough for a few blocks of each of four devices`(place: String) throws {
        let harness = try ControlHarness()
        let names = ["a", "b", "c", "d"]
        for name in names {
            try harness.attach(name, byteCount: 4 * mebibyte)
            try harness.fill(name, 7, length: mebibyte)
        }
        let chosen = place == "file" ? harness.service.directory.path("new") : place
        let request: [String: Any] = [
            "devices": names, "name": "s", "storage": [chosen], "limit": mebibyte,
        ]
        let body = try JSONSerialization.data(withJSONObject: request)
        let answer = try harness.http(
            "POST", "/v1/snapshots", body: String(decoding: body, as: UTF8.self))
        #expect(answer.status == 201)
        for name in names { try harness.fill(name, 1, length: 4096) }
        for name in names { #expect(try harness.holds("\(name)@s", 7, length: mebibyte)) }
        let shown = try harness.object("snapshot", "show", "s")
        #expect(shown["state"] as? String == "held")
        // A quarter of a mebibyte of each finds room in one of 1 MiB, less what is begun.
        for name in names { try harness.fill(name, 2, offset: mebibyte / 2, length: 160 << 10) }
        for name in names { #expect(try harness.holds("\(name)@s", 7, length: mebibyte)) }
        #expect(try harness.object("snapshot", "show", "s")["state"] as? String == "held")
    }

    @Test func `may grow by default to what its devices need at most`() throws {
        let harness = try ControlHarness()
        let space = try statistics(of: harness.service.directory.path(""))
        let size = 256 * mebibyte
        try #require(space.free > 3 * size, "too little room in \(harness.service.directory.root)")
        try harness.attach("a", byteCount: size)
        try harness.fill("a", 1, length: size)
        try harness.done(
            "snapshot", "create", "--device", "a", "--name", "s", "--on-overflow", "throttle:300")
        try harness.fill("a", 2, length: size)
        #expect(try harness.holds("a@s", 1, length: size))
        let storage = try storage(harness, "s")
        #expect(storage["stored_bytes"] as? Int == size)
        #expect(try #require(storage["limit"] as? Int) >= size)
        #expect(try #require(storage["available"] as? Int) > 0)
        #expect(try harness.object("snapshot", "show", "s")["warnings"] as? [String] == [])
    }

    @Test func `is warned about when its limit is more than its filesystem can give`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let place = harness.service.directory.path("more")
        let far = "8000T"
        let made = try harness.command(
            "snapshot", "create", "--device", "a", "--name", "s", "--limit", far)
        #expect(made.status == 0)
        #expect(made.output.split(separator: "\n").count == 1)
        #expect(made.diagnostics.hasPrefix("warning: snapshot s: storage "))
        #expect(made.diagnostics.contains("the limit of 7.8 PiB is more than its filesystem can"))
        let warnings = try harness.object("snapshot", "show", "s")["warnings"] as? [String]
        #expect(warnings?.count == 1)
        let more = try harness.object(
            "snapshot", "append-storage", "s", "--storage", place, "--limit", far)
        #expect((more["warnings"] as? [String])?.count == 2)
        #expect(harness.service.log.contains("the limit of 7.8 PiB"))
        let modest = try harness.command(
            "snapshot", "create", "--device", "a", "--name", "t", "--limit", "1M")
        #expect(modest.diagnostics == "")
    }

    @Test func `that reached its limit is named with the limit and the way to raise it`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        try harness.fill("a", 1, length: 16 * mebibyte)
        let place = harness.service.directory.path("small")
        try harness.done(
            "snapshot", "create", "--device", "a", "--name", "s", "--storage", place, "--limit",
            "2M")
        try harness.fill("a", 2, length: 16 * mebibyte)
        #expect(try harness.holds("a", 2, length: 16 * mebibyte))
        let events = try harness.command("events", "--snapshot", "s").output
        let lost = try #require(events.split(separator: "\n").first { $0.contains("corrupted") })
        #expect(lost.contains("\(place) reached its limit of 2 MiB"))
        #expect(lost.contains("Device a itself is not affected"))
        #expect(lost.contains("--limit"))
        #expect(lost.contains("stillpoint snapshot append-storage"))
        #expect(!lost.contains("No space left on device"))
        #expect(!lost.contains("lost data"))
        let devices = try harness.object("snapshot", "show", "s")["devices"] as? [[String: Any]]
        let error = try #require(devices?.first?["error"] as? String)
        #expect(error == "difference storage is full: \(place) reached its limit of 2 MiB")
    }

    @Test(.enabled(if: canFreeze, "needs filesystems that can be frozen"))
    func `that does not answer in time costs the snapshot, which says why, and not the writers`()
        throws
    {
        let harness = try ControlHarness()
        let disk = try MountedDisk()
        try harness.attach("a", byteCount: 128 * mebibyte)
        try harness.fill("a", 7, length: 128 * mebibyte)
        try harness.done(
            "snapshot", "create", "--device", "a", "--name", "s", "--storage",
            disk.path("storage"), "--on-overflow", "throttle:1")
        // Whatever is written to the storage waits from now on.
        try Command.check("fsfreeze", ["--freeze", disk.path])
        try harness.fill("a", 1, length: 128 * mebibyte)
        #expect(try harness.holds("a", 1, length: 128 * mebibyte))
        let devices = try harness.object("snapshot", "show", "s")["devices"] as? [[String: Any]]
        #expect(
            devices?.first?["error"] as? String
                == "preserving was too slow: a writer would have waited longer than --on-overflow "
                + "throttle:1 allows")
        #expect(
            try harness.command("events", "--snapshot", "s").output.contains(
                "Device a itself is not affected; destroy the snapshot"))
        try Command.check("fsfreeze", ["--unfreeze", disk.path])
    }

    @Test(.enabled(if: canUseFUSE && canUseLoopDevices, "needs FUSE and loop devices"))
    func `on a block device is erased at the end, and what could not be erased is told`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let faulty = try PowerCutFilesystem(byteCount: 16 * mebibyte)
        defer { try? faulty.clearFaults() }
        let device = try LoopDevice(over: faulty.diskPath, sectorSize: 512)
        for isFailing in [false, true] {
            try harness.fill("a", 1, length: 8 * mebibyte)
            try harness.done(
                "snapshot", "create", "--device", "a", "--name", "s\(isFailing)", "--storage",
                device.path)
            try harness.fill("a", 2, length: 8 * mebibyte)
            try awaitStored(harness, "s\(isFailing)")
            #expect(try harness.holds("a@s\(isFailing)", 1, length: 8 * mebibyte))
            if isFailing { try faulty.fail("write", at: 1, with: EIO, lasting: true) }
            try harness.done("snapshot", "destroy", "s\(isFailing)")
            let events = try harness.command("events").output.split(separator: "\n")
            let told = events.filter { $0.contains("storage-not-erased") }
            #expect(told.count == (isFailing ? 1 : 0))
            guard isFailing else {
                try Command.check(
                    "cmp", ["--bytes", "\(16 * mebibyte)", device.path, "/dev/zero"])
                continue
            }
            #expect(told.first?.contains("on storage \(device.path) could not be erased") == true)
            #expect(harness.service.log.contains("blkdiscard --zeroout \(device.path)"))
        }
    }

    /// Returns when nothing preserved is in memory only.
    private func awaitStored(_ harness: ControlHarness, _ name: String) throws {
        let deadline = Date(timeIntervalSinceNow: 300)
        while Date() < deadline {
            let shown = try harness.object("snapshot", "show", name)
            let devices = try #require(shown["devices"] as? [[String: Any]])
            if devices.allSatisfy({ $0["unstored_bytes"] as? Int == 0 }) { return }
        }
        throw TestFailure("what snapshot \(name) preserved is not stored after 300 s")
    }

    private func statistics(of path: String) throws -> (free: Int, size: Int) {
        var space = statvfs()
        try #require(statvfs(path, &space) == 0)
        return (Int(space.f_bavail * space.f_frsize), Int(space.f_blocks * space.f_frsize))
    }
}
