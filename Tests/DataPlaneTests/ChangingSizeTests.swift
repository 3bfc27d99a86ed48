import BlockModel
import DataPlane
import Glibc
import RingIO
import Testing

/// The end of a device may move between the header of a request and its submission: an operator
/// resizes it while a slow client is still sending.
@Suite struct `A device whose end moves` {
    private static let size = 1 << 20

    private func shrunk(_ folder: Folder) async throws -> (DeviceHarness, CutThread) {
        let path = folder.file(size: Self.size, filledWith: 6)
        let harness = try await DeviceHarness(path: path)
        let cut = try CutThread()
        #expect(truncate(path, off_t(Self.size / 2)) == 0)
        let outcome = await cut.makeCut(
            [CutMember(device: harness.device, snapshot: nil)], isBase: false)
        #expect(outcome.fault == nil && outcome.sizes == [UInt64(Self.size / 2)])
        return (harness, cut)
    }

    @Test(arguments: Place.allCases)
    func `refuses what was asked for before and reaches beyond the new end`(place: Place)
        async throws
    {
        let (harness, cut) = try await shrunk(place.folder)
        let half = UInt64(Self.size / 2)
        let block = [UInt8](repeating: 1, count: 4096)
        #expect(await harness.write(block, at: half * 2 - 4096) == .noSpace)
        #expect(await harness.write(block + block, at: half - 4096) == .noSpace)
        for (operation, fault) in [
            (RequestOperation.read, Fault.invalid), (.blockStatus, .invalid),
            (.prefetch, .invalid), (.discard, .invalid), (.writeZeroes, .noSpace),
        ] {
            let answer = await harness.perform(operation, offset: half, length: half)
            #expect(answer.fault == fault, "\(operation)")
        }
        #expect(await harness.perform(.flush).fault == nil)
        #expect(await harness.write(block, at: half - 4096) == nil)
        #expect(await harness.read(4096, at: half - 4096) == block)
        cut.close()
        #expect(await harness.close() == nil)
    }
}
