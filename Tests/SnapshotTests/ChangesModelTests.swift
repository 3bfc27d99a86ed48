import Foundation
import Glibc
import TestSupport
import Testing

/// One run of the randomised test of changes with one seed.
private final class ChangesRun {
    private static let baseCountMax = 12
    private static let snapshotCountMax = 5

    private let harness: SnapshotHarness
    private let disk: TemporaryDirectory
    private var devices: [ChangesModel] = []
    private var generator: SeededGenerator
    private var nameCount = 0
    private(set) var operationCount = 0
    private(set) var answerCount = 0
    private(set) var restartCount = 0
    private(set) var cutCount = 0
    private(set) var shrinkCount = 0

    init(seed: UInt64) throws {
        generator = SeededGenerator(seed: seed)
        harness = try SnapshotHarness(loops: 2)
        disk = try TemporaryDirectory()
        for (index, byteCount) in [mebibyte + 3 * 512, 700 << 10, 5 * 4096].enumerated() {
            let name = "d\(index)"
            let path = disk.path(name)
            try makeSparseFile(path, byteCount: byteCount)
            try harness.attach(name, path)
            devices.append(
                ChangesModel(
                    name: name, path: path, size: byteCount, client: try harness.client(name)))
        }
    }

    func run(_ count: Int) throws {
        do { try perform(count) } catch {
            // Says why an image is lost, if one is.
            let snapshots = try? harness.http("GET", "/v1/snapshots").document
            throw TestFailure("\(place): \(error)\nsnapshots: \(snapshots ?? "no answer")")
        }
    }

    private func perform(_ count: Int) throws {
        while operationCount < count {
            operationCount += 1
            switch Int.random(in: 0..<1000, using: &generator) {
            case 0..<860: try change()
            case 860..<890: try mark()
            case 890..<915: try checkpoint()
            case 915..<935: try take()
            case 935..<950: try destroy()
            case 950..<965: try delete()
            case 965..<970: try grow()
            case 970..<972: try restart()
            case 972..<974: try shrink()
            default: try checkSome()
            }
        }
        try checkAll()
        #expect(try harness.service.stop() == .exited(0))
    }

    private var place: String { "seed \(generator.seed), operation \(operationCount)" }

    // MARK: Changes

    private func randomRange(_ size: Int, unit: Int) -> Range<Int> {
        let longest = [1, 16, 140].randomElement(using: &generator)!
        let first = Int.random(in: 0..<size / unit, using: &generator) * unit
        let count = Int.random(in: 1...longest, using: &generator) * unit
        return first..<min(first + count, size)
    }

    private func change() throws {
        let index = devices.indices.randomElement(using: &generator)!
        let range = randomRange(devices[index].size, unit: 512)
        let command: NBD.Command =
            switch Int.random(in: 0..<10, using: &generator) {
            case 0: .trim
            case 1: .writeZeroes
            default: .write
            }
        try devices[index].client.succeed(
            NBDRequest(
                command, offset: UInt64(range.lowerBound), length: UInt64(range.count),
                payload: command == .write ? generator.bytes(range.count) : []))
        devices[index].changed(range)
    }

    private func mark() throws {
        let index = devices.indices.randomElement(using: &generator)!
        let ranges = (0..<Int.random(in: 1...3, using: &generator)).map { _ in
            randomRange(devices[index].size, unit: 1)
        }
        try harness.ask(
            "POST", "/v1/devices/\(devices[index].name)/changes",
            ["ranges": ranges.map { ["offset": $0.lowerBound, "length": $0.count] }])
        for range in ranges { devices[index].marked(range) }
    }

    // MARK: Cuts

    private func someDevices() -> [Int] {
        let number = Int.random(in: 1...devices.count, using: &generator)
        return Array(devices.indices.shuffled(using: &generator).prefix(number))
    }

    private func freshName() -> String {
        nameCount += 1
        return "n\(nameCount)"
    }

