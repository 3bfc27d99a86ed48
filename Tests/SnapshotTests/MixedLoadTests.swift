import Foundation
import Glibc
import TestSupport
import Testing

/// Minutes of mixed load: 30 in `make soak` or what STILLPOINT_SOAK_MINUTES says, else seconds.
private let loadSeconds: Double = {
    let text = ProcessInfo.processInfo.environment["STILLPOINT_SOAK_MINUTES"]
    if let minutes = text.flatMap(Double.init) { return minutes * 60 }
    return isSoak ? 30 * 60 : 15
}()

/// Four devices under load: rounds of writes, snapshots, checks of images, clients that are killed,
/// storage that fails.
private final class MixedLoad {
    private static let byteCount = 4 * mebibyte
    private static let heldMax = 4

    private struct Held {
        let name: String
        let images: [[UInt8]]
        /// On storage that fails: what is read is right or an error.
        let mayBreak: Bool
        let filesystem: PowerCutFilesystem?
        let loop: LoopDevice?
    }

    private let harness: SnapshotHarness
    private let disk: TemporaryDirectory
    private let memory: TemporaryDirectory
    private var contents: [[UInt8]]
    private var held: [Held] = []
    private var generator: SeededGenerator
    private var checkpoint: (name: String, contents: [[UInt8]])?
    private(set) var roundCount = 0
    private(set) var takeCount = 0
    private(set) var brokenCount = 0
    private(set) var queryCount = 0

    init(seed: UInt64) throws {
        generator = SeededGenerator(seed: seed)
        harness = try SnapshotHarness(loops: 2)
        disk = try TemporaryDirectory()
        memory = try TemporaryDirectory(inMemory: true)
        contents = Array(repeating: [UInt8](repeating: 0, count: Self.byteCount), count: 4)
        for index in 0..<4 {
            let path = (index.isMultiple(of: 2) ? disk : memory).path("d\(index)")
            try makeSparseFile(path, byteCount: Self.byteCount)
            try harness.attach("d\(index)", path)
        }
    }

    /// What the service holds at a moment when nothing is under way.
    struct Footprint {
        var kibibytes: Int
        var descriptors: Int
    }

    func footprint() throws -> Footprint {
        Footprint(
            kibibytes: try harness.memoryKibibytes(),
            descriptors: try FileManager.default.contentsOfDirectory(
                atPath: "/proc/\(harness.service.process.processID)/fd"
            ).count)
    }

    func round() throws {
        roundCount += 1
        try write()
        if roundCount.isMultiple(of: 3) { try vanish() }
        if roundCount.isMultiple(of: 5) { try killClient() }
        try take(failing: roundCount.isMultiple(of: 7) && canUseFUSE && canUseLoopDevices)
        try write()
        try checkpointAndQuery()
        try checkOne()
        while held.count > Self.heldMax { try destroyOldest() }
    }

    /// Destroys what is held and compares the devices with the model.
    func settle() throws {
        while !held.isEmpty { try destroyOldest() }
        for index in 0..<4 {
            #expect(try harness.contents(of: "d\(index)") == contents[index], "device d\(index)")
        }
    }

    func stop() throws {
        #expect(try harness.service.stop() == .exited(0))
        #expect(try readFile(disk.path("d0"), 0..<Self.byteCount) == contents[0])
    }

    // MARK: Load

    private func write() throws {
        for index in 0..<4 {
            let client = try harness.client("d\(index)")
            for _ in 0..<60 {
                let count = [512, 4096, 4096, 20_480, 65_536].randomElement(using: &generator)!
                let offset =
                    Int.random(in: 0...(Self.byteCount - count) / 512, using: &generator) * 512
                let range = offset..<offset + count
                if Int.random(in: 0..<8, using: &generator) == 0 {
                    try client.succeed(
                        NBDRequest(.writeZeroes, offset: UInt64(offset), length: UInt64(count)))
                    contents[index].replaceSubrange(range, with: repeatElement(0, count: count))
                } else {
                    let bytes = generator.bytes(count)
                    try client.write(UInt64(offset), bytes)
                    contents[index].replaceSubrange(range, with: bytes)
                }
            }
            try client.succeed(NBDRequest(.flush))
        }
    }

    /// A client that goes with requests in flight: reads, so that the model stays right.
    private func vanish() throws {
        let client = try harness.client("d\(roundCount % 4)")
        for _ in 0..<100 { try client.send(NBDRequest(.read, length: 65_536)) }
    }

    /// A client of others that is killed while it copies.
    private func killClient() throws {
        guard Command.exists("nbdcopy") else { return }
        let copy = try ChildProcess(
            "nbdcopy", [harness.service.uri("d\(roundCount % 4)"), "null:"])
        try copy.killAndWait()
    }

