import Glibc
import TestSupport
import Testing

/// One run of the randomised test with one seed.
private final class ModelRun {
    /// Most snapshots held on a device.
    static let snapshotCountMax = 8

    private let harness: SnapshotHarness
    private let disk: TemporaryDirectory
    private let memory: TemporaryDirectory
    private var devices: [ModelDevice] = []
    private var generator: SeededGenerator
    private var snapshotCount = 0
    private(set) var operationCount = 0
    private(set) var takeCount = 0

    init(seed: UInt64) throws {
        generator = SeededGenerator(seed: seed)
        harness = try SnapshotHarness(loops: 2)
        disk = try TemporaryDirectory()
        memory = try TemporaryDirectory(inMemory: true)
        let shapes: [(sectorSize: Int, byteCount: Int, inMemory: Bool)] = [
            (512, 2048, true), (512, 5 * 4096, false), (4096, 3 * 4096, true),
            (512, mebibyte + 3 * 512, false), (512, 700 << 10, true),
            (4096, mebibyte + 5 * 4096, false),
        ]
        for (index, shape) in shapes.enumerated() {
            let name = "d\(index)"
            let path = (shape.inMemory ? memory : disk).path(name)
            // Some begin as one hole, some are full.
            if Bool.random(using: &generator) {
                try makeSparseFile(path, byteCount: shape.byteCount)
            } else {
                try makeRandomFile(path, byteCount: shape.byteCount, generator: &generator)
            }
            let contents = try readFile(path, 0..<shape.byteCount)
            try harness.attach(name, path, sectorSize: shape.sectorSize)
            let clients = try (0..<2).map { _ in try harness.client(name) }
            let least = Int(clients[0].blockSizes?.minimum ?? 512)
            devices.append(
                ModelDevice(name: name, unit: least, contents: contents, clients: clients))
        }
    }

    /// Runs until `count` requests have been answered, then checks everything that is held.
    func run(_ count: Int) throws {
        while operationCount < count {
            switch Int.random(in: 0..<30, using: &generator) {
            case 0: try take()
            case 1: try destroy(besides: nil)
            default: try batch()
            }
        }
        let held = Set(devices.flatMap { $0.images.map(\.snapshot) })
        for name in held.sorted() { try destroy(besides: name) }
        for device in devices { try check(device.name, device.contents) }
        #expect(try harness.service.stop() == .exited(0))
    }

    private func take() throws {
        let free = devices.indices.filter { devices[$0].images.count < Self.snapshotCountMax }
        guard !free.isEmpty else { return }
        let number = Int.random(in: 1...free.count, using: &generator)
        let chosen = free.shuffled(using: &generator).prefix(number)
        let name = "s\(snapshotCount)"
        snapshotCount += 1
        takeCount += 1
        let storages = [
            ["memory:64M"], [disk.root], [disk.path("diff-\(name)")],
            ["memory:4M", memory.root, disk.root], [],
        ]
        try harness.take(
            name, of: chosen.map { devices[$0].name },
            storage: storages.randomElement(using: &generator)!, limit: 128 * mebibyte,
            onOverflow: ["break", "throttle:60"].randomElement(using: &generator)!)
        for index in chosen {
            let image = "\(devices[index].name)@\(name)"
            devices[index].images.append(
                ModelImage(
                    snapshot: name, contents: devices[index].contents,
                    overlay: devices[index].contents,
                    readers: try (0..<2).map { _ in try harness.client(image) },
                    writers: try (0..<2).map { _ in try harness.client(image + ":rw") }))
        }
    }

    /// Checks a snapshot, destroys it, and checks nothing else changed.
    private func destroy(besides wanted: String?) throws {
        let held = Set(devices.flatMap { $0.images.map(\.snapshot) }).sorted()
        guard let name = wanted ?? held.randomElement(using: &generator) else { return }
        for device in devices {
            for image in device.images where image.snapshot == name {
                try check("\(device.name)@\(name)", image.contents)
                try check("\(device.name)@\(name):rw", image.overlay)
            }
        }
        #expect(try harness.state(of: name) == "held")
        try harness.destroy(name)
        for index in devices.indices { devices[index].images.removeAll { $0.snapshot == name } }
    }

