import BlockModel
import ChangeTracking
import CopyOnWrite
import EngineState
import SnapshotCore
import Testing

@Suite struct `Overflow` {
    private func overwrite(_ harness: Harness) {
        harness.write(0, 0, 4096)
        harness.copyDone(0, 4096)
        _ = harness.originDone(0, 4096)
        harness.engine.turnEnded(now: 0)
    }

    @Test func `break gives the snapshot up at once when storage is full`() {
        let harness = Harness()
        let snapshot = harness.take()
        overwrite(harness)
        #expect(harness.drain().contains("extent 0 preserving"))
        harness.engine.extentRefused(SourceIndex(0), .preserving, fault: .noSpace)
        harness.engine.turnEnded(now: 1)
        #expect(harness.drain().contains("corrupted 0 errno 28"))
        #expect(
            harness.engine.imageReadArrived(
                RequestIndex(5), snapshot: snapshot, overlay: false, offset: 0, length: 512,
                now: 0) == .refused(.inputOutput))
        #expect(harness.write(1, 65536, 4096) == .issue)
    }

    @Test func `throttle is saved by appended storage`() {
        let harness = Harness()
        let snapshot = harness.take(
            policy: OverflowPolicy(kind: .throttle, limitNanoseconds: 1000))
        overwrite(harness)
        harness.engine.extentRefused(SourceIndex(0), .preserving, fault: .noSpace)
        harness.engine.turnEnded(now: 1)
        #expect(!harness.drain().contains { $0.hasPrefix("corrupted") })
        #expect(harness.engine.sourceAdded(to: snapshot) == SourceIndex(1))
        harness.engine.turnEnded(now: 2)
        #expect(harness.drain().contains("extent 1 preserving"))
        harness.engine.extentGranted(SourceIndex(1), .preserving, byteOffset: 0)
        harness.engine.turnEnded(now: 3)
        #expect(harness.drain() == ["writeStorage 0 to 1 at 0 blocks 1"])
    }

    @Test func `a writer waits at most as long as the policy says`() {
        let harness = Harness()
        _ = harness.take(policy: OverflowPolicy(kind: .break, limitNanoseconds: 500))
        harness.write(0, 0, 4096, now: 100)
        harness.engine.turnEnded(now: 100)
        #expect(harness.drain() == ["readOrigin 0 0+4096", "timer 600"])
        harness.engine.timeReached(599)
        #expect(harness.drain() == [])
        harness.engine.timeReached(600)
        #expect(harness.drain() == ["corrupted 0 errno 110", "issue 0"])
        harness.copyDone(0, 4096)
        #expect(harness.buffers.freeCount == harness.buffers.capacity)
    }

    @Test func `the limit of a writer runs while it gives way to others`() {
        var limits = EngineLimits()
        limits.chunksPerTurn = 1
        limits.resumedPerTurn = 1
        let harness = Harness(limits: limits)
        _ = harness.take(policy: OverflowPolicy(kind: .break, limitNanoseconds: 500))
        harness.write(0, 0, 4 * chunkByteCount, now: 100)
        harness.write(1, 8 * chunkByteCount, 4 * chunkByteCount, now: 101)
        harness.engine.turnEnded(now: 110)
        #expect(harness.drain().contains("timer 600"))
        harness.engine.timeReached(600)
        // Neither has anything left to give way for.
        #expect(harness.drain() == ["corrupted 0 errno 110", "issue 1", "issue 0"])
    }

    @Test func `a wait for storage that is full ends with ENOSPC, for one that fails with EIO`() {
        for (fault, number) in [(Fault.noSpace, 28), (.inputOutput, 5)] {
            let harness = Harness(bufferCount: 256)
            _ = harness.take(policy: OverflowPolicy(kind: .throttle, limitNanoseconds: 1000))
            overwrite(harness)
            harness.engine.extentRefused(SourceIndex(0), .preserving, fault: fault)
            // The memory of one snapshot, half of all, is taken; the next writer waits.
            for block in 1..<UInt32(128) {
                harness.write(block, UInt64(block) * 4096, 4096, now: 1)
                harness.copyDone(0, 4096)
            }
            harness.write(128, 128 * 4096, 4096, now: 2)
            harness.engine.turnEnded(now: 2)
            #expect(harness.drain().contains("timer 1002"))
            harness.engine.timeReached(1002)
            #expect(harness.drain().prefix(2) == ["corrupted 0 errno \(number)", "issue 128"])
        }
    }

    @Test
    func `blocks wait for a newer source that grows, an older one helps when memory is short`() {
        let harness = Harness(size: 4 << 20, bufferCount: 256)
        _ = harness.take()
        overwrite(harness)
        harness.engine.extentGranted(SourceIndex(0), .preserving, byteOffset: 0)
        harness.engine.turnEnded(now: 1)
        #expect(harness.drain().contains("writeStorage 0 to 0 at 0 blocks 1"))
        harness.engine.storageWriteFinished(BatchIndex(0), byteCount: 4096, fault: nil)
        _ = harness.take()
        for block in 0..<UInt32(128) {
            harness.write(block, UInt64(block) * 4096, 4096)
            harness.copyDone(0, 4096)
        }
        harness.engine.turnEnded(now: 2)
        let first = harness.drain()
        #expect(first.contains("extent 1 preserving"))
        #expect(!first.contains { $0.hasPrefix("writeStorage") })
        // A writer that would wait for memory: the older snapshot's source has room.
        harness.write(128, 128 * 4096, 4096)
        harness.engine.turnEnded(now: 3)
        #expect(harness.drain().contains { $0.hasPrefix("writeStorage 0 to 0 at 4096") })
        harness.engine.extentGranted(SourceIndex(1), .preserving, byteOffset: 0)
        #expect(harness.engine.buffers.freeCount < harness.buffers.capacity)
    }

    @Test func `a granted extent is used at once, whatever else happens or does not`() {
        let harness = Harness()
        _ = harness.take()
        overwrite(harness)
        #expect(harness.drain().contains("extent 0 preserving"))
        #expect(harness.engine.unstoredBlockCount == 1)
        harness.engine.extentGranted(SourceIndex(0), .preserving, byteOffset: 0)
        #expect(harness.drain() == ["writeStorage 0 to 0 at 0 blocks 1"])
        #expect(harness.engine.unstoredBlockCount == 1)
        harness.engine.storageWriteFinished(BatchIndex(0), byteCount: 4096, fault: nil)
        #expect(harness.engine.unstoredBlockCount == 0)
    }

    @Test func `a source that fails with ENOSPC is left alone, and the loss says ENOSPC`() {
        let harness = Harness()
        _ = harness.take()
        overwrite(harness)
        harness.engine.extentGranted(SourceIndex(0), .preserving, byteOffset: 0)
        harness.engine.storageWriteFinished(BatchIndex(0), byteCount: 4096, fault: nil)
        harness.write(1, 65536, 4096)
        harness.copyDone(0, 4096)
        harness.engine.turnEnded(now: 1)
        _ = harness.drain()
        harness.engine.storageWriteFinished(BatchIndex(0), byteCount: 0, fault: .noSpace)
        harness.engine.turnEnded(now: 2)
        let effects = harness.drain()
        #expect(effects.contains("corrupted 0 errno 28"), "\(effects)")
        #expect(!effects.contains { $0.hasPrefix("writeStorage") })
    }

    @Test func `a failed storage write is retried on another source`() {
        let harness = Harness()
        _ = harness.take(sources: 2)
        overwrite(harness)
        _ = harness.drain()
        harness.engine.extentGranted(SourceIndex(0), .preserving, byteOffset: 0)
        harness.engine.extentGranted(SourceIndex(1), .preserving, byteOffset: 0)
        harness.engine.turnEnded(now: 1)
        #expect(harness.drain() == ["writeStorage 0 to 0 at 0 blocks 1"])
        harness.engine.storageWriteFinished(BatchIndex(0), byteCount: 0, fault: .inputOutput)
        harness.engine.turnEnded(now: 2)
        let effects = harness.drain()
        #expect(effects.contains { $0.hasSuffix("to 1 at 0 blocks 1") })
        #expect(!effects.contains { $0.hasPrefix("corrupted") })
    }

    @Test func `what is on its way to storage is dropped with the layer it belongs to`() {
        let harness = Harness()
        _ = harness.take()
        overwrite(harness)
        harness.engine.extentGranted(SourceIndex(0), .preserving, byteOffset: 0)
        // A second storage write beside the first.
        harness.write(1, 65536, 4096)
        harness.copyDone(0, 4096)
        _ = harness.originDone(1, 4096)
        harness.engine.turnEnded(now: 1)
        let writes = harness.drain().filter { $0.hasPrefix("writeStorage") }
        #expect(writes.count == 2)
        _ = harness.take()
        harness.engine.storageWriteFinished(BatchIndex(0), byteCount: 0, fault: .inputOutput)
        harness.engine.turnEnded(now: 2)
        #expect(harness.drain().contains("extent 1 preserving"))
        harness.engine.extentRefused(SourceIndex(1), .preserving, fault: .inputOutput)
        #expect(harness.drain().contains("corrupted 0 errno 5"))
        // The newer snapshot needs nothing of it and is held on.
        harness.engine.storageWriteFinished(BatchIndex(1), byteCount: 0, fault: .inputOutput)
        harness.engine.turnEnded(now: 3)
        let effects = harness.drain()
        #expect(!effects.contains { $0.hasPrefix("corrupted") || $0.hasPrefix("writeStorage") })
        #expect(harness.engine.unstoredBlockCount == 0)
        #expect(harness.buffers.freeCount == harness.buffers.capacity)
        #expect(harness.engine.report(on: SnapshotIndex(1)).isCorrupted == false)
    }

    @Test func `storage that does not answer leaves the loop asleep, and others are freed`() {
        let harness = Harness()
        let older = harness.take()
        overwrite(harness)
        harness.engine.extentGranted(SourceIndex(0), .preserving, byteOffset: 0)
        harness.engine.turnEnded(now: 1)
        let writes = harness.drain().filter { $0.hasPrefix("writeStorage") }
        #expect(writes.count == 1)
        let newer = harness.take()
        harness.engine.snapshotDestroyed(older)
        harness.engine.snapshotDestroyed(newer)
        for now in 2..<8 { harness.engine.turnEnded(now: UInt64(now)) }
        let gone = harness.drain().filter { $0.hasPrefix("gone") }
        #expect(gone == ["gone 1"])
        #expect(!harness.engine.hasWork)
        harness.engine.storageWriteFinished(BatchIndex(0), byteCount: 0, fault: .inputOutput)
        #expect(harness.engine.hasWork)
        for now in 8..<12 { harness.engine.turnEnded(now: UInt64(now)) }
        #expect(harness.drain().contains("gone 0"))
        #expect(!harness.engine.hasWork)
        #expect(harness.buffers.freeCount == harness.buffers.capacity)
    }

    @Test func `an origin that does not answer a copy leaves the loop asleep until it does`() {
        let harness = Harness()
        let snapshot = harness.take()
        harness.write(0, 0, 4096)
        #expect(harness.drain().contains("readOrigin 0 0+4096"))
        harness.engine.snapshotDestroyed(snapshot)
        for now in 2..<8 { harness.engine.turnEnded(now: UInt64(now)) }
        #expect(!harness.drain().contains("gone 0"))
        #expect(!harness.engine.hasWork)
        harness.copyDone(0, 4096)
        #expect(harness.engine.hasWork)
        for now in 8..<12 { harness.engine.turnEnded(now: UInt64(now)) }
        #expect(harness.drain().contains("gone 0"))
        #expect(!harness.engine.hasWork)
    }

    @Test func `an image write waits for memory at most as long as the policy says`() {
        let harness = Harness(bufferCount: 256)
        let snapshot = harness.take(
            policy: OverflowPolicy(kind: .throttle, limitNanoseconds: 1000))
        for block in 0..<UInt32(127) {
            harness.write(block, UInt64(block) * 4096, 4096)
            harness.copyDone(0, 4096)
        }
        harness.engine.turnEnded(now: 1)
        harness.engine.extentRefused(SourceIndex(0), .preserving, fault: .inputOutput)
        _ = harness.drain()
        let admission = harness.engine.imageWriteArrived(
            RequestIndex(200), snapshot: snapshot, operation: .write, offset: 0, length: 4096,
            now: 5)
        #expect(admission == .taken)
        harness.engine.turnEnded(now: 5)
        #expect(harness.drain() == ["timer 1005"])
        harness.engine.timeReached(1004)
        #expect(harness.drain() == [])
        harness.engine.timeReached(1005)
        #expect(harness.drain() == ["finish 200 errno 28"])
        #expect(harness.engine.report(on: snapshot).isCorrupted == false)
    }

    @Test func `reaching the metadata limit is overflow`() {
        let harness = Harness(limits: EngineLimits(layerByteCountMax: 250))
        _ = harness.take()
        for chunk in 0..<8 { harness.write(UInt32(chunk), UInt64(chunk) * 65536, 512) }
        #expect(harness.drain().contains("corrupted 0 errno 12"))
    }

    @Test func `sources are used in the order in which they were added, whoever went before`() {
        let harness = Harness()
        let older = harness.take()
        let newer = harness.take()
        harness.engine.snapshotDestroyed(older)
        for now in 0..<5 { harness.engine.turnEnded(now: UInt64(now)) }
        #expect(harness.drain().contains("drained 0"))
        #expect(harness.engine.sourceAdded(to: newer) == SourceIndex(0), "its number is free again")
        overwrite(harness)
        #expect(harness.drain().last == "extent 1 preserving")
        harness.engine.extentRefused(SourceIndex(1), .preserving, fault: .noSpace)
        #expect(harness.drain() == ["extent 0 preserving"])
    }

    @Test(arguments: [true, false])
    func `a snapshot is gone only when no extent is on its way to it`(isGranted: Bool) {
        let harness = Harness()
        let snapshot = harness.take()
        overwrite(harness)
        #expect(harness.drain().last == "extent 0 preserving")
        harness.engine.snapshotDestroyed(snapshot)
        for now in 0..<5 { harness.engine.turnEnded(now: UInt64(now)) }
        let before = harness.drain()
        #expect(before.contains("closed 0"))
        #expect(!before.contains("gone 0"))
        if isGranted {
            harness.engine.extentGranted(SourceIndex(0), .preserving, byteOffset: 0)
            #expect(harness.drain() == ["release 0 0", "drained 0", "gone 0"])
        } else {
            harness.engine.extentRefused(SourceIndex(0), .preserving, fault: .noSpace)
            #expect(harness.drain() == ["drained 0", "gone 0"])
        }
    }
}