    private func checkpoint() throws {
        let chosen = someDevices().filter { devices[$0].bases.count < Self.baseCountMax }
        guard !chosen.isEmpty else { return }
        let name = freshName()
        try harness.ask(
            "POST", "/v1/checkpoints",
            ["name": name, "devices": chosen.map { devices[$0].name }])
        for index in chosen { devices[index].cut(base: name, snapshot: nil) }
        cutCount += 1
    }

    private func take() throws {
        let chosen = someDevices().filter {
            devices[$0].snapshots.count < Self.snapshotCountMax
                && devices[$0].bases.count < Self.baseCountMax
        }
        guard !chosen.isEmpty else { return }
        var body: [String: Any] = [
            "devices": chosen.map { devices[$0].name }, "storage": ["memory:64M"],
            // On a busy machine a disk may take longer for a read than the default allows: no
            // snapshot is to be lost to that here.
            "on_overflow": "throttle:60",
        ]
        let base = Bool.random(using: &generator) ? freshName() : nil
        if let base { body["name"] = base }
        let made = try harness.ask("POST", "/v1/snapshots", body)
        let id = made["id"] as? String ?? ""
        for index in chosen { devices[index].cut(base: base, snapshot: id) }
        cutCount += 1
    }

    private func destroy() throws {
        let held = Set(devices.flatMap { $0.snapshots.map(\.name) }).sorted()
        guard let id = held.randomElement(using: &generator) else { return }
        try harness.ask("DELETE", "/v1/snapshots/\(id)")
        for index in devices.indices { devices[index].snapshots.removeAll { $0.name == id } }
    }