    private func take(failing: Bool) throws {
        let name = "s\(roundCount)"
        var filesystem: PowerCutFilesystem?
        var loop: LoopDevice?
        var storage = [["memory:64M"], [disk.root], []].randomElement(using: &generator)!
        if failing {
            let made = try PowerCutFilesystem(byteCount: 32 * mebibyte)
            loop = try LoopDevice(over: made.diskPath, sectorSize: 512)
            filesystem = made
            storage = [loop!.path]
        }
        try harness.take(
            name, of: (0..<4).map { "d\($0)" }, storage: storage, limit: 128 * mebibyte)
        takeCount += 1
        held.append(
            Held(
                name: name, images: contents, mayBreak: failing, filesystem: filesystem,
                loop: loop))
        if let filesystem {
            try filesystem.fail(
                "write", at: Int.random(in: 1...20, using: &generator), with: EIO, lasting: true)
        }
    }

    // MARK: Checks

    private func checkOne() throws {
        guard let one = held.randomElement(using: &generator) else { return }
        try check(one, of: Int.random(in: 0..<4, using: &generator))
    }

    /// An image holds what the device held at the cut, or, where storage failed, an error: of this
    /// snapshot, or of one cut before, for its old data may be in what is lost.
    private func check(_ one: Held, of index: Int) throws {
        let isExcused = try harness.state(of: one.name) == "corrupted"
        if isExcused {
            let failed = held.contains { $0.mayBreak }
            #expect(failed, "\(one.name) is corrupted and no storage failed")
        }
        do {
            let bytes = try harness.contents(of: "d\(index)@\(one.name)")
            #expect(bytes == one.images[index], "d\(index)@\(one.name)")
        } catch let error as TestFailure {
            let state = try harness.state(of: one.name)
            #expect(state == "corrupted", "d\(index)@\(one.name): \(error)")
        }
    }

    private func destroyOldest() throws {
        let one = held[0]
        for index in 0..<4 { try check(one, of: index) }
        if try harness.state(of: one.name) == "corrupted" { brokenCount += 1 }
        try one.filesystem?.clearFaults()
        try harness.destroy(one.name)
        held.removeFirst()
    }

    /// What changed since the last checkpoint is reported, whatever else is.
    private func checkpointAndQuery() throws {
        guard roundCount.isMultiple(of: 4) else { return }
        if let checkpoint {
            for index in 0..<4 { try checkChanges(index, since: checkpoint) }
            try harness.ask("DELETE", "/v1/checkpoints/\(checkpoint.name)")
        }
        let name = "c\(roundCount)"
        let (status, document) = try harness.http(
            "POST", "/v1/checkpoints", ["name": name, "devices": (0..<4).map { "d\($0)" }])
        // A service that has no checkpoints has no such address either.
        if status == 404 { return checkpoint = nil }
        guard (200..<300).contains(status) else {
            throw TestFailure("checkpoint \(name): \(status) \(document)")
        }
        checkpoint = (name, contents)
    }

    private func checkChanges(
        _ index: Int, since checkpoint: (name: String, contents: [[UInt8]])
    ) throws {
        queryCount += 1
        var reported = Set<Int>()
        var offset = 0
        while true {
            let page = try harness.ask(
                "GET", "/v1/devices/d\(index)/changes?since=\(checkpoint.name)&offset=\(offset)")
            for range in page["ranges"] as? [[String: Any]] ?? [] {
                guard let start = range["offset"] as? Int, let length = range["length"] as? Int
                else { throw TestFailure("a range without offset and length: \(range)") }
                reported.formUnion(start / 4096..<(start + length + 4095) / 4096)
            }
            guard let next = page["next_offset"] as? Int else { break }
            offset = next
        }
        let (then, now) = (checkpoint.contents[index], contents[index])
        for block in 0..<Self.byteCount / 4096 where !reported.contains(block) {
            let range = block * 4096..<(block + 1) * 4096
            if then[range] != now[range] {
                Issue.record("d\(index): block \(block) changed and is not reported")
                return
            }
        }
    }
}

@Suite(
    .serialized, .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Mixed load` {
    @Test func `for a long time leaves neither memory nor descriptors behind`() throws {
        let seed = UInt64.random(in: 1...1_000_000_000)
        print(
            "mixed load: \(Int(loadSeconds)) s, seed \(seed); STILLPOINT_SOAK_MINUTES says how long"
        )
        let load = try MixedLoad(seed: seed)
        // What the first rounds set up once is no growth.
        for _ in 0..<7 { try load.round() }
        try load.settle()
        let before = try load.footprint()
        let end = monotonicSeconds() + loadSeconds
        while monotonicSeconds() < end { try load.round() }
        try load.settle()
        let after = try load.footprint()
        print(
            """
            mixed load: \(load.roundCount) rounds, \(load.takeCount) snapshots, \
            \(load.brokenCount) given up, \(load.queryCount) queries; memory \(before.kibibytes) KiB \
            before, \(after.kibibytes) KiB after; descriptors \(before.descriptors) before, \
            \(after.descriptors) after
            """)
        #expect(after.descriptors <= before.descriptors + 4)
        #expect(after.kibibytes - before.kibibytes < 16 * 1024)
        try load.stop()
    }
}
