import BlockModel
import CopyOnWrite
import DataPlane
import Devices
import Glibc
import RingIO
import Synchronization
import Testing

/// Jobs that hold all threads of some lanes until they are told to end.
private final class HangingLanes: Sendable {
    private let release = Semaphore()
    private let count = Mutex(0)

    /// Returns when the threads are held.
    init(_ lanes: [BlockingLane], of pool: BlockingPool) {
        let begun = Semaphore()
        for lane in lanes {
            for _ in 0..<128 {
                let isTaken = pool.submit(lane) { [release] in
                    begun.signal()
                    release.wait()
                }
                #expect(isTaken)
                count.withLock { $0 += 1 }
            }
            // More wait than may run: another one of the lane would not begin.
            var schedule = LaneSchedule.service()
            for _ in 0..<128 where !schedule.arrived(in: lane) {
                Issue.record("a lane of the service takes 128 jobs")
            }
            while schedule.wantsThread(for: lane) { schedule.threadStarted(for: lane) }
            while schedule.threadFree() != nil { begun.wait() }
        }
    }

    func end() { for _ in 0..<count.withLock({ $0 }) { release.signal() } }
}

/// A device between simulated engines and whole services: with a pool that hangs and refuses as
/// planned.
@Suite struct `A device on a pool that is in trouble` {
    private let block = [UInt8](repeating: 3, count: 4096)
    /// Bytes of the device whose entries lie in one page of the change map.
    private let region: UInt64 = 32 << 20

    @Test(.timeLimit(.minutes(2)), arguments: Place.allCases)
    func `is written for the first time in any region while all but map pages hang`(place: Place)
        async throws
    {
        let pool = try BlockingPool.service()
        let folder = place.folder
        let harness = try await DeviceHarness(path: folder.file(size: 1 << 30), blocking: pool)
        let hanging = HangingLanes(BlockingLane.allCases.filter { $0 != .pages }, of: pool)
        for index in 0..<UInt64(32) {
            #expect(await harness.write(block, at: index * region) == nil)
        }
        let progress = try #require(await harness.device.progress())
        #expect(!progress.isTrackingLost)
        hanging.end()
        let page = try await harness.device.changes(
            ChangesQuery(since: .generation, until: nil)
        ).get()
        #expect(
            page.ranges
                == (0..<UInt64(32)).map { ByteRange(offset: $0 * region, length: 4096) })
        #expect(await harness.close() == nil)
    }

    @Test(.timeLimit(.minutes(2)))
    func `gets storage while paths, origins and the erasing of others hang`() async throws {
        let pool = try BlockingPool.service()
        let folder = Folder()
        let harness = try await DeviceHarness(
            path: folder.file(size: 40 << 20, filledWith: 6), blocking: pool)
        let cut = try CutThread()
        let held = try await HeldSnapshot(
            of: harness, account: 1, storage: [.path(folder.path)], limit: 64 << 20,
            policy: OverflowPolicy(kind: .throttle, limitNanoseconds: 60_000_000_000), cut: cut)
        let hanging = HangingLanes(
            BlockingLane.allCases.filter { $0 != .pages && $0 != .growth }, of: pool)
        // The file grows 16 MiB at a time: more than one step.
        let chunk = [UInt8](repeating: 3, count: 65536)
        for index in 0..<UInt64(40 * 16) {
            #expect(await harness.write(chunk, at: index * 65536) == nil)
        }
        for index in stride(from: 0, to: UInt64(40 * 16), by: 97) {
            let bytes = await harness.read(4096, at: index * 65536, on: held.image)
            #expect(bytes == [UInt8](repeating: 6, count: 4096))
        }
        hanging.end()
        await held.snapshot.destroy()
        cut.close()
        #expect(await harness.close() == nil)
    }

    @Test(.timeLimit(.minutes(2)))
    func `loses nothing to refusals: what is owed is done`() async throws {
        // Pages, storage and its erasing are refused whenever that may be.
        let schedule = LaneSchedule { lane in
            switch lane {
            case .pages, .growth, .erasure: LaneSchedule.Bounds(threadCount: 1, waitingMax: 0)
            case .origins, .housekeeping, .paths, .storagePaths, .surveys:
                LaneSchedule.Bounds(threadCount: 1, waitingMax: 64)
            }
        }
        let pool = try BlockingPool(schedule, threadCount: schedule.threadCount)
        let folder = Folder()
        let harness = try await DeviceHarness(path: folder.file(size: 1 << 30), blocking: pool)
        let cut = try CutThread()
        let held = try await HeldSnapshot(
            of: harness, account: 1, storage: [.path(folder.path)], cut: cut)
        for index in 0..<UInt64(32) {
            #expect(await harness.write(block, at: index * region) == nil)
            #expect(await harness.write(block, at: index * region) == nil)
        }
        #expect(try #require(await harness.device.progress()).isTrackingLost == false)
        let zeroes = [UInt8](repeating: 0, count: 4096)
        #expect(await harness.read(4096, at: 31 * region, on: held.image) == zeroes)
        await held.snapshot.destroy()
        cut.close()
        #expect(await harness.close() == nil)
    }
}
