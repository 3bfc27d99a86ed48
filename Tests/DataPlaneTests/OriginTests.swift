import BlockModel
import DataPlane
import Glibc
import RingIO
import Testing

/// Where a test's origin lies, and how it is expected to be reached.
enum Place: String, CaseIterable, Sendable {
    case disk
    case memory

    var folder: Folder { Folder(under: self == .disk ? "/var/tmp" : "/dev/shm") }
}

@Suite struct `An origin` {
    @Test(arguments: Place.allCases, [1, 2] as [UInt64])
    func `holds what a plain array holds after requests of any alignment`(
        place: Place, seed: UInt64
    ) async throws {
        let size = 300 * 1024 + 512
        let folder = place.folder
        let harness = try await DeviceHarness(path: folder.file(size: size))
        var model = [UInt8](repeating: 0, count: size)
        var random = SeededGenerator(seed: seed)
        for step in 0..<600 {
            let offset = Int.random(in: 0..<size, using: &random)
            var length = Int.random(in: 1...min(20_000, size - offset), using: &random)
            if step % 3 == 0 { length = min(length, 700) }
            let range = offset..<offset + length
            switch Int.random(in: 0..<6, using: &random) {
            case 0, 1:
                let bytes = (0..<length).map { _ in UInt8.random(in: 1...255, using: &random) }
                let flags: RequestFlags = step % 7 == 0 ? .forceUnitAccess : []
                #expect(await harness.write(bytes, at: UInt64(offset), flags: flags) == nil)
                model.replaceSubrange(range, with: bytes)
            case 2:
                let flags: RequestFlags = Bool.random(using: &random) ? .keepAllocated : []
                let answer = await harness.perform(
                    .writeZeroes, offset: UInt64(offset), length: UInt64(length), flags: flags)
                #expect(answer.fault == nil)
                model.replaceSubrange(range, with: repeatElement(0, count: length))
            case 3:
                let answer = await harness.perform(
                    .discard, offset: UInt64(offset), length: UInt64(length))
                #expect(answer.fault == nil)
                // A discard is performed or not, byte by byte: take over what is there.
                let now = await harness.read(length, at: UInt64(offset))
                #expect(zip(now, model[range]).allSatisfy { $0 == $1 || $0 == 0 })
                model.replaceSubrange(range, with: now)
            case 4:
                let now = await harness.read(length, at: UInt64(offset))
                #expect(now == Array(model[range]), "seed \(seed), step \(step)")
            default: #expect(await harness.perform(.flush).fault == nil)
            }
        }
        let everything = await harness.read(size, at: 0)
        #expect(everything == model)
        #expect(await harness.close() == nil)
    }

    @Test(arguments: Place.allCases)
    func `merges concurrent writes of parts of one sector without losing any`(
        place: Place
    ) async throws {
        let folder = place.folder
        let harness = try await DeviceHarness(path: folder.file(size: 1 << 20))
        await withTaskGroup(of: Fault?.self) { group in
            // 2048 writes of 16 bytes each, all in flight at once, shuffled over 32 KiB, and
            // aligned writes behind them that must not be disturbed.
            for number in (0..<2048).shuffled() {
                group.addTask {
                    await harness.write(
                        [UInt8](repeating: UInt8(number % 251 + 1), count: 16),
                        at: UInt64(number) * 16)
                }
            }
            for number in 16..<32 {
                group.addTask {
                    await harness.write(
                        [UInt8](repeating: 7, count: 4096), at: UInt64(number) * 4096)
                }
            }
            for await fault in group { #expect(fault == nil) }
        }
        let bytes = await harness.read(128 << 10, at: 0)
        for number in 0..<2048 {
            let expected = UInt8(number % 251 + 1)
            #expect(bytes[number * 16..<number * 16 + 16].allSatisfy { $0 == expected })
        }
        #expect(bytes[65536...].allSatisfy { $0 == 7 })
        #expect(await harness.close() == nil)
    }

    @Test(arguments: Place.allCases)
    func `reports as holes exactly what SEEK_HOLE reports`(place: Place) async throws {
        let folder = place.folder
        let path = folder.file(size: 64 << 20)
        let harness = try await DeviceHarness(path: path)
        var random = SeededGenerator(seed: 5)
        for _ in 0..<200 {
            let block = UInt64.random(in: 0..<(64 << 20) / 4096, using: &random)
            #expect(
                await harness.write([UInt8](repeating: 1, count: 4096), at: block * 4096) == nil)
        }
        let answer = await harness.perform(.blockStatus, offset: 0, length: 64 << 20)
        let descriptor = open(path, O_RDONLY)
        defer { close(descriptor) }
        var position: off_t = 0
        for extent in answer.extents {
            let isHole = extent.flags != 0
            let end = lseek(descriptor, position, isHole ? seekData : seekHole)
            let expected = end < 0 ? 64 << 20 : end
            #expect(UInt64(position) + extent.length == UInt64(expected))
            position += off_t(extent.length)
        }
        #expect(position == 64 << 20)
        let one = await harness.perform(
            .blockStatus, offset: 0, length: 64 << 20, flags: .oneExtent)
        #expect(one.extents == [answer.extents[0]])
        #expect(await harness.close() == nil)
    }

