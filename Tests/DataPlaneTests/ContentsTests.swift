import BlockModel
import CTestSupport
import DataPlane
import Devices
import RingIO
import Testing

/// What a full backup has to read.
@Suite(.serialized) struct `The contents of a device` {
    @Test(arguments: Place.allCases)
    func `are told from memory that still belongs to the question`(place: Place) async throws {
        // Freed memory is overwritten at once: what is read from it is seen.
        stillpoint_test_perturb_freed_memory(0xA5)
        defer { stillpoint_test_perturb_freed_memory(0) }
        let size = 4 << 20
        let folder = place.folder
        let harness = try await DeviceHarness(path: folder.file(size: size, filledWith: 6))
        #expect(await harness.perform(.discard, offset: 1 << 20, length: 1 << 20).fault == nil)
        for _ in 0..<16 {
            let page = try await harness.device.changes(
                ChangesQuery(since: .everything, until: nil)
            ).get()
            #expect(
                page.ranges == [
                    ByteRange(offset: 0, length: 1 << 20),
                    ByteRange(offset: 2 << 20, length: 2 << 20),
                ])
            #expect(page.size == UInt64(size) && page.nextOffset == nil)
        }
        #expect(await harness.close() == nil)
    }
}
