import Glibc
import TestSupport
import Testing

/// One run of the randomised test with one seed.
final class ModelRun {
    /// Most snapshots held on a device.
    static let snapshotCountMax = 8

    /// What happened, for the closing line.
    struct Counts {
        var operations = 0
        var takes = 0
        /// Takes and destroys with requests in flight.
        var races = 0
        var faults = 0
        var appends = 0
        var lostImages = 0
        var survivors = 0
    }

    let harness: SnapshotHarness
    let disk: TemporaryDirectory
    let memory: TemporaryDirectory
    /// Storage that can be made to fail, and its block device; nil where that cannot be.
    let faultyStorage: (disk: PowerCutFilesystem, loop: LoopDevice)?
    /// The disk under the last device, where it can be made to fail.
    let faultyOrigin: PowerCutFilesystem?
    var devices: [ModelDevice] = []
    var snapshots: [ModelSnapshot] = []
    var generator: SeededGenerator
    var isFailing = false
    var counts = Counts()

    init(seed: UInt64) throws {
        generator = SeededGenerator(seed: seed)
        harness = try SnapshotHarness(loops: 2)
        disk = try TemporaryDirectory()
        memory = try TemporaryDirectory(inMemory: true)
        if canUseFUSE && canUseLoopDevices {
            let store = try PowerCutFilesystem(byteCount: 160 * mebibyte)
            faultyStorage = (
                store, try LoopDevice(over: store.diskPath, sectorSize: 512, isDirect: true)
            )
            faultyOrigin = try PowerCutFilesystem(byteCount: 300 << 10)
        } else {
            faultyStorage = nil
            faultyOrigin = nil
        }
        let shapes: [(sectorSize: Int, byteCount: Int, inMemory: Bool)] = [
            (512, 2048, true), (512, 5 * 4096, false), (4096, 3 * 4096, true),
            (512, mebibyte + 3 * 512, false), (512, 700 << 10, true),
            (4096, mebibyte + 5 * 4096, false),
        ]
        for (index, shape) in shapes.enumerated() {
            let path = (shape.inMemory ? memory : disk).path("d\(index)")
            // Some begin as one hole, some are full.
            if Bool.random(using: &generator) {
                try makeSparseFile(path, byteCount: shape.byteCount)
            } else {
                try makeRandomFile(path, byteCount: shape.byteCount, generator: &generator)
            }
            try attach(path, byteCount: shape.byteCount, sectorSize: shape.sectorSize)
        }
        if let faultyOrigin {
            try attach(faultyOrigin.diskPath, byteCount: 300 << 10, sectorSize: nil)
        }
    }

    private func attach(_ path: String, byteCount: Int, sectorSize: Int?) throws {
        let name = "d\(devices.count)"
        try harness.attach(name, path, sectorSize: sectorSize)
        let clients = try (0..<3).map { _ in try harness.client(name) }
        devices.append(
            ModelDevice(
                name: name, unit: Int(clients[0].blockSizes?.minimum ?? 512),
                contents: try harness.contents(of: name), clients: clients))
        #expect(devices[devices.count - 1].contents.count == byteCount)
    }

    /// Runs until `count` requests have been answered, then checks everything that is held.
    func run(_ count: Int) throws {
        while counts.operations < count {
            switch Int.random(in: 0..<50, using: &generator) {
            case 0: try take()
            case 1: try destroy(snapshots.randomElement(using: &generator))
            case 2: try takeUnderLoad()
            case 3: try destroyUnderLoad()
            case 4: try failOrigin()
            case 5: try toggleFailure()
            case 6: try failReads()
            default: try batch()
            }
        }
        if isFailing { try toggleFailure() }
        while let snapshot = snapshots.first { try destroy(snapshot) }
        for device in devices { try check(device.name, device.contents) }
        #expect(try harness.service.stop() == .exited(0))
    }

    // MARK: Takes and destroys

    /// Devices with room for one more snapshot, some of them, in random order.
    func randomDevices() -> [Int] {
        let free = devices.indices.filter { devices[$0].images.count < Self.snapshotCountMax }
        guard !free.isEmpty else { return [] }
        let number = Int.random(in: 1...free.count, using: &generator)
        return Array(free.shuffled(using: &generator).prefix(number))
    }

    /// A snapshot to be and the storage it names.
    func randomSnapshot(withFaulty: Bool) -> (snapshot: ModelSnapshot, storage: [String]) {
        let name = "s\(counts.takes)"
        counts.takes += 1
        let policy = Bool.random(using: &generator)
        var storages = [
            ["memory:160M"], [disk.root], [disk.path("diff-\(name)")],
            ["memory:4M", memory.root, disk.root], [],
        ]
        var sources = [false]
        if withFaulty, let loop = faultyStorage?.loop {
            storages = [
                [loop.path], [loop.path], [loop.path, "memory:160M"], ["memory:160M", loop.path],
            ]
        }
        let storage = storages.randomElement(using: &generator)!
        if withFaulty { sources = storage.map { $0.hasPrefix("/dev/loop") } }
        return (ModelSnapshot(name: name, isThrottled: policy, sources: sources), storage)
    }