    private func delete() throws {
        let names = Set(devices.flatMap { $0.bases.map(\.name) }).sorted()
        guard let name = names.randomElement(using: &generator) else { return }
        try harness.ask("DELETE", "/v1/checkpoints/\(name)")
        for index in devices.indices { devices[index].deleted(name) }
        let device = devices.randomElement(using: &generator)!.name
        #expect(
            try harness.http("GET", "/v1/devices/\(device)/changes?since=\(name)").status == 404)
    }

    // MARK: Restarts and sizes

    private func restart() throws {
        try checkAll()
        let before = try generations()
        for index in devices.indices { devices[index].snapshots = [] }
        if Bool.random(using: &generator) {
            #expect(try harness.service.stop() == .exited(0))
        } else {
            try harness.service.process.killAndWait()
        }
        try harness.service.restart()
        restartCount += 1
        let after = try generations()
        for index in devices.indices {
            let name = devices[index].name
            devices[index].client = try harness.client(name)
            guard before[name] == after[name] else {
                throw TestFailure("\(place): the history of \(name) did not outlive the service")
            }
        }
    }

    private func generations() throws -> [String: String] {
        guard let list = try harness.http("GET", "/v1/devices").document as? [[String: Any]] else {
            throw TestFailure("device list is no list")
        }
        return Dictionary(
            uniqueKeysWithValues: list.map {
                ($0["name"] as? String ?? "", $0["generation"] as? String ?? "")
            })
    }

    private func grow() throws {
        let index = devices.indices.randomElement(using: &generator)!
        let size =
            devices[index].size + 512 * Int.random(in: 1...300, using: &generator)
        guard size < 3 * mebibyte else { return }
        try resizeFile(devices[index].path, to: size)
        let (status, document) = try harness.http(
            "POST", "/v1/devices/\(devices[index].name)/resize")
        guard status == 200 else {
            throw TestFailure("\(place): resize ended with \(status): \(document)")
        }
        devices[index].grew(to: size)
        devices[index].client = try harness.client(devices[index].name)
    }

    /// A device that lost its end begins anew; while a snapshot is held it must not lose it.
    private func shrink() throws {
        let index = devices.indices.randomElement(using: &generator)!
        let old = devices[index]
        let size = old.size - 512 * Int.random(in: 1...300, using: &generator)
        guard size >= 4096 else { return }
        try resizeFile(old.path, to: size)
        let status = try harness.http("POST", "/v1/devices/\(old.name)/resize").status
        guard old.snapshots.isEmpty else {
            try resizeFile(old.path, to: old.size)
            guard status == 409 else {
                throw TestFailure("\(place): shrinking below a snapshot ended with \(status)")
            }
            return
        }
        guard status == 200 else { throw TestFailure("\(place): shrinking ended with \(status)") }
        shrinkCount += 1
        devices[index].shrank(to: size)
        devices[index].client = try harness.client(old.name)
        for base in old.bases {
            #expect(
                try harness.http("GET", "/v1/devices/\(old.name)/changes?since=\(base.name)")
                    .status == 410, "\(place): \(old.name) since \(base.name)")
        }
    }

    private func resizeFile(_ path: String, to size: Int) throws {
        guard truncate(path, off_t(size)) == 0 else { throw TestFailure("truncate: \(errno)") }
    }

    // MARK: Answers

    private func checkSome() throws {
        let device = devices.randomElement(using: &generator)!
        guard let base = device.bases.randomElement(using: &generator) else { return }
        var until: HeldCut?
        if Bool.random(using: &generator) {
            until = device.snapshots.filter { $0.period >= base.period }
                .randomElement(using: &generator)
        }
        let limit = [1, 2, 5, 4096].randomElement(using: &generator)!
        try check(device, base, until, limit: limit)
    }

    private func checkAll() throws {
        for device in devices {
            for base in device.bases {
                try check(device, base, nil)
                for snapshot in device.snapshots {
                    if snapshot.period >= base.period {
                        try check(device, base, snapshot)
                    } else {
                        #expect(
                            try harness.http(
                                "GET",
                                "/v1/devices/\(device.name)/changes?since=\(base.name)"
                                    + "&until=\(snapshot.name)"
                            ).status == 400)
                    }
                }
            }
        }
    }

    private func check(
        _ device: ChangesModel, _ base: NamedCut, _ until: HeldCut?, limit: Int = 4096
    ) throws {
        let truth = device.truth(since: base, until: until)
        let answer = try changedBlocks(
            device.name, since: base.name, until: until?.name, size: until?.size ?? device.size,
            limit: limit)
        answerCount += 1
        let what = "\(place): \(device.name) since \(base.name) until \(until?.name ?? "now")"
        guard answer.isSuperset(of: truth) else {
            throw TestFailure("\(what) lacks \(truth.subtracting(answer).sorted())")
        }
        if device.isExact(since: base, until: until) {
            guard answer == truth else {
                throw TestFailure("\(what) is not exact: \(answer.subtracting(truth).sorted())")
            }
        } else {
            let touched = Set(truth.map { $0 / 16 })
            let other = answer.filter { !touched.contains($0 / 16) }
            guard other.isEmpty else {
                throw TestFailure("\(what) names untouched chunks: \(other.sorted())")
            }
        }
    }

    /// The blocks of an answer, read page by page.
    private func changedBlocks(
        _ device: String, since: String, until: String?, size: Int, limit: Int
    ) throws -> Set<Int> {
        var blocks: Set<Int> = []
        var query = "since=\(since)&limit=\(limit)" + (until.map { "&until=\($0)" } ?? "")
        let first = query
        var lastEnd = -1
        while true {
            let page = try harness.ask("GET", "/v1/devices/\(device)/changes?\(query)")
            guard let ranges = page["ranges"] as? [[String: Int]], ranges.count <= limit,
                let generation = page["generation"] as? String, page["size"] as? Int == size,
                let sinceEpoch = (page["since"] as? [String: Any])?["epoch"] as? Int,
                let untilEpoch = (page["until"] as? [String: Any])?["epoch"] as? Int
            else { throw TestFailure("\(place): a strange page \(page)") }
            for range in ranges {
                guard let offset = range["offset"], let length = range["length"], length > 0,
                    offset > lastEnd, offset % 4096 == 0, offset + length <= size
                else { throw TestFailure("\(place): a strange range \(range)") }
                lastEnd = offset + length
                blocks.formUnion(offset / 4096..<(lastEnd + 4095) / 4096)
            }
            guard let next = page["next_offset"] as? Int else { return blocks }
            query =
                first + "&offset=\(next)&generation=\(generation)&since_epoch=\(sinceEpoch)"
                + "&until_epoch=\(untilEpoch)"
        }
    }
}

