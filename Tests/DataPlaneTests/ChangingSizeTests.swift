import BlockModel
import DataPlane
import Devices
import Glibc
import OriginIO
import Origins
import RingIO
import Synchronization
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

/// Sizes that cuts take over.
@Suite struct `Looks at the size of an origin` {
    @Test func `say nothing once a cut has taken over what a later look found`() async throws {
        let folder = Folder()
        let path = folder.file(size: 1 << 20)
        let opened = Mutex<OpenedOrigin?>(nil)
        let harness = try await DeviceHarness(path: path) { origin, loop, blocking in
            opened.withLock { $0 = origin }
            return DescriptorAccess(origin, loop: loop, blocking: blocking)
        }
        let origin = try #require(opened.withLock { $0 })
        let target = harness.device.target
        let memory = try #require(
            await harness.thread.mailbox.run {
                (target.get(on: $0) as? Device)?.running.memory
            } ?? nil)
        func look(_ number: UInt64, findsMebibytes count: Int) throws -> DeviceResize {
            #expect(truncate(path, off_t(count << 20)) == 0)
            return try DeviceResize.find(origin, former: 1 << 20, number: number, memory: memory)
        }
        let looks = try (
            earlier: look(1, findsMebibytes: 2), later: look(2, findsMebibytes: 3),
            last: look(3, findsMebibytes: 4)
        )
        let sizes = await harness.thread.mailbox.run { loop -> [UInt64] in
            guard let device = target.get(on: loop) as? Device else { return [] }
            device.closeGate {}
            defer { device.openGate() }
            return [looks.later, looks.earlier, looks.last].map { look in
                _ = device.switchEpoch(holding: nil, isBase: false, resize: look)
                return device.size >> 20
            }
        }
        #expect(sizes == [3, 3, 4])
        #expect(await harness.close() == nil)
    }

    @Test func `are found by the cut that follows a change, however many cuts there are`()
        async throws
    {
        let folder = Folder()
        let path = folder.file(size: 1 << 20)
        let harness = try await DeviceHarness(path: path)
        let cut = try CutThread()
        let member = CutMember(device: harness.device, snapshot: nil)
        // Many cuts at once, and a file that grows and shrinks meanwhile.
        for round in 0..<20 {
            let outcomes = await withTaskGroup(of: CutOutcome.self) { group in
                for step in 0..<6 {
                    let size = ((round * 7 + step * 5) % 11 + 1) << 20
                    group.addTask {
                        _ = truncate(path, off_t(size))
                        return await cut.makeCut([member], isBase: false)
                    }
                }
                return await group.reduce(into: []) { $0.append($1) }
            }
            #expect(outcomes.allSatisfy { $0.fault == nil })
            var facts = stat()
            #expect(stat(path, &facts) == 0)
            // The last look may have been before the last change; one more cut finds it.
            let last = await cut.makeCut([member], isBase: false)
            #expect(last.sizes == [UInt64(facts.st_size)], "round \(round)")
            #expect(harness.device.facts.size == UInt64(facts.st_size))
        }
        cut.close()
        #expect(await harness.close() == nil)
    }
}