    private func check(_ export: String, _ expected: [UInt8]) throws {
        let found = try harness.contents(of: export, step: 300 << 10)
        guard found != expected else { return }
        let place = zip(found, expected).enumerated().first { $1.0 != $1.1 }?.offset
        Issue.record(
            "seed \(generator.seed), operation \(operationCount): \(export) differs at \(place ?? -1)"
        )
        throw TestFailure("\(export) differs")
    }

    /// Some requests at once, over all connections of a device.
    private func batch() throws {
        let index = devices.indices.randomElement(using: &generator)!
        var batch: [ModelRequest] = []
        for _ in 0..<Int.random(in: 1...12, using: &generator) {
            guard let next = devices[index].randomRequest(beside: batch, &generator) else {
                continue
            }
            batch.append(next)
        }
        for item in batch { try item.client.send(item.request) }
        for (client, items) in Dictionary(grouping: batch, by: { ObjectIdentifier($0.client) })
            .values.map({ ($0[0].client, $0) })
        {
            try receive(items, from: client, device: devices[index])
        }
        for item in batch { devices[index].done(item) }
        for item in batch where item.request.command == .trim {
            let bytes = try devices[index].clients[0].read(item.request.offset, item.range.count)
            let isRight = devices[index].discarded(item.range, nowReads: bytes)
            #expect(
                isRight,
                "seed \(generator.seed): discarded \(item.range) of \(devices[index].name)")
        }
        operationCount += batch.count
    }

    private func receive(
        _ items: [ModelRequest], from client: NBDClient, device: ModelDevice
    ) throws {
        var waiting = Dictionary(uniqueKeysWithValues: items.map { ($0.request.cookie, $0) })
        var replies: [UInt64: NBDReply] = [:]
        while !waiting.isEmpty {
            let chunk = try client.receiveChunk()
            replies[chunk.cookie, default: NBDReply(cookie: chunk.cookie, chunks: [])]
                .chunks.append(chunk)
            guard chunk.isDone else { continue }
            guard let item = waiting.removeValue(forKey: chunk.cookie),
                let reply = replies[chunk.cookie]
            else { throw TestFailure("a reply to nothing") }
            let what =
                "seed \(generator.seed), operation \(operationCount): \(item.request.command) of "
                + "\(item.range) on \(device.name) \(item.target)"
            guard reply.error == nil else {
                throw TestFailure("\(what): error \(reply.error ?? 0)")
            }
            guard let expected = item.expected else { continue }
            let found = try reply.data(offset: item.request.offset, length: item.range.count)
            guard found != expected else { continue }
            let place = zip(found, expected).enumerated().first { $1.0 != $1.1 }?.offset ?? 0
            Issue.record("\(what) differs at \(item.range.lowerBound + place)")
            throw TestFailure("wrong data")
        }
    }
}

@Suite(
    .serialized,
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Devices and images` {
    @Test func `hold what plain arrays hold after any mix of requests, takes and destroys`() throws
    {
        var seeds = SeededGenerator.announced("randomised model")
        let seedCount = sized("seeds of 5,000 operations", soak: 20, otherwise: 1)
        for number in 0..<seedCount {
            // The first is the one announced, so that a failing one can be given as such.
            let seed = number == 0 ? seeds.seed : seeds.next() % UInt64(UInt32.max)
            let run = try ModelRun(seed: seed)
            let began = monotonicSeconds()
            do { try run.run(5000) } catch {
                throw TestFailure("STILLPOINT_SEED=\(seed): \(error)")
            }
            print(
                "STILLPOINT_SEED=\(seed): \(run.operationCount) operations, \(run.takeCount) "
                    + "takes, \(monotonicSeconds() - began) s")
        }
    }
}