@Suite(
    .serialized,
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Answers about changes` {
    @Test func `contain every changed block between any two cuts, and little else`() async throws {
        let seeds = SeededGenerator.announced("randomised changes")
        let seedCount = sized("seeds of randomised changes", soak: 20, otherwise: 1)
        let operationCount = sized(
            "operations of each seed of randomised changes", soak: 100_000, otherwise: 5000)
        try await runSeeds(seedCount, from: seeds) { seed in
            let run = try ChangesRun(seed: seed)
            let began = monotonicSeconds()
            try run.run(operationCount)
            print(
                "STILLPOINT_SEED=\(seed): \(run.operationCount) operations, \(run.cutCount) cuts, "
                    + "\(run.restartCount) restarts, \(run.shrinkCount) times shrunk, "
                    + "\(run.answerCount) answers, \(monotonicSeconds() - began) s")
        }
    }

    @Test func `stay right over more cuts than an entry can count back`() throws {
        var generator = SeededGenerator.announced("many cuts")
        let cutCount = sized("cuts in one run", soak: 70_000, otherwise: 3500)
        let harness = try SnapshotHarness(loops: 1)
        let directory = try TemporaryDirectory(inMemory: true)
        let path = directory.path("disk")
        try makeSparseFile(path, byteCount: 4 * mebibyte)
        try harness.attach("d", path)
        let client = try harness.client("d")
        func write(_ block: Int) throws {
            try client.write(UInt64(block * 4096), generator.bytes(4096))
        }
        try harness.ask("POST", "/v1/checkpoints", ["name": "first", "devices": ["d"]])
        // Chunk 0 is touched now and at the end only: all cuts lie between.
        try write(3)
        var sinceFirst: Set<Int> = [3, 5]
        var sinceMiddle: Set<Int> = [5]
        for cut in 0..<cutCount {
            if cut == cutCount / 2 {
                try harness.ask("POST", "/v1/checkpoints", ["name": "middle", "devices": ["d"]])
            }
            if cut % 500 == 250 {
                let block = Int.random(in: 16..<1024, using: &generator)
                try write(block)
                sinceFirst.insert(block)
                if cut >= cutCount / 2 { sinceMiddle.insert(block) }
            }
            let made = try harness.ask(
                "POST", "/v1/snapshots", ["devices": ["d"], "storage": ["memory:4M"]])
            try harness.ask("DELETE", "/v1/snapshots/\(made["id"] as? String ?? "")")
        }
        try write(5)
        for (base, truth) in [("first", sinceFirst), ("middle", sinceMiddle)] {
            let page = try harness.ask("GET", "/v1/devices/d/changes?since=\(base)")
            let ranges = page["ranges"] as? [[String: Int]] ?? []
            let answer = Set(
                ranges.flatMap { range in
                    let offset = range["offset"] ?? 0
                    return offset / 4096..<(offset + (range["length"] ?? 0)) / 4096
                })
            #expect(page["next_offset"] as? Int == nil)
            #expect(answer.isSuperset(of: truth), "since \(base): \(truth.subtracting(answer))")
            let touched = Set(truth.map { $0 / 16 })
            #expect(answer.allSatisfy { touched.contains($0 / 16) }, "since \(base)")
        }
        #expect(try harness.service.stop() == .exited(0))
    }
}
