import BlockModel
import CopyOnWrite
import DataPlane
import Devices
import Glibc
import Origins
import RingIO
import Synchronization
import Testing

/// A snapshot of a harness's device.
final class HeldSnapshot {
    let harness: DeviceHarness
    let snapshot: DeviceSnapshot
    let storage: SnapshotStorage
    let image: LoopConfined<BlockTarget>
    let writable: LoopConfined<BlockTarget>
    /// The cut.
    let base: TrackingBase

    init(
        of harness: DeviceHarness, account: UInt16, storage requests: [StorageRequest],
        limit: UInt64 = 1 << 30, policy: OverflowPolicy = .standard, cut: CutThread,
        notify: @escaping @Sendable (SnapshotNotice) -> Void = { _ in }
    ) async throws {
        self.harness = harness
        storage = try await SnapshotStorage.open(
            requests, limit: limit, isForced: false, for: [harness.device],
            blocking: harness.blocking
        ) { _, _ in }
        snapshot = try await DeviceSnapshot.prepare(
            harness.device, policy: policy, account: account, storage: storage, notify: notify)
        storage.release()
        let outcome = await cut.makeCut(
            [CutMember(device: harness.device, snapshot: snapshot)], isBase: true)
        #expect(outcome.fault == nil)
        base = outcome.base(at: 0)
        (image, writable) = try #require(await snapshot.images())
    }
}

@Suite struct `Snapshots of a device` {
    enum Storage: CaseIterable, Sendable {
        case disk
        case tmpfs
        case memory
    }

    @Test(arguments: Place.allCases, Storage.allCases)
    func `show the device as it was, however many are held and in whatever order they go`(
        place: Place, storage: Storage
    ) async throws {
        let size = 700 * 1024 + 512
        let folder = place.folder
        let storageFolder = Folder(under: storage == .tmpfs ? "/dev/shm" : "/var/tmp")
        let harness = try await DeviceHarness(path: folder.file(size: size))
        let cut = try CutThread()
        var model = [UInt8](repeating: 0, count: size)
        var held: [(snapshot: HeldSnapshot, image: [UInt8], overlay: [UInt8])] = []
        var random = SeededGenerator(seed: 11)
        var account: UInt16 = 0
        for step in 0..<900 {
            let offset = Int.random(in: 0..<size, using: &random)
            let length = Int.random(in: 1...min(30_000, size - offset), using: &random)
            let range = offset..<offset + length
            let bytes = (0..<length).map { _ in UInt8.random(in: 0...255, using: &random) }
            switch Int.random(in: 0..<14, using: &random) {
            case 0...4:
                #expect(await harness.write(bytes, at: UInt64(offset)) == nil)
                model.replaceSubrange(range, with: bytes)
            case 5:
                let answer = await harness.perform(
                    .writeZeroes, offset: UInt64(offset), length: UInt64(length))
                #expect(answer.fault == nil)
                model.replaceSubrange(range, with: repeatElement(0, count: length))
            case 6:
                let answer = await harness.perform(
                    .discard, offset: UInt64(offset), length: UInt64(length))
                #expect(answer.fault == nil)
                model.replaceSubrange(
                    range, with: await harness.read(length, at: UInt64(offset)))
            case 7 where held.count < 8:
                account += 1
                let snapshot = try await HeldSnapshot(
                    of: harness, account: account,
                    storage: [storage == .memory ? .memory(64 << 20) : .path(storageFolder.path)],
                    cut: cut)
                held.append((snapshot, model, model))
            case 8 where !held.isEmpty && step % 3 == 0:
                let index = Int.random(in: 0..<held.count, using: &random)
                await held.remove(at: index).snapshot.snapshot.destroy()
            case 9 where !held.isEmpty:
                let index = Int.random(in: 0..<held.count, using: &random)
                let fault = await harness.perform(
                    .write, offset: UInt64(offset), bytes: bytes,
                    on: held[index].snapshot.writable
                ).fault
                #expect(fault == nil)
                held[index].overlay.replaceSubrange(range, with: bytes)
            default:
                for entry in held {
                    let image = await harness.read(
                        length, at: UInt64(offset), on: entry.snapshot.image)
                    #expect(image == Array(entry.image[range]), "step \(step)")
                    let overlay = await harness.read(
                        length, at: UInt64(offset), on: entry.snapshot.writable)
                    #expect(overlay == Array(entry.overlay[range]), "step \(step)")
                }
            }
        }
        #expect(account > 5)
        #expect(await harness.read(size, at: 0) == model)
        for entry in held {
            #expect(await harness.read(size, at: 0, on: entry.snapshot.image) == entry.image)
            await entry.snapshot.snapshot.destroy()
        }
        cut.close()
        #expect(await harness.close() == nil)
    }

