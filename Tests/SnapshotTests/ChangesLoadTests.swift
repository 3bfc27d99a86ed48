import Foundation
import Glibc
import TestSupport
import Testing

@Suite(
    .serialized,
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `A checkpoint under load` {
    @Test func `is before every write that was issued after it`() throws {
        let harness = try SnapshotHarness(loops: 2)
        let disk = try TemporaryDirectory()
        var seeds = SeededGenerator.announced("a checkpoint under load")
        let slotCount = 200
        var loads: [RecordedLoad] = []
        for name in ["a", "b"] {
            let byteCount = slotCount * RecordedLoad.slotSectorCount * 512
            try makeSparseFile(disk.path(name), byteCount: byteCount)
            try harness.attach(name, disk.path(name))
            loads.append(
                try RecordedLoad(
                    harness, export: name, slotCount: slotCount, connections: 2,
                    seed: seeds.next()))
        }
        var returned: [UInt64] = []
        let rounds = sized("checkpoints under load", soak: 200, otherwise: 12)
        for round in 0..<rounds {
            try harness.ask(
                "POST", "/v1/checkpoints", ["name": "c\(round)", "devices": ["a", "b"]])
            returned.append(monotonicNanoseconds())
            // Some writes of each after it, more than were under way.
            for load in loads {
                let written = load.writeCount
                while load.writeCount < written + 100 { sched_yield() }
            }
        }
        for load in loads { try load.stop() }
        for load in loads {
            for (round, time) in returned.enumerated() {
                let answer = try changedSectors(harness, load.export, since: "c\(round)")
                let missing = load.sectorsWritten(after: time).subtracting(answer)
                #expect(missing.isEmpty, "\(load.export) since c\(round): \(missing.sorted())")
                #expect(!load.sectorsWritten(after: time).isEmpty)
            }
        }
    }

    @Test func `of a snapshot covers all by which two images differ`() throws {
        let harness = try SnapshotHarness(loops: 2)
        let disk = try TemporaryDirectory()
        var seeds = SeededGenerator.announced("images under load")
        let slotCount = 100
        try makeSparseFile(
            disk.path("a"), byteCount: slotCount * RecordedLoad.slotSectorCount * 512)
        try harness.attach("a", disk.path("a"))
        let load = try RecordedLoad(
            harness, export: "a", slotCount: slotCount, connections: 3, seed: seeds.next())
        for round in 0..<sized("pairs of images under load", soak: 100, otherwise: 5) {
            let names = ["s\(round)", "t\(round)"]
            for name in names {
                try harness.take(name, of: ["a"], storage: ["memory:256M"])
                let written = load.writeCount
                while load.writeCount < written + 100 { sched_yield() }
            }
            let images = try names.map { try harness.contents(of: "a@\($0)") }
            let answer = try changedSectors(
                harness, "a", since: names[0], until: names[1])
            let differing = (0..<images[0].count / 512).filter { sector in
                images[0][sector * 512..<sector * 512 + 512]
                    != images[1][sector * 512..<sector * 512 + 512]
            }
            #expect(!differing.isEmpty)
            #expect(answer.isSuperset(of: differing))
            for name in names { try harness.destroy(name) }
        }
        try load.stop()
    }

    private func changedSectors(
        _ harness: SnapshotHarness, _ device: String, since: String, until: String? = nil
    ) throws -> Set<Int> {
        let query = "since=\(since)&limit=65536" + (until.map { "&until=\($0)" } ?? "")
        let page = try harness.ask("GET", "/v1/devices/\(device)/changes?\(query)")
        #expect(page["next_offset"] is NSNull)
        var sectors: Set<Int> = []
        for range in page["ranges"] as? [[String: Int]] ?? [] {
            sectors.formUnion(
                range["offset"]! / 512..<(range["offset"]! + range["length"]!) / 512)
        }
        return sectors
    }
}

extension RecordedLoad {
    /// Sectors of all writes issued after a moment.
    func sectorsWritten(after time: UInt64) -> Set<Int> {
        var sectors: Set<Int> = []
        forEachWrite(issuedAfter: time) { sectors.formUnion($0) }
        return sectors
    }
}
