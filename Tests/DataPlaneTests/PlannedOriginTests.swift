import BlockModel
import CopyOnWrite
import DataPlane
import Devices
import Glibc
import RingIO
import Synchronization
import Testing

/// A device between simulated engines and whole services: on a disk that refuses, delays and comes
/// back short as planned.
@Suite struct `A device on a disk that is in trouble` {
    private static let size = 1 << 20
    private let old = [UInt8](repeating: 6, count: 65536)
    private let new = [UInt8](repeating: 3, count: 65536)

    /// A device full of old data whose disk behaves as planned, and what is held of it.
    private final class Trouble {
        let folder: Folder
        let plan = PlannedOrigin.Plan()
        let harness: DeviceHarness
        let cut: CutThread
        let notices = Notices()
        private var held: [HeldSnapshot] = []

        final class Notices: Sendable {
            private let faults = Mutex<[Fault]>([])

            func add(_ notice: SnapshotNotice) {
                if case .corrupted(let fault) = notice { faults.withLock { $0.append(fault) } }
            }

            var corruptions: [Fault] { faults.withLock { $0 } }
        }

        init(_ place: Place) async throws {
            folder = place.folder
            harness = try await DeviceHarness(
                path: folder.file(size: size, filledWith: 6), plan: plan)
            cut = try CutThread()
        }

        func hold(
            _ policy: OverflowPolicy = OverflowPolicy(
                kind: .throttle, limitNanoseconds: 50_000_000_000)
        ) async throws -> HeldSnapshot {
            let notices = notices
            let snapshot = try await HeldSnapshot(
                of: harness, account: UInt16(held.count + 1), storage: [.memory(8 << 20)],
                policy: policy, cut: cut, notify: { notices.add($0) })
            held.append(snapshot)
            return snapshot
        }

        /// Returns when so many operations of the disk are delayed.
        func waitForDelayed(_ count: Int) async throws {
            while plan.delayedCount < count { try await Task.sleep(for: .milliseconds(2)) }
        }

        func end() async -> Fault? {
            for snapshot in held { await snapshot.snapshot.destroy() }
            cut.close()
            #expect(plan.isOver)
            return await harness.close()
        }
    }

    @Test(arguments: Place.allCases)
    func `is read and written whole when transfers come back short or have to be tried again`(
        place: Place
    ) async throws {
        let trouble = try await Trouble(place)
        trouble.plan.next(.write, .short(512), .failure(EAGAIN), .short(4096), .failure(EINTR))
        #expect(await trouble.harness.write(new, at: 65536) == nil)
        trouble.plan.next(.read, .short(4096), .failure(EINTR), .short(1024), .failure(EAGAIN))
        #expect(await trouble.harness.read(65536, at: 65536) == new)
        #expect(await trouble.harness.read(65536, at: 131_072) == old)
        #expect(await trouble.end() == nil)
    }