    @Test func `copy exactly the overwritten blocks, and store nothing for holes and zeroes`()
        async throws
    {
        let folder = Folder()
        let harness = try await DeviceHarness(path: folder.file(size: 4 << 20, filledWith: 6))
        #expect(await harness.perform(.discard, length: 1 << 20).fault == nil)
        let cut = try CutThread()
        let held = try await HeldSnapshot(
            of: harness, account: 1, storage: [.path(folder.path)], cut: cut)
        // 64 blocks of the hole, then 32 blocks of data, some of them twice.
        for block in 0..<64 {
            #expect(
                await harness.write([UInt8](repeating: 1, count: 4096), at: UInt64(block) * 4096)
                    == nil)
        }
        for _ in 0..<2 {
            for block in 512..<544 {
                #expect(
                    await harness.write(
                        [UInt8](repeating: 1, count: 4096), at: UInt64(block) * 4096) == nil)
            }
        }
        let report = try #require(await held.snapshot.report())
        #expect(report.storedBlocks == 32)
        #expect(report.zeroBlocks == 64)
        #expect(report.copiedBytes == 96 * 4096)
        let extents = await harness.perform(
            .blockStatus, length: 4 << 20, on: held.image
        ).extents
        #expect(
            extents == [
                StatusExtent(
                    length: 1 << 20, flags: AllocationFlags.hole | AllocationFlags.zero),
                StatusExtent(length: 3 << 20, flags: AllocationFlags.data),
            ])
        await held.snapshot.destroy()
        cut.close()
        #expect(await harness.close() == nil)
    }

    @Test func `that run out of storage fail their reads and leave the writers alone`()
        async throws
    {
        let folder = Folder()
        let harness = try await DeviceHarness(path: folder.file(size: 32 << 20, filledWith: 6))
        let cut = try CutThread()
        let faults = Mutex<[Fault]>([])
        let held = try await HeldSnapshot(
            of: harness, account: 1, storage: [.memory(4 << 20)], cut: cut
        ) { notice in
            guard case .corrupted(let fault) = notice else { return }
            faults.withLock { $0.append(fault) }
        }
        for block in 0..<8192 {
            #expect(
                await harness.write([UInt8](repeating: 1, count: 4096), at: UInt64(block) * 4096)
                    == nil)
        }
        let answer = await harness.perform(.read, length: 4096, on: held.image)
        #expect(answer.fault == .inputOutput)
        #expect(faults.withLock { $0 } == [.noSpace])
        await held.snapshot.destroy()
        cut.close()
        #expect(await harness.close() == nil)
    }

    @Test func `refuse storage that exists already or lies on the origin`() async throws {
        let folder = Folder()
        let path = folder.file(size: 1 << 20)
        let harness = try await DeviceHarness(path: path)
        for request in [
            StorageRequest.path(path), .path(folder.file("other", size: 512)),
            .memory((64 << 10) - 1),
        ] {
            await #expect(throws: AttachError.self) {
                _ = try await SnapshotStorage.open(
                    [request], limit: 1 << 30, isForced: false, for: [harness.device],
                    blocking: harness.blocking
                ) { _, _ in }
            }
        }
        #expect(await harness.close() == nil)
    }
    /// Looks at more records than one turn of the loop may.
    @Test func `tell how they lie over more than their loop looks at in one turn`() async throws {
        let folder = Folder()
        let size = UInt64(3) << 30
        let harness = try await DeviceHarness(path: folder.file(size: Int(size)))
        let cut = try CutThread()
        let stride = UInt64(128 << 10)
        let count = UInt64(5000)
        for number in 0..<count {
            #expect(
                await harness.write([UInt8](repeating: 7, count: 4096), at: number * stride) == nil)
        }
        let held = try await HeldSnapshot(
            of: harness, account: 1, storage: [.memory(64 << 20)], cut: cut)
        for number in 0..<count {
            #expect(
                await harness.perform(.writeZeroes, offset: number * stride, length: 4096).fault
                    == nil)
        }
        var position: UInt64 = 0
        var answers = 0
        while position < size {
            // Others are served between its slices.
            async let answer = harness.perform(
                .blockStatus, offset: position, length: size - position, on: held.image)
            let read = await harness.read(512, at: 0)
            #expect(read == [UInt8](repeating: 0, count: 512))
            let extents = await answer.extents
            #expect(!extents.isEmpty)
            for extent in extents {
                let isData = position % stride == 0 && position < count * stride
                #expect(extent.flags == (isData ? 0 : 3))
                let end =
                    isData
                    ? position + 4096
                    : position + stride < count * stride ? position + stride - 4096 : size
                #expect(position + extent.length == end)
                position += extent.length
            }
            answers += 1
        }
        #expect(answers >= 5 && answers < 20, "\(answers)")
        // Nothing changed between a cut and itself, though every chunk has changed since.
        let changes = await harness.perform(
            .blockStatus, length: size, since: held.base, on: held.image)
        #expect(changes.extents == [StatusExtent(length: size, flags: ChangeFlags.unchanged)])
        let since = await harness.perform(.blockStatus, length: size, since: held.base)
        #expect(since.extents.count > 1000 && since.extents.first?.length == 4096)
        await held.snapshot.destroy()
        cut.close()
        #expect(await harness.close() == nil)
    }

    @Test func `that nothing was written to are told whole`() async throws {
        let folder = Folder()
        let harness = try await DeviceHarness(path: folder.file(size: 5 << 30))
        let cut = try CutThread()
        let held = try await HeldSnapshot(
            of: harness, account: 1, storage: [.memory(4 << 20)], cut: cut)
        let whole = StatusExtent(length: 5 << 30, flags: 3)
        for _ in 0..<2 {
            let answer = await harness.perform(
                .blockStatus, length: 5 << 30, on: held.image)
            #expect(answer.extents == [whole])
            // A block that was preserved anywhere makes it look at every chunk.
            _ = await harness.perform(.writeZeroes, offset: 4096, length: 4096)
        }
        await held.snapshot.destroy()
        cut.close()
        #expect(await harness.close() == nil)
    }
}