    private func take() throws {
        let chosen = randomDevices()
        guard !chosen.isEmpty else { return }
        let isFaultyFree =
            faultyStorage != nil && !isFailing && !snapshots.contains(where: \.usesFaulty)
            && !devices.contains(where: \.usesFaulty) && !devices.contains(where: \.sawFailure)
        let (snapshot, storage) = randomSnapshot(
            withFaulty: isFaultyFree && Int.random(in: 0..<3, using: &generator) > 0)
        if snapshot.usesFaulty || snapshots.contains(where: \.usesFaulty) { try awaitStored() }
        try takeWhenFree(snapshot, of: chosen.map { devices[$0].name }, storage: storage)
        snapshots.append(snapshot)
        for index in chosen {
            try addImage(snapshot, to: index, contents: devices[index].contents)
        }
    }

    /// Takes a snapshot; a cut that was called off, because the machine is busy, changed nothing
    /// and is tried again.
    static func takeUntilCut(_ take: () throws -> Void) throws {
        for attempt in 1... {
            do { return try take() } catch let failure as TestFailure
                where "\(failure)".contains("nothing was changed") && attempt < 20
            {}
        }
    }

    /// The faulty source is closed behind the destroy that freed its last block: until then it is
    /// in use.
    private func takeWhenFree(
        _ snapshot: ModelSnapshot, of names: [String], storage: [String]
    ) throws {
        let deadline = monotonicSeconds() + 60
        while true {
            do {
                try Self.takeUntilCut {
                    try harness.take(
                        snapshot.name, of: names, storage: storage, limit: 160 * mebibyte,
                        onOverflow: snapshot.isThrottled ? "throttle:60" : "break",
                        force: snapshot.usesFaulty)
                }
                return
            } catch let failure as TestFailure
                where snapshot.usesFaulty && "\(failure)".contains("is in use")
            {
                guard monotonicSeconds() < deadline else {
                    let held = try harness.http("GET", "/v1/snapshots").document
                    throw TestFailure("\(where_): \(failure) for a minute; held: \(held)")
                }
            }
        }
    }

    /// Connects to the images of a device in a snapshot that was just taken.
    func addImage(_ snapshot: ModelSnapshot, to index: Int, contents: [UInt8]) throws {
        let image = "\(devices[index].name)@\(snapshot.name)"
        devices[index].images.append(
            ModelImage(
                snapshot: snapshot, contents: contents, overlay: contents,
                readers: try (0..<2).map { _ in try harness.client(image) },
                writers: try (0..<2).map { _ in try harness.client(image + ":rw") },
                places: Array(repeating: .none, count: devices[index].blockCount)))
    }

    /// Checks a snapshot, destroys it, and forgets it.
    func destroy(_ wanted: ModelSnapshot?) throws {
        guard let snapshot = wanted else { return }
        try checkImages(of: snapshot)
        if snapshots.contains(where: \.usesFaulty) { try awaitStored() }
        try harness.destroy(snapshot.name)
        forget(snapshot)
    }

    func forget(_ snapshot: ModelSnapshot) {
        for index in devices.indices { devices[index].destroyed(snapshot) }
        snapshots.removeAll { $0 === snapshot }
        guard !snapshots.contains(where: \.usesFaulty) else { return }
        for index in devices.indices {
            devices[index].sawFailure = false
            devices[index].isFaultyUnsafe = false
        }
    }

    /// Every image is what it was at the cut, or fails as the oracle says.
    func checkImages(of snapshot: ModelSnapshot) throws {
        var lost: [String] = []
        for device in devices {
            for image in device.images where image.snapshot === snapshot {
                if image.isLost {
                    lost.append(device.name)
                    try expectErrors("\(device.name)@\(snapshot.name)")
                } else {
                    counts.survivors += 1
                    try check("\(device.name)@\(snapshot.name)", image.contents)
                    try check("\(device.name)@\(snapshot.name):rw", image.overlay)
                }
            }
        }
        #expect(try harness.state(of: snapshot.name) == (lost.isEmpty ? "held" : "corrupted"))
        guard !lost.isEmpty else { return }
        let losses = try harness.events(of: snapshot.name).filter {
            $0["type"] as? String == "corrupted"
        }
        #expect(losses.compactMap { $0["device"] as? String }.sorted() == lost.sorted())
        #expect(losses.allSatisfy { $0["errno"] as? Int == 5 }, "\(where_): \(losses)")
    }

    /// Where in the run this is, for messages.
    var where_: String { "seed \(generator.seed), operation \(counts.operations)" }

    private func expectErrors(_ export: String) throws {
        let client = try harness.client(export)
        let error = try client.perform(NBDRequest(.read, length: 512)).error
        #expect(error == NBD.ErrorNumber.inputOutput, "\(where_): \(export) is lost")
    }

    func check(_ export: String, _ expected: [UInt8]) throws {
        let found = try harness.contents(of: export, step: 300 << 10)
        guard found.count != expected.count || expected.firstDifference(from: found) != nil else {
            return
        }
        let place = found.count == expected.count ? expected.firstDifference(from: found) : nil
        Issue.record("\(where_): \(export) differs at \(place ?? -1)")
        throw TestFailure("\(export) differs")
    }
}
