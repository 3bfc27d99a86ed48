import BlockModel
import ChangeTracking
import CopyOnWrite
import EngineState
import SnapshotCore
import Testing

/// The blocks that an engine reports, asked in pages and slices of the given sizes.
private func changedBlocks(
    _ harness: Harness, since base: UInt32, baseSize: UInt64 = .max,
    until snapshot: SnapshotIndex? = nil, end: UInt64 = 1 << 20, rangesPerPage: Int = 64,
    chunkBudget: UInt64 = .max
) throws -> Set<UInt64> {
    let page = UnsafeMutableBufferPointer<ByteRange>.allocate(capacity: rangesPerPage)
    defer { page.deallocate() }
    var found: Set<UInt64> = []
    var offset: UInt64 = 0
    var lastEnd: UInt64 = 0
    while offset < end {
        let outcome = harness.engine.changes(
            since: base, baseSize: baseSize, until: snapshot, from: offset, to: end,
            chunkBudget: chunkBudget, into: page)
        guard case .ranges(let count, let resumeOffset) = outcome else {
            throw Unanswered(outcome: outcome)
        }
        for range in page[..<count] {
            #expect(range.offset >= lastEnd && range.end <= end)
            lastEnd = range.end
            found.formUnion(blocks(touching: range))
        }
        try #require(resumeOffset > offset)
        offset = resumeOffset
    }
    return found
}

private struct Unanswered: Error { let outcome: ChangesOutcome }

extension Harness {
    /// A write that the origin performs, with whatever copy it needs.
    fileprivate func writeThrough(_ block: UInt64, count: UInt64 = 1) {
        write(0, block * blockByteCount, count * blockByteCount)
        while true {
            let copies = effects().compactMap { effect -> (CopyIndex, UInt64)? in
                guard case .readOrigin(let copy, _, let length) = effect else { return nil }
                return (copy, length)
            }
            guard !copies.isEmpty else { break }
            for (copy, length) in copies { copyDone(copy.rawValue, length) }
        }
        _ = originDone(0, count * blockByteCount)
        _ = effects()
    }

    /// A cut without data.
    fileprivate func cut(isBase: Bool = true) {
        engine.gateClosed(now: engine.now)
        _ = engine.cutSwitched(snapshot: nil, isBase: isBase)
        engine.gateOpened(now: engine.now)
        _ = effects()
    }
}

@Suite struct `Marks by hand` {
    @Test func `are in every answer until now and until each snapshot that is held`() throws {
        let harness = Harness()
        harness.cut()
        harness.writeThrough(1)
        let first = harness.take()
        harness.writeThrough(2)
        let second = harness.take()
        harness.writeThrough(3)
        harness.engine.changesDeclared(in: ByteRange(offset: 5 * 4096, length: 4096))
        let third = harness.take()
        // Epochs: the first cut ended 1, the snapshots 2, 3 and 4.
        #expect(try changedBlocks(harness, since: 1, until: first) == [1, 5])
        #expect(try changedBlocks(harness, since: 2, until: second) == [2, 5])
        #expect(try changedBlocks(harness, since: 3, until: third) == [3, 5])
        #expect(try changedBlocks(harness, since: 4) == [])
        harness.engine.changesDeclared(in: ByteRange(offset: 40 * 4096, length: 8192))
        for (base, snapshot) in [(1, first), (2, second), (3, third), (4, nil)] {
            #expect(
                try changedBlocks(harness, since: UInt32(base), until: snapshot)
                    .isSuperset(of: [40, 41]))
        }
        #expect(try changedBlocks(harness, since: 2, until: second) == [2, 5, 40, 41])
    }

    @Test func `survive the end of newer and older snapshots`() throws {
        let harness = Harness()
        let snapshots = (0..<3).map { _ in harness.take() }
        harness.engine.changesDeclared(in: ByteRange(offset: 4096, length: 1))
        harness.engine.snapshotDestroyed(snapshots[1])
        for now in 0..<4 { harness.engine.turnEnded(now: UInt64(now)) }
        #expect(try changedBlocks(harness, since: 0, until: snapshots[0]) == [1])
        #expect(try changedBlocks(harness, since: 2, until: snapshots[2]) == [1])
        harness.engine.snapshotDestroyed(snapshots[0])
        for now in 4..<8 { harness.engine.turnEnded(now: UInt64(now)) }
        #expect(try changedBlocks(harness, since: 2, until: snapshots[2]) == [1])
    }

    @Test func `of an older base leave the newest one exact`() throws {
        let harness = Harness()
        harness.writeThrough(0)
        harness.cut()
        let snapshot = harness.take()
        harness.engine.changesDeclared(in: ByteRange(offset: 7 * 4096, length: 4096))
        // Block 0 changed before the base; the chunk is the same.
        #expect(try changedBlocks(harness, since: 1, until: snapshot) == [7])
    }

    @Test func `find no room where a snapshot's metadata is at its limit`() throws {
        var limits = EngineLimits()
        limits.layerByteCountMax = 28 * 4 + 64
        let harness = Harness(limits: limits)
        #expect(harness.engine.hasRoomForMarks(chunkCount: 1000))
        let snapshot = harness.take()
        #expect(harness.engine.hasRoomForMarks(chunkCount: 3))
        #expect(!harness.engine.hasRoomForMarks(chunkCount: 5))
        // Said all the same, the snapshot is given up and the marks hold.
        harness.engine.changesDeclared(in: ByteRange(offset: 0, length: 1 << 20))
        #expect(harness.engine.report(on: snapshot).isCorrupted)
        #expect(try changedBlocks(harness, since: 0).count == 256)
    }

    @Test func `name the pages they need`() {
        let harness = Harness(size: 512 * 65536 * 3, reserve: false)
        let whole = ByteRange(offset: 0, length: 512 * 65536 * 3)
        #expect(harness.engine.unreservedPages(of: whole, countMax: 8) == [0, 1, 2])
        #expect(harness.engine.unreservedPages(of: whole, countMax: 2) == [0, 1])
        harness.engine.mapPageReserved(1)
        #expect(harness.engine.unreservedPages(of: whole, countMax: 8) == [0, 2])
        let middle = ByteRange(offset: 512 * 65536, length: 1)
        #expect(harness.engine.unreservedPages(of: middle, countMax: 8) == [])
    }
}

