import Glibc
import TestSupport
import Testing

@Suite(
    .serialized,
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `An image` {
    @Test func `holds every write acknowledged before its cut and none issued after it`() throws {
        let snapshotCount = sized("snapshots", soak: 50, otherwise: 5)
        var generator = SeededGenerator.announced("recorded load")
        let harness = try SnapshotHarness(loops: 2)
        let disk = try TemporaryDirectory()
        let memory = try TemporaryDirectory(inMemory: true)
        let slotCount = 150
        var loads: [RecordedLoad] = []
        for (name, folder) in [("a", memory), ("b", disk)] {
            let byteCount = slotCount * RecordedLoad.slotSectorCount * 512
            try makeSparseFile(folder.path(name), byteCount: byteCount)
            try harness.attach(name, folder.path(name))
            loads.append(
                try RecordedLoad(
                    harness, export: name, slotCount: slotCount, connections: 3,
                    seed: generator.next()))
        }
        var held: [(name: String, first: [[UInt8]])] = []
        var undecidedCount = 0
        for number in 0..<snapshotCount {
            let name = "s\(number)"
            let before = loads.map(\.writeCount)
            let sent = monotonicNanoseconds()
            try harness.take(
                name, of: ["a", "b"].shuffled(using: &generator),
                storage: [number % 2 == 0 ? "memory:64M" : disk.root], limit: 256 * mebibyte)
            let returned = monotonicNanoseconds()
            let images = try loads.map { try harness.contents(of: "\($0.export)@\(name)") }
            for (load, image) in zip(loads, images) {
                let result = load.violations(in: image, sent: sent, returned: returned)
                #expect(result.found.isEmpty, "\(name): \(result.found.prefix(5))")
                undecidedCount += result.undecidedCount
            }
            held.append((name, images))
            let isBusy = zip(loads, before).allSatisfy { $0.writeCount > $1 }
            #expect(isBusy, "nobody writes")
            // The oldest is read again when two more cuts were made since, in other pieces.
            if held.count > 2 || number == snapshotCount - 1 {
                for (name, first) in number == snapshotCount - 1 ? held : [held[0]] {
                    for (load, image) in zip(loads, first) {
                        let again = try harness.contents(
                            of: "\(load.export)@\(name)", step: 300 << 10)
                        #expect(again == image, "\(name): read twice, not the same")
                    }
                    #expect(try harness.state(of: name) == "held")
                    try harness.destroy(name)
                }
                held.removeFirst(number == snapshotCount - 1 ? held.count : 1)
            }
        }
        for load in loads {
            try load.stop()
            let end = monotonicNanoseconds()
            let bytes = try harness.contents(of: load.export)
            #expect(load.violations(in: bytes, sent: end, returned: end).found.isEmpty)
        }
        print(
            "\(snapshotCount) snapshots under \(loads.map(\.writeCount)) writes; "
                + "\(undecidedCount) slots had a write in flight at a cut")
    }
}