    @Test(arguments: Place.allCases, [EIO, ENOSPC, EAGAIN])
    func `says what went wrong in the middle of a transfer`(place: Place, number: Int32)
        async throws
    {
        let trouble = try await Trouble(place)
        // An operation is tried again for two seconds, not forever.
        let times = number == EAGAIN ? 216 : 1
        let fault = Fault(errnoValue: number == EAGAIN ? EIO : number)
        for operation in [DiskOperation.write, .read] {
            trouble.plan.next(operation, .short(4096))
            for _ in 0..<times { trouble.plan.next(operation, .failure(number)) }
        }
        #expect(await trouble.harness.write(new, at: 0) == fault)
        let answer = await trouble.harness.perform(.read, offset: 65536, length: 65536)
        #expect(answer.fault == fault)
        // Nothing moves any more: an end that the disk does not say.
        trouble.plan.next(.write, .short(0))
        trouble.plan.next(.read, .short(0))
        #expect(await trouble.harness.write(new, at: 0) == .inputOutput)
        #expect(
            await trouble.harness.perform(.read, offset: 0, length: 4096).fault == .inputOutput)
        #expect(await trouble.end() == nil)
    }

    @Test(arguments: Place.allCases)
    func `writes zeroes where the disk cannot make them`(place: Place) async throws {
        let trouble = try await Trouble(place)
        trouble.plan.next(.zero, .failure(EOPNOTSUPP), .failure(EOPNOTSUPP))
        trouble.plan.next(.write, .short(4096), .failure(EINTR))
        let answer = await trouble.harness.perform(.writeZeroes, offset: 4096, length: 32768)
        #expect(answer.fault == nil)
        let expected = [UInt8](old[..<4096]) + [UInt8](repeating: 0, count: 32768)
        #expect(await trouble.harness.read(36864, at: 0) == expected)
        #expect(await trouble.harness.read(4096, at: 36864) == [UInt8](old[..<4096]))
        #expect(await trouble.end() == nil)
    }

    @Test(arguments: Place.allCases)
    func `calls nothing stable after a synchronisation failed`(place: Place) async throws {
        let trouble = try await Trouble(place)
        #expect(await trouble.harness.perform(.flush).fault == nil)
        trouble.plan.next(.synchronize, .failure(EINTR), .failure(EIO))
        #expect(await trouble.harness.perform(.flush).fault == .inputOutput)
        #expect(await trouble.harness.perform(.flush).fault == .inputOutput)
        #expect(await trouble.harness.write(new, at: 0, flags: .forceUnitAccess) == .inputOutput)
        #expect(await trouble.harness.write(new, at: 0) == nil)
        #expect(await trouble.end() == .inputOutput)
    }

    @Test(arguments: Place.allCases, [1, 16])
    func `preserves old data that is read short or has to be read again`(
        place: Place, blockCount: Int
    ) async throws {
        let trouble = try await Trouble(place)
        let held = try await trouble.hold()
        let bytes = [UInt8](new[..<(blockCount * 4096)])
        trouble.plan.next(.read, .short(512), .failure(EAGAIN), .short(0), .failure(EINTR))
        #expect(await trouble.harness.write(bytes, at: 0) == nil)
        #expect(await trouble.harness.read(65536, at: 0, on: held.image) == old)
        #expect(trouble.notices.corruptions.isEmpty)
        #expect(await trouble.end() == nil)
    }

    @Test(arguments: Place.allCases)
    func `gives a snapshot up, and no write, when old data cannot be read`(place: Place)
        async throws
    {
        let trouble = try await Trouble(place)
        let held = try await trouble.hold()
        trouble.plan.next(.read, .failure(EIO))
        #expect(await trouble.harness.write(new, at: 0) == nil)
        #expect(await trouble.harness.read(65536, at: 0) == new)
        #expect(trouble.notices.corruptions == [.inputOutput])
        let answer = await trouble.harness.perform(
            .read, offset: 131_072, length: 4096, on: held.image)
        #expect(answer.fault == .inputOutput)
        #expect(await trouble.end() == nil)
    }

    @Test(arguments: Place.allCases)
    func `shows an image whose reads come back short, and fails only those that fail`(
        place: Place
    ) async throws {
        let trouble = try await Trouble(place)
        let held = try await trouble.hold()
        trouble.plan.next(.read, .short(4096), .failure(EAGAIN), .short(0))
        #expect(await trouble.harness.read(65536, at: 0, on: held.image) == old)
        trouble.plan.next(.read, .failure(EIO))
        let answer = await trouble.harness.perform(
            .read, offset: 0, length: 4096, on: held.image)
        #expect(answer.fault == .inputOutput)
        #expect(trouble.notices.corruptions.isEmpty)
        #expect(await trouble.harness.read(4096, at: 0, on: held.image) == [UInt8](old[..<4096]))
        #expect(await trouble.end() == nil)
    }

    @Test(arguments: Place.allCases)
    func `shows an image as it was although its read ends after the next write`(place: Place)
        async throws
    {
        let trouble = try await Trouble(place)
        let held = try await trouble.hold()
        let (harness, target) = (trouble.harness, held.image)
        trouble.plan.next(.read, .delayed)
        async let image = harness.read(65536, at: 0, on: target)
        try await trouble.waitForDelayed(1)
        #expect(await trouble.harness.write(new, at: 0) == nil)
        await trouble.plan.release(on: trouble.harness.thread)
        #expect(await image == old)
        #expect(await trouble.harness.read(65536, at: 0) == new)
        #expect(await trouble.end() == nil)
    }

    @Test(arguments: Place.allCases)
    func `keeps both images right when old data arrives after the next cut`(place: Place)
        async throws
    {
        let trouble = try await Trouble(place)
        let first = try await trouble.hold()
        trouble.plan.next(.read, .delayed)
        let (harness, bytes) = (trouble.harness, new)
        async let written = harness.write(bytes, at: 0)
        try await trouble.waitForDelayed(1)
        let second = try await trouble.hold()
        // The write was under way before the cut and goes on behind it, with a copy for the second.
        #expect(await written == nil)
        await trouble.plan.release(on: trouble.harness.thread)
        for held in [first, second] {
            #expect(await trouble.harness.read(65536, at: 0, on: held.image) == old)
        }
        #expect(await trouble.harness.read(65536, at: 0) == new)
        #expect(await trouble.end() == nil)
    }
}
