import Foundation
import Glibc
import TestSupport
import Testing

@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: isRoot, "needs root, to mount a tmpfs"))
struct `Room for the change map` {
    @Test func `that is missing in the state directory at a stop costs the history`() throws {
        let memory = try MountedMemory(byteCount: 1 << 20)
        let harness = try GenerationHarness(state: memory.path)
        try harness.attachImage()
        try harness.checkpoint("base")
        try harness.write(1, block: 3)
        let filler = try fill(memory.path)
        try harness.stop()
        #expect(harness.service.log.contains("was not saved"))
        #expect(harness.service.log.contains("No space left"))
        #expect(access(memory.path + "/vm.map.new", F_OK) != 0)
        #expect(unlink(filler) == 0)
        try harness.service.restart()
        #expect(try !harness.history().isContinued)
        #expect(try harness.status(ofChangesSince: "base") == 5)
        try harness.stop()
        try harness.service.restart()
        #expect(try harness.history().isContinued)
    }

    @Test func `that cannot be marked as in use keeps a device from being attached`() throws {
        let memory = try MountedMemory(byteCount: 1 << 20)
        let harness = try GenerationHarness(state: memory.path)
        try harness.attachImage()
        try harness.stop()
        #expect(mount("", memory.path, "", UInt(MS_REMOUNT | MS_RDONLY), nil) == 0)
        try harness.service.restart()
        let outcome = try harness.run(["device", "show", "vm"])
        #expect(outcome.status == 3)
        #expect(outcome.diagnostics.contains("cannot be marked as in use"))
        try harness.stop()
        #expect(mount("", memory.path, "", UInt(MS_REMOUNT), nil) == 0)
        try harness.service.restart()
        #expect(try harness.history().isContinued)
    }

    @Test func `that is missing in the runtime directory keeps a device from being attached`()
        throws
    {
        let memory = try MountedMemory(byteCount: 1 << 20)
        let harness = try GenerationHarness(runtime: memory.path)
        let filler = try fill(memory.path)
        let path = harness.service.directory.path("disk.img")
        try makeSparseFile(path, byteCount: 64 << 20)
        let outcome = try harness.run(["device", "attach", "vm", path])
        #expect(outcome.status == 1)
        #expect(outcome.diagnostics.contains("No space left"))
        #expect(outcome.diagnostics.contains("--runtime-dir"))
        #expect(access(memory.path + "/vm.running", F_OK) != 0)
        #expect(unlink(filler) == 0)
        try harness.done(["device", "attach", "vm", path])
        #expect(try harness.history().reason.contains("first time"))
    }

    @Test func `that runs out while the service runs ends the history, not the service`() throws {
        let memory = try MountedMemory(byteCount: 1 << 20)
        let harness = try GenerationHarness(runtime: memory.path)
        try harness.attachImage(byteCount: 1 << 30)
        try harness.checkpoint("base")
        try harness.write(1, block: 3)
        let filler = try fill(memory.path)
        // Another page of the map, which cannot be had: the write is done all the same.
        let far = 900 << 20
        try harness.write(2, block: far / 4096)
        #expect(try harness.client().read(UInt64(far), 4096) == [UInt8](repeating: 2, count: 4096))
        let outcome = try harness.run(["changes", "vm", "--since", "base", "--json"])
        #expect(outcome.status == 5)
        #expect(outcome.hasNoAnswer)
        let lost = try harness.history()
        #expect(!lost.isContinued)
        #expect(lost.reason.contains("had no room"), "\(lost.reason)")
        #expect(harness.service.log.contains("no longer tracked"))
        #expect(unlink(filler) == 0)
        let event = try harness.event("history-new")
        #expect((event["message"] as? String ?? "").contains("had no room"))
        let now = try harness.history()
        #expect(now.generation != lost.generation)
        try harness.checkpoint("fresh")
        try harness.write(3, block: far / 4096 + 1)
        try harness.write(3, block: 3)
        #expect(try harness.changedBlocks(since: "fresh") == [3, far / 4096 + 1])
        #expect(try harness.status(ofChangesSince: "base") == 5)
        try harness.service.process.killAndWait()
        try harness.service.restart()
        try harness.expectContinued()
        #expect(try harness.changedBlocks(since: "fresh") == [3, far / 4096 + 1])
    }

    @Test func `that ran out before a kill leaves no history that could be believed`() throws {
        let memory = try MountedMemory(byteCount: 1 << 20)
        let harness = try GenerationHarness(runtime: memory.path)
        try harness.attachImage(byteCount: 1 << 30)
        try harness.checkpoint("base")
        let filler = try fill(memory.path)
        try harness.write(2, block: 3)
        try harness.service.process.killAndWait()
        #expect(unlink(filler) == 0)
        try harness.service.restart()
        #expect(try harness.history().reason.contains("lost before"))
        #expect(try harness.status(ofChangesSince: "base") == 5)
    }

    @Test func `is less than 2 MiB for 1 GiB written in one run to a device of 1 TiB`() throws {
        let memory = try MountedMemory(byteCount: 64 << 20)
        let harness = try GenerationHarness(runtime: memory.path)
        try harness.attachImage(byteCount: 1 << 40)
        try harness.checkpoint("base")
        let free = try memory.freeByteCount()
        // Zeroes: they are changes like others and leave the disk alone.
        try harness.client().succeed(
            NBDRequest(.writeZeroes, offset: 5 << 30, length: 1 << 30))
        #expect(free - (try memory.freeByteCount()) < 2 << 20)
        #expect(memory.byteCount - free < 2 << 20)
        let changed = try harness.changedBlocks(since: "base")
        #expect(changed == Set((5 << 30) / 4096..<(6 << 30) / 4096))
    }
}
