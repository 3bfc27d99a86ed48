import BlockModel
import ChangeTracking
import CopyOnWrite
import SnapshotCore
import Testing

@Suite struct `Frozen changes` {
    @Test func `a held snapshot goes on saying what changed before it`() {
        let harness = Harness()
        _ = harness.take()
        harness.write(0, 0, 4096)
        harness.copyDone(0, 4096)
        _ = harness.originDone(0, 4096)
        let snapshot = harness.take()
        harness.write(0, 8192, 4096)
        harness.write(1, 131_072, 4096)
        let page = UnsafeMutableBufferPointer<ByteRange>.allocate(capacity: 8)
        defer { page.deallocate() }
        #expect(
            harness.engine.changes(
                since: 1, baseSize: 1 << 20, until: snapshot, from: 0, into: page)
                == .ranges(count: 1, resumeOffset: 1 << 20))
        #expect(page[0] == ByteRange(offset: 0, length: 4096))
        #expect(
            harness.engine.changes(
                since: 2, baseSize: 65536 + 5000, until: nil, from: 0, into: page)
                == .ranges(count: 2, resumeOffset: 1 << 20))
        #expect(page[0] == ByteRange(offset: 8192, length: 4096))
        #expect(page[1] == ByteRange(offset: 69632, length: 1 << 20 - 69632), "the grown tail")
    }
}
