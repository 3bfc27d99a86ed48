import BlockModel
import ChangeTracking
import CopyOnWrite
import EngineState
import SnapshotCore
import Testing

@Suite struct `Zeroings and discards` {
    private static let size: UInt64 = 64 << 20
    private static let mebibyte: UInt64 = 1 << 20

    private func harness(_ limits: EngineLimits = EngineLimits()) -> Harness {
        let harness = Harness(size: Self.size, limits: limits)
        harness.engine.originReportsHoles = true
        return harness
    }

    /// What the change map says since `base` until now.
    private func changes(_ harness: Harness, since base: UInt32) -> [ByteRange] {
        let ranges = UnsafeMutableBufferPointer<ByteRange>.allocate(capacity: 16)
        defer { ranges.deallocate() }
        guard
            case .ranges(let count, _) = harness.engine.changes(
                since: base, baseSize: Self.size, until: nil, from: 0, into: ranges)
        else { return [] }
        return Array(ranges[0..<count])
    }

    @Test(arguments: [RequestOperation.writeZeroes, .discard])
    func `what the origin has as a hole is marked, but not copied`(operation: RequestOperation) {
        for isHeld in [false, true] {
            let harness = harness()
            if isHeld { _ = harness.take() }
            harness.write(0, 0, Self.size, operation: operation)
            #expect(harness.drain() == ["findHoles 0 0+\(Self.size)"])
            harness.engine.originScanned(RequestIndex(0), isHole: true, length: Self.size)
            #expect(harness.drain() == ["issuePart 0 0+\(Self.size)"])
            #expect(harness.originDone(0, Self.size) == .finish(nil))
            #expect(
                changes(harness, since: isHeld ? 1 : 0)
                    == [ByteRange(offset: 0, length: Self.size)])
        }
    }

    @Test func `holes beyond what a cut's records have room for are not marked`() {
        var limits = EngineLimits()
        limits.heldHoleChunkCountMax = Int(Self.size / 65536) - 1
        let harness = harness(limits)
        let snapshot = harness.take()
        harness.write(0, 0, Self.size, operation: .discard)
        _ = harness.drain()
        harness.engine.originScanned(RequestIndex(0), isHole: true, length: Self.size)
        #expect(harness.drain() == ["issuePart 0 0+\(Self.size)"])
        #expect(harness.originDone(0, Self.size) == .finish(nil))
        #expect(changes(harness, since: 1) == [])
        #expect(harness.engine.report(on: snapshot).metadataByteCount == 0)
    }

    @Test func `what the origin has as data is marked and copied, piece by piece`() {
        let harness = harness()
        _ = harness.take()
        let start = 16 * Self.mebibyte
        harness.write(0, 0, Self.size, operation: .writeZeroes)
        _ = harness.drain()
        harness.engine.originScanned(RequestIndex(0), isHole: true, length: start + 100)
        #expect(harness.drain() == ["issuePart 0 0+\(start)"])
        #expect(harness.originDone(0, start) == .taken)
        #expect(harness.drain() == ["findHoles 0 \(start)+\(Self.size - start)"])
        harness.engine.originScanned(RequestIndex(0), isHole: false, length: 5000)
        // Two blocks, the second of them in part.
        #expect(harness.drain() == ["readOrigin 0 \(start)+8192"])
        harness.copyDone(0, 8192)
        #expect(harness.drain() == ["issuePart 0 \(start)+8192"])
        #expect(harness.originDone(0, 8192) == .taken)
        #expect(
            harness.drain() == ["findHoles 0 \(start + 8192)+\(Self.size - start - 8192)"])
        #expect(changes(harness, since: 1) == [ByteRange(offset: 0, length: start + 8192)])
    }

    @Test func `a question that was not answered counts as data`() {
        let harness = harness()
        _ = harness.take()
        harness.write(0, 0, Self.mebibyte, operation: .writeZeroes)
        _ = harness.drain()
        harness.engine.originScanned(RequestIndex(0), isHole: false, length: 0)
        #expect(harness.drain() == ["readOrigin 0 0+4096"])
    }

    @Test func `a hole of before a cut is looked for again behind it`() {
        let harness = harness()
        _ = harness.take()
        harness.write(0, 0, Self.size, operation: .writeZeroes)
        _ = harness.drain()
        // The answer is on its way while somebody writes into the hole and a snapshot is taken.
        harness.write(1, 0, 4096)
        harness.copyDone(0, 4096, zeroMask: 1)
        _ = harness.originDone(1, 4096)
        let newer = harness.take()
        harness.engine.originScanned(RequestIndex(0), isHole: true, length: Self.size)
        #expect(harness.drain() == ["findHoles 0 0+\(Self.size)"])
        harness.engine.originScanned(RequestIndex(0), isHole: false, length: 4096)
        #expect(harness.drain() == ["readOrigin 0 0+4096"])
        harness.copyDone(0, 4096)
        #expect(harness.engine.report(on: newer).preservedBlockCount == 1)
    }

    @Test func `a gate that closes while holes are looked for drains at once`() {
        let harness = harness()
        _ = harness.take()
        harness.write(0, 0, Self.size, operation: .writeZeroes)
        _ = harness.drain()
        harness.engine.gateClosed(now: 1)
        #expect(harness.drain() == ["gateDrained"])
        harness.engine.originScanned(RequestIndex(0), isHole: true, length: Self.size)
        #expect(harness.drain() == [])
        harness.engine.gateOpened(now: 2)
        #expect(harness.drain() == ["findHoles 0 0+\(Self.size)"])
    }

    @Test func `each piece of a zeroing may wait as long as the policy says`() {
        let harness = Harness(size: Self.size)
        _ = harness.take(policy: OverflowPolicy(kind: .break, limitNanoseconds: 1000))
        let piece = EngineLimits().heldPieceByteCount
        harness.write(0, 0, 3 * piece, operation: .writeZeroes)
        var now: UInt64 = 0
        for number in 0..<UInt64(3) {
            harness.engine.turnEnded(now: now)
            let reads = harness.effects().compactMap { effect -> CopyIndex? in
                if case .readOrigin(let copy, _, _) = effect { return copy }
                return nil
            }
            #expect(reads.count == Int(piece / 65536))
            // The copies take nearly all of the limit, the zeroing much more.
            now += 900
            harness.engine.timeReached(now)
            for copy in reads { harness.copyDone(copy.rawValue, 65536, zeroMask: .max) }
            harness.engine.turnEnded(now: now)
            #expect(harness.drain().contains("issuePart 0 \(number * piece)+\(piece)"))
            now += 100_000
            harness.engine.timeReached(now)
            _ = harness.originDone(0, piece)
        }
        #expect(!harness.drain().contains { $0.hasPrefix("corrupted") })
    }

    @Test func `a discard of what a snapshot needs is passed over, some of it in each turn`() {
        let harness = Harness(size: Self.size)
        _ = harness.take()
        harness.write(0, 0, Self.size, operation: .discard)
        var turns = 0
        var effects = harness.drain()
        while !effects.contains("finish 0 well"), turns < 1000 {
            #expect(!effects.contains { $0.hasPrefix("issue") })
            #expect(harness.engine.hasWork)
            harness.engine.turnEnded(now: 0)
            effects = harness.drain()
            turns += 1
        }
        #expect(turns == 7, "8 pieces of a mebibyte in each")
        #expect(!harness.engine.hasWork)
    }

    @Test func `a request beyond an end that moved is refused`() {
        let harness = Harness()
        harness.engine.gateClosed(now: 0)
        harness.engine.deviceResized(to: 1 << 19, now: 0)
        harness.engine.gateOpened(now: 0)
        #expect(harness.write(0, 1 << 19, 4096) == .refused(.noSpace))
        #expect(harness.write(0, (1 << 19) - 512, 4096) == .refused(.noSpace))
        #expect(harness.write(0, .max - 100, 4096) == .refused(.noSpace))
        #expect(harness.write(0, 0, 1 << 20, operation: .discard) == .refused(.noSpace))
        #expect(harness.write(0, (1 << 19) - 4096, 4096) == .issue)
    }

    @Test func `a large write begins its copies in slices, and nobody is given up for it`() {
        let harness = Harness(size: Self.size, bufferCount: 4096)
        _ = harness.take(policy: OverflowPolicy(kind: .break, limitNanoseconds: 1000))
        harness.write(0, 0, 4 * Self.mebibyte)
        var reads = 0
        for turn in 0..<UInt64(4) {
            let count = harness.effects().count { effect in
                if case .readOrigin = effect { return true }
                return false
            }
            #expect(count == 16)
            reads += count
            #expect(harness.engine.hasWork == (turn < 3))
            harness.engine.turnEnded(now: turn)
        }
        #expect(reads == 64)
        for copy in 0..<UInt32(64) { harness.copyDone(copy, 65536, zeroMask: .max) }
        #expect(harness.drain().contains("issue 0"))
    }

    @Test func `a large read of an image goes on in the next turn`() {
        let harness = Harness(size: Self.size)
        let snapshot = harness.take()
        harness.write(0, 0, 8 * Self.mebibyte, operation: .writeZeroes)
        var effects = harness.effects()
        while !effects.isEmpty {
            for effect in effects {
                if case .readOrigin(let copy, _, let length) = effect {
                    harness.copyDone(copy.rawValue, length, zeroMask: .max)
                } else if case .issuePart(_, _, let length) = effect {
                    _ = harness.originDone(0, length)
                }
            }
            effects = harness.effects()
        }
        harness.engine.turnEnded(now: 0)
        _ = harness.drain()
        _ = harness.engine.imageReadArrived(
            RequestIndex(1), snapshot: snapshot, overlay: false, offset: 0,
            length: 8 * Self.mebibyte, now: 0)
        #expect(
            harness.drain() == ["zero 1 block 0 blocks 256", "zero 1 block 256 blocks 256"])
        #expect(harness.engine.hasWork)
        for _ in 0..<3 { harness.engine.turnEnded(now: 0) }
        #expect(harness.drain().last == "finish 1 well")
    }
}