    @Test func `that is read-only refuses writes and serves reads`() async throws {
        let folder = Folder()
        let harness = try await DeviceHarness(
            path: folder.file(size: 8192, filledWith: 9), isReadOnly: true)
        #expect(await harness.write([1], at: 0) == .notPermitted)
        #expect(await harness.perform(.writeZeroes, length: 512).fault == .notPermitted)
        #expect(await harness.perform(.discard, length: 512).fault == .notPermitted)
        #expect(await harness.perform(.flush).fault == nil)
        #expect(await harness.read(3, at: 8189) == [9, 9, 9])
        #expect(await harness.close() == nil)
    }

    @Test(arguments: Place.allCases)
    func `zeroes that must be fast leave the data alone where they would be slow`(
        place: Place
    ) async throws {
        let folder = place.folder
        let harness = try await DeviceHarness(path: folder.file(size: 1 << 20, filledWith: 3))
        let flags: RequestFlags = [.onlyFast, .keepAllocated]
        let answer = await harness.perform(
            .writeZeroes, offset: 0, length: 1 << 20, flags: flags)
        let bytes = await harness.read(1 << 20, at: 0)
        if answer.fault == nil {
            #expect(bytes.allSatisfy { $0 == 0 })
        } else {
            #expect(answer.fault == .notSupported)
            #expect(bytes.allSatisfy { $0 == 3 })
        }
        #expect(await harness.close() == nil)
    }

    @Test func `gives room back when it is discarded`() async throws {
        let folder = Folder()
        let path = folder.file(size: 4 << 20, filledWith: 3)
        let harness = try await DeviceHarness(path: path)
        var before = stat()
        #expect(stat(path, &before) == 0)
        #expect(await harness.perform(.discard, length: 4 << 20).fault == nil)
        var after = stat()
        #expect(stat(path, &after) == 0)
        #expect(before.st_blocks >= 8192 && after.st_blocks < 64)
        #expect(await harness.close() == nil)
    }

    @Test func `finishes what is under way before it closes, and refuses what comes later`()
        async throws
    {
        let folder = Folder()
        let path = folder.file(size: 4 << 20)
        let harness = try await DeviceHarness(path: path)
        let writes = (0..<200).map { number in
            Task {
                await harness.write(
                    [UInt8](repeating: 5, count: 4096), at: UInt64(number) * 4096)
            }
        }
        #expect(await writes[0].value == nil)
        let fault = await harness.device.detach()
        #expect(fault == nil)
        for write in writes {
            let outcome = await write.value
            #expect(outcome == nil || outcome == .shutdown)
        }
        #expect(await harness.write([1], at: 0) == .shutdown)
        harness.thread.stopAndJoin()
        harness.blocking.close()
    }
}

private let seekData: Int32 = 3
private let seekHole: Int32 = 4