@Suite struct `Answers in slices` {
    @Test(arguments: [1, 2, 3, 16, 1000] as [UInt64], [1, 3, 64])
    func `say together what one says, grown tail included`(
        budget: UInt64, rangesPerPage: Int
    ) throws {
        let harness = Harness()
        for block in [0, 1, 15, 16, 17, 40, 95, 96, 250, 255] as [UInt64] {
            harness.writeThrough(block)
        }
        let snapshot = harness.take()
        for block in [1, 2, 50, 96, 251] as [UInt64] { harness.writeThrough(block) }
        for (until, baseSize) in [
            (nil, UInt64.max), (nil, 600_000), (snapshot, .max), (snapshot, 70_000),
        ] as [(SnapshotIndex?, UInt64)] {
            let whole = try changedBlocks(harness, since: 0, baseSize: baseSize, until: until)
            let parts = try changedBlocks(
                harness, since: 0, baseSize: baseSize, until: until,
                rangesPerPage: rangesPerPage, chunkBudget: budget)
            #expect(whole == parts)
            #expect(whole.count >= 10)
        }
    }

    @Test func `end where the window does`() throws {
        let harness = Harness()
        for block in 10..<20 as Range<UInt64> { harness.writeThrough(block) }
        #expect(try changedBlocks(harness, since: 0, end: 12 * 4096) == [10, 11])
    }
}

@Suite struct `A damaged change map` {
    @Test(arguments: [0x0000_0009_0001_0001, 0x0000_0001_0000_0001, 0x0000_0001_0001_0005])
    func `is called damaged, never answered from, and marking in it traps nothing`(
        raw: UInt64
    ) {
        let harness = Harness()
        let snapshot = harness.take()
        harness.damage(chunk: 3, raw)
        harness.writeThrough(48)
        let page = UnsafeMutableBufferPointer<ByteRange>.allocate(capacity: 8)
        defer { page.deallocate() }
        for until in [nil, snapshot] {
            #expect(
                harness.engine.changes(
                    since: 0, baseSize: .max, until: until, from: 0, into: page) == .damaged)
        }
        harness.engine.trackingLost()
        #expect(
            harness.engine.changes(since: 0, baseSize: .max, until: nil, from: 0, into: page)
                == .unknown)
    }
}

@Suite struct `Seventy thousand cuts` {
    /// What happened to a few chunks, by epoch.
    private struct Past {
        var changes: [(epoch: UInt32, block: UInt64)] = []

        func blocks(after base: UInt32, until last: UInt32) -> Set<UInt64> {
            Set(changes.filter { $0.epoch > base && $0.epoch <= last }.map(\.block))
        }
    }

    @Test func `in one run leave every answer complete, the newest exact`() throws {
        let harness = Harness(size: 8 * 65536)
        let end: UInt64 = 8 * 65536
        var random = Seeded(state: 70_000)
        var past = Past()
        var bases: [UInt32] = [0]
        var held: [(index: SnapshotIndex, epoch: UInt32)] = []
        for cut in 1...70_000 as ClosedRange<UInt32> {
            // Long quiet times, so that reaches saturate, and bursts.
            if random.next() % 500 == 0 {
                for _ in 0..<1 + random.next() % 3 {
                    let block = random.next() % 128
                    past.changes.append((cut, block))
                    harness.writeThrough(block)
                }
            }
            let isBase = random.next() % 3000 == 0 || cut == 69_999
            if isBase, held.count < 6 {
                held.append((harness.take(), cut))
                bases.append(cut)
            } else {
                harness.cut(isBase: isBase)
                if isBase { bases.append(cut) }
            }
            guard random.next() % 5000 == 0 || cut == 70_000 else { continue }
            for base in bases {
                let truth = past.blocks(after: base, until: .max)
                let answer = try changedBlocks(harness, since: base, end: end)
                #expect(answer.isSuperset(of: truth), "since \(base) at \(cut)")
                #expect(Set(truth.map { $0 / 16 }).isSuperset(of: answer.map { $0 / 16 }))
                if base == bases.last { #expect(answer == truth, "since \(base) at \(cut)") }
                for (snapshot, epoch) in held where epoch >= base {
                    let truth = past.blocks(after: base, until: epoch)
                    let answer = try changedBlocks(
                        harness, since: base, until: snapshot, end: end)
                    #expect(answer.isSuperset(of: truth), "since \(base) until \(epoch)")
                    #expect(Set(truth.map { $0 / 16 }).isSuperset(of: answer.map { $0 / 16 }))
                }
            }
        }
        #expect(harness.engine.epoch == Epoch(70_001))
        #expect(past.changes.count > 100 && bases.count > 10)
    }
}

/// SplitMix64.
private struct Seeded: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ mixed >> 30) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ mixed >> 27) &* 0x94D0_49BB_1331_11EB
        return mixed ^ mixed >> 31
    }
}
