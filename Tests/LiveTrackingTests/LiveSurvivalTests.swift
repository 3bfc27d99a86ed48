import Foundation
import Glibc
import TestSupport
import Testing

@Suite(.serialized, .enabled(if: LiveSupport.reason == nil, LiveSupport.comment))
struct `Marks of a live device` {
    private static func begin() throws -> (disk: LiveDisk, harness: LiveHarness, before: String) {
        let disk = try LiveDisk(byteCount: 64 << 20)
        let harness = try LiveHarness()
        try harness.object("device", "attach", "d", disk.path, "--live")
        try harness.object("checkpoint", "create", "one", "--device", "d")
        return (disk, harness, try harness.history("d").generation)
    }

    private static func expectUnknown(_ harness: LiveHarness, _ reason: String) throws {
        let refusal = try harness.failure("changes", "d", "--since", "one")
        #expect(refusal.status == 5)
        let history = try harness.history("d")
        #expect(history.state == "new")
        #expect(history.reason.contains(reason), "\(history.reason)")
        // Tracking goes on from there.
        try harness.object("checkpoint", "create", "after", "--device", "d")
        #expect(try harness.changedBlocks("d", since: "after") == [])
    }

    @Test(arguments: [SIGKILL, SIGTERM])
    func `go on while no service runs`(signal: Int32) throws {
        let (disk, harness, before) = try Self.begin()
        try disk.write(block: 1)
        harness.service.process.send(signal: signal)
        _ = try harness.service.process.wait(deadline: 120)
        try disk.write(block: 2)
        try harness.service.restart()
        try disk.write(block: 3)
        #expect(try harness.changedBlocks("d", since: "one") == [1, 2, 3])
        let history = try harness.history("d")
        #expect(history.state == "continued" && history.generation == before)
    }

    @Test func `whose pins were removed while no service ran are not believed`() throws {
        let (disk, harness, _) = try Self.begin()
        let pins = try harness.pins()
        try harness.kill()
        for name in try FileManager.default.contentsOfDirectory(atPath: pins)
        where !name.contains(".") {
            #expect(unlink("\(pins)/\(name)") == 0)
        }
        try disk.write(block: 2)
        try harness.service.restart()
        try Self.expectUnknown(harness, "no marks of it are pinned")
    }

    @Test func `whose programs were detached while no service ran are not believed`() throws {
        let (disk, harness, _) = try Self.begin()
        let pins = try harness.pins()
        try harness.kill()
        #expect(unlink("\(pins)/link-request_complete_b") == 0)
        try disk.write(block: 2)
        try harness.service.restart()
        try Self.expectUnknown(harness, "the programs that mark them were gone")
    }

    @Test func `of a disk made anew under the same number are not taken for its own`() throws {
        let file = try LiveDisk(byteCount: 64 << 20)
        let disk = try NumberedLoopDevice(over: file.file)
        let harness = try LiveHarness()
        try harness.object("device", "attach", "d", disk.path, "--live")
        try harness.object("checkpoint", "create", "one", "--device", "d")
        try harness.kill()
        try disk.leave()
        try disk.come(over: file.file)
        try file.write(to: disk.path, block: 2)
        try harness.service.restart()
        try Self.expectUnknown(harness, "another file or disk")
    }

    @Test func `are set whatever slot of the programs' table the disk has`() throws {
        let (disk, harness, before) = try Self.begin()
        let table = PinnedTable(try harness.pins())
        let sequence = UInt64(try disk.sequence) ?? 0
        try disk.write(block: 1)
        try table.moveToLastSlot(disk: sequence)
        try disk.write(block: 2)
        #expect(try harness.changedBlocks("d", since: "one") == [1, 2])
        // The next service keeps the slot, and frees what belongs to nobody.
        try harness.kill()
        try disk.write(block: 3)
        try harness.service.restart()
        try disk.write(block: 4)
        #expect(try harness.changedBlocks("d", since: "one") == [1, 2, 3, 4])
        #expect(try harness.history("d").generation == before)
    }

    @Test func `from another run of the machine are not believed`() throws {
        let (disk, harness, _) = try Self.begin()
        try harness.kill()
        try harness.service.restart(environment: ["STILLPOINT_BOOT_ID": "another"])
        try Self.expectUnknown(harness, "the machine was restarted")
        withExtendedLifetime(disk) {}
    }

    @Test func `that were taken out of the programs' table begin a new history`() throws {
        let (disk, harness, _) = try Self.begin()
        let pins = try harness.pins()
        try PinnedTable(pins).remove(disk: UInt64(try disk.sequence) ?? 0)
        try disk.write(block: 2)
        try Self.expectUnknown(harness, "detached")
        try disk.write(block: 3)
        #expect(try harness.changedBlocks("d", since: "after") == [3])
    }

    @Test(arguments: [
        (PinnedTable.Counter.passthrough, "past the block layer"),
        (.flightsFull, "more were in flight"), (.flightTwice, "hides their completion"),
        (.discardChain, "discard(s)"),
    ])
    func `that a counter casts doubt on begin a new history`(
        counter: PinnedTable.Counter, reason: String
    ) throws {
        let (disk, harness, _) = try Self.begin()
        let pins = try harness.pins()
        try PinnedTable(pins).count(counter, ofDisk: UInt64(try disk.sequence) ?? 0)
        try Self.expectUnknown(harness, reason)
        try harness.kill()
        try harness.service.restart()
        #expect(try harness.history("d").state == "continued")
    }

    @Test func `that a counter casts doubt on while no service runs begin a new history`() throws {
        let (disk, harness, _) = try Self.begin()
        let pins = try harness.pins()
        try harness.kill()
        try PinnedTable(pins).count(.passthrough, ofDisk: UInt64(try disk.sequence) ?? 0)
        try harness.service.restart()
        try Self.expectUnknown(harness, "past the block layer")
    }

    @Test func `end with the device, and nothing of them is left in the kernel`() throws {
        let (disk, harness, _) = try Self.begin()
        let pins = try harness.pins()
        try harness.done("device", "detach", "d")
        withExtendedLifetime(disk) {}
        let left = (try? FileManager.default.contentsOfDirectory(atPath: pins)) ?? []
        #expect(left == [])
    }
}
