import BlockModel
import CopyOnWrite
import EngineState
import Testing

private let snapshot = SnapshotIndex(3)

@Suite struct `Sources of storage` {
    /// A table and the effects it asked for.
    private final class Storage {
        var table = SourceTable(capacity: 4, snapshotCount: 8)
        var effects = EffectQueue(capacity: 16)

        deinit {
            table.deallocate()
            effects.deallocate()
        }

        func add(blocksPerExtent: UInt64 = 4) -> SourceIndex? {
            table.add(to: snapshot, extentByteCount: blocksPerExtent * blockByteCount)
        }

        func take(
            _ limit: Int, _ purpose: StoragePurpose = .preserving, isUrgent: Bool = false
        ) -> (StorageSlot, Int)? {
            table.take(
                upTo: limit, of: snapshot, for: purpose, isUrgent: isUrgent, &effects)
        }

        func granted(
            _ source: SourceIndex, _ purpose: StoragePurpose, _ byteOffset: UInt64
        ) -> SnapshotIndex? {
            table.granted(source, purpose, byteOffset: byteOffset, &effects)
        }

        func refused(_ source: SourceIndex, _ purpose: StoragePurpose) -> SnapshotIndex? {
            table.refused(source, purpose, fault: .noSpace, &effects)
        }

        func close() { table.close(of: snapshot, &effects) }

        func asked() -> [String] {
            var all: [String] = []
            while let effect = effects.next() {
                switch effect {
                case .requestExtent(let source, let purpose):
                    all.append("extent of \(source.rawValue) for \(purpose)")
                case .releaseExtent(let source, let byteOffset):
                    all.append("release \(byteOffset) of \(source.rawValue)")
                case .sourceClosed(let source): all.append("close \(source.rawValue)")
                case .sourceDrained(let source): all.append("drained \(source.rawValue)")
                default: all.append("\(effect)")
                }
            }
            return all
        }
    }

    @Test func `the first block asks for an extent, once, and the last ones for the next`() throws {
        let storage = Storage()
        let source = try #require(storage.add())
        #expect(storage.take(2) == nil)
        #expect(storage.take(2) == nil)
        #expect(storage.asked() == ["extent of 0 for preserving"])
        #expect(storage.table.isSpaceComing(snapshot, .preserving))
        #expect(!storage.table.isSpaceComing(snapshot, .overlay))
        #expect(storage.table.shortage == nil)
        #expect(storage.granted(source, .preserving, 8192) == nil)
        let first = try #require(storage.take(3))
        #expect(first.1 == 3 && storage.table.address(of: first.0) == (source, 8192))
        #expect(storage.asked() == [])
        // What is left is one block of four: not less than a quarter.
        let second = try #require(storage.take(3))
        #expect(second.1 == 1 && storage.table.address(of: second.0) == (source, 8192 + 3 * 4096))
        #expect(storage.asked() == ["extent of 0 for preserving"])
    }

    @Test func `the next source's turn comes when one is full, or when writers wait`() throws {
        let storage = Storage()
        let sources = (try #require(storage.add()), try #require(storage.add()))
        #expect(storage.take(1) == nil)
        #expect(storage.asked() == ["extent of 0 for preserving"])
        #expect(storage.take(1, isUrgent: true) == nil)
        #expect(storage.asked() == ["extent of 1 for preserving"])
        #expect(
            storage.refused(sources.0, .preserving) == nil)
        #expect(
            storage.granted(sources.1, .preserving, 0) == nil)
        let taken = try #require(storage.take(1))
        #expect(storage.table.address(of: taken.0).source == sources.1)
    }

    @Test func `a full source has room again when an extent comes back`() throws {
        let storage = Storage()
        let source = try #require(storage.add(blocksPerExtent: 1))
        _ = storage.take(1)
        _ = storage.granted(source, .preserving, 0)
        let slot = try #require(storage.take(1)).0
        _ = storage.asked()
        #expect(storage.refused(source, .preserving) == nil)
        #expect(storage.take(1) == nil && storage.asked() == [])
        #expect(storage.table.shortage == .noSpace)
        storage.table.free(slot, &storage.effects)
        #expect(storage.asked() == ["release 0 of 0"])
        #expect(storage.take(1) == nil)
        #expect(storage.asked() == ["extent of 0 for preserving"])
    }

    @Test func `a source that failed gets no more blocks, and says so unless it was full`() throws {
        let storage = Storage()
        let sources = (try #require(storage.add()), try #require(storage.add()))
        storage.table.failed(sources.0, .noSpace, &storage.effects)
        #expect(storage.table.shortage == .noSpace)
        storage.table.failed(sources.1, .inputOutput, &storage.effects)
        #expect(storage.table.shortage == .inputOutput)
        #expect(storage.take(1) == nil && storage.asked() == [])
    }

    @Test func `a closed source is drained once nothing of it is in use, read or on its way`()
        throws
    {
        let storage = Storage()
        let source = try #require(storage.add())
        _ = storage.take(1)
        _ = storage.granted(source, .preserving, 0)
        let slot = try #require(storage.take(1)).0
        _ = storage.take(3)
        _ = storage.asked()
        storage.table.readBegan(slot)
        storage.close()
        #expect(storage.asked() == ["close 0"])
        #expect(storage.table.isAsking(of: snapshot))
        let waiting = storage.granted(source, .preserving, 16384)
        #expect(waiting == snapshot)
        #expect(storage.asked() == ["release 16384 of 0"])
        #expect(!storage.table.isAsking(of: snapshot))
        for block in slot.rawValue..<slot.rawValue + 4 {
            storage.table.free(StorageSlot(block), &storage.effects)
        }
        #expect(storage.asked() == [])
        storage.table.readEnded(slot, &storage.effects)
        #expect(storage.asked() == ["release 0 of 0", "drained 0"])
        #expect(storage.add() == source)
    }

    @Test func `a refused closed source is drained`() throws {
        let storage = Storage()
        let source = try #require(storage.add())
        _ = storage.take(1, .overlay)
        storage.close()
        #expect(storage.asked() == ["extent of 0 for overlay", "close 0"])
        let waiting = storage.refused(source, .overlay)
        #expect(waiting == snapshot)
        #expect(storage.asked() == ["drained 0"])
    }

    @Test func `sources have a bound`() {
        let storage = Storage()
        for _ in 0..<4 { #expect(storage.add() != nil) }
        #expect(storage.add() == nil)
    }
}
