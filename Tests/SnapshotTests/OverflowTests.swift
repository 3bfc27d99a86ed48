import Foundation
import Glibc
import TestSupport
import Testing

/// Longest a writer waits under `break`, with the time that a slow machine needs besides.
private let breakSeconds = 2.0
private let slackSeconds = 2.0

@Suite(
    .serialized,
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Overflow` {
    private let inputOutput = NBD.ErrorNumber.inputOutput

    /// Devices of full files.
    private func attach(
        _ harness: SnapshotHarness, _ folder: TemporaryDirectory, _ names: [String],
        byteCount: Int
    ) throws {
        for name in names {
            try makeSparseFile(folder.path(name), byteCount: byteCount)
            try harness.attach(name, folder.path(name))
            try harness.fill(name, 1, byteCount: byteCount)
        }
    }

    /// The snapshot has lost the image of `device` with one event that says why.
    private func expectLoss(
        _ harness: SnapshotHarness, _ snapshot: String, device: String, errno number: Int
    ) throws {
        // The last of what was preserved may be in memory when the writer ends, and be lost behind it.
        try harness.awaitEvent("corrupted", of: snapshot)
        #expect(try harness.state(of: snapshot) == "corrupted")
        let losses = try harness.events(of: snapshot).filter {
            $0["type"] as? String == "corrupted"
        }
        #expect(losses.map { $0["device"] as? String } == [device])
        #expect(losses.map { $0["errno"] as? Int } == [number])
        for export in ["\(device)@\(snapshot)", "\(device)@\(snapshot):rw"] {
            let errors = try readErrors(harness, export)
            let isFailing = errors.allSatisfy { $0 == inputOutput }
            #expect(isFailing, "\(export): \(errors.prefix(4))")
        }
    }

    /// A device still has what was written to it.
    private func expectOrigin(
        _ harness: SnapshotHarness, _ name: String, _ value: UInt8, byteCount: Int
    ) throws {
        let bytes = try harness.contents(of: name)
        let isRight = bytes == [UInt8](repeating: value, count: byteCount)
        #expect(isRight, "\(name) lacks what was written")
    }

    @Test func `with break gives up the image of the device that overflows and nothing else`()
        throws
    {
        let harness = try SnapshotHarness(loops: 2)
        let folder = try TemporaryDirectory(inMemory: true)
        let byteCount = 32 * mebibyte
        try attach(harness, folder, ["a", "b"], byteCount: byteCount)
        try harness.take("s", of: ["a", "b"], storage: ["memory:8M"])
        let wait = try TimedWriter(harness, "a", value: 2, byteCount: byteCount).finish()
        print("break: the writer waited \(wait) s at most")
        #expect(wait < breakSeconds + slackSeconds)
        try expectLoss(harness, "s", device: "a", errno: 28)
        let image = try harness.contents(of: "b@s")
        let isRight = image == [UInt8](repeating: 1, count: byteCount)
        #expect(isRight)
        try expectOrigin(harness, "a", 2, byteCount: byteCount)
        // A new snapshot is good at once, beside the corrupted one and after it.
        try harness.take("t", of: ["a"])
        try harness.fill("a", 3, byteCount: byteCount)
        let later = try harness.contents(of: "a@t")
        let isKept = later == [UInt8](repeating: 2, count: byteCount)
        #expect(isKept)
        try harness.destroy("s")
        try harness.destroy("t")
    }

    @Test func `corrupts the snapshots cut before the loss and none cut after it`() throws {
        let harness = try SnapshotHarness(loops: 1)
        let folder = try TemporaryDirectory(inMemory: true)
        // More than the memory for data not yet stored takes: what waits there when `u` is taken
        // would go to its sources.
        let byteCount = 64 * mebibyte
        try attach(harness, folder, ["a"], byteCount: byteCount)
        // The blocks go to the newest's sources first, then to the older one's: 8 MiB in all.
        try harness.take("s", of: ["a"], storage: ["memory:4M"])
        try harness.take("t", of: ["a"], storage: ["memory:4M"])
        try harness.fill("a", 2, byteCount: byteCount)
        try harness.take("u", of: ["a"], storage: ["memory:96M"])
        try harness.fill("a", 3, byteCount: byteCount)
        for name in ["s", "t"] { try expectLoss(harness, name, device: "a", errno: 28) }
        #expect(try harness.state(of: "u") == "held")
        let image = try harness.contents(of: "a@u")
        let isRight = image == [UInt8](repeating: 2, count: byteCount)
        #expect(isRight)
    }

    @Test func `with throttle waits for storage, and storage in time saves the snapshot`() throws {
        let harness = try SnapshotHarness(loops: 1)
        let folder = try TemporaryDirectory(inMemory: true)
        let byteCount = 64 * mebibyte
        try attach(harness, folder, ["a"], byteCount: byteCount)
        try harness.take("s", of: ["a"], storage: ["memory:8M"], onOverflow: "throttle:100")
        let writer = try TimedWriter(harness, "a", value: 2, byteCount: byteCount)
        try harness.awaitEvent("low-space", of: "s")
        try harness.ask("POST", "/v1/snapshots/s/storage", ["storage": ["memory:96M"]])
        print("throttle: the writer waited \(try writer.finish()) s at most")
        #expect(try harness.state(of: "s") == "held")
        let image = try harness.contents(of: "a@s")
        let isRight = image == [UInt8](repeating: 1, count: byteCount)
        #expect(isRight)
        try expectOrigin(harness, "a", 2, byteCount: byteCount)
    }

    @Test func `with throttle ends when its time is over`() throws {
        let harness = try SnapshotHarness(loops: 1)
        let folder = try TemporaryDirectory(inMemory: true)
        // More than the memory for data not yet stored takes, or nobody would wait.
        let byteCount = 64 * mebibyte
        try attach(harness, folder, ["a"], byteCount: byteCount)
        try harness.take("s", of: ["a"], storage: ["memory:4M"], onOverflow: "throttle:1")
        let wait = try TimedWriter(harness, "a", value: 2, byteCount: byteCount).finish()
        print("throttle:1: the writer waited \(wait) s at most")
        #expect(wait > 0.9 && wait < 1 + slackSeconds)
        // The reason is that storage is full, however long its writers were willing to wait.
        try expectLoss(harness, "s", device: "a", errno: 28)
        try expectOrigin(harness, "a", 2, byteCount: byteCount)
    }

    @Test(.enabled(if: isRoot, "needs root to mount a small filesystem"))
    func `of the filesystem the storage lies on is overflow too`() throws {
        let harness = try SnapshotHarness(loops: 1)
        let folder = try TemporaryDirectory(inMemory: true)
        let small = try MountedMemory(byteCount: 12 * mebibyte)
        let byteCount = 32 * mebibyte
        try attach(harness, folder, ["a"], byteCount: byteCount)
        try harness.take("s", of: ["a"], storage: [small.path], limit: 256 * mebibyte)
        let wait = try TimedWriter(harness, "a", value: 2, byteCount: byteCount).finish()
        print("full filesystem: the writer waited \(wait) s at most")
        #expect(wait < breakSeconds + slackSeconds)
        try expectLoss(harness, "s", device: "a", errno: 28)
        try expectOrigin(harness, "a", 2, byteCount: byteCount)
        try harness.destroy("s")
        #expect(try small.freeByteCount() == small.byteCount)
    }

    @Test(.enabled(if: canUseFUSE && canUseLoopDevices, "needs FUSE and loop devices"))
    func `by storage that fails writes gives up the image, and the origin goes on`() throws {
        let harness = try SnapshotHarness(loops: 1)
        let folder = try TemporaryDirectory(inMemory: true)
        let byteCount = 16 * mebibyte
        try attach(harness, folder, ["a"], byteCount: byteCount)
        let faulty = try PowerCutFilesystem(byteCount: 64 * mebibyte)
        let device = try LoopDevice(over: faulty.diskPath, sectorSize: 512)
        defer { try? faulty.clearFaults() }
        try harness.take("s", of: ["a"], storage: [device.path])
        try harness.fill("a", 2, byteCount: mebibyte)
        let good = try harness.contents(of: "a@s")
        let isGood = good == [UInt8](repeating: 1, count: byteCount)
        #expect(isGood)
        try faulty.fail("write", at: 1, with: EIO, lasting: true)
        let wait = try TimedWriter(harness, "a", value: 2, byteCount: byteCount).finish()
        print("failing storage: the writer waited \(wait) s at most")
        #expect(wait < breakSeconds + slackSeconds)
        // The data goes to storage behind the writes.
        try harness.awaitEvent("corrupted", of: "s")
        try faulty.clearFaults()
        try expectLoss(harness, "s", device: "a", errno: 5)
        try expectOrigin(harness, "a", 2, byteCount: byteCount)
        try harness.destroy("s")
    }

    @Test(.enabled(if: canUseFUSE, "needs FUSE"))
    func `by an origin that fails the preserving read gives up the image, and writes go on`() throws
    {
        let byteCount = 8 * mebibyte
        let faulty = try PowerCutFilesystem(byteCount: byteCount)
        let harness = try SnapshotHarness(loops: 1)
        defer { try? faulty.clearFaults() }
        try harness.attach("a", faulty.diskPath)
        try harness.fill("a", 1, byteCount: byteCount)
        try harness.take("s", of: ["a"])
        try faulty.fail("read", at: 1, with: EIO, lasting: true)
        let wait = try TimedWriter(harness, "a", value: 2, byteCount: byteCount).finish()
        print("failing origin: the writer waited \(wait) s at most")
        #expect(wait < breakSeconds + slackSeconds)
        try faulty.clearFaults()
        try expectLoss(harness, "s", device: "a", errno: 5)
        try expectOrigin(harness, "a", 2, byteCount: byteCount)
    }
}
