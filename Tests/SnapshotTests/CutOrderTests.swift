import Glibc
import Synchronization
import TestSupport
import Testing

/// Writes rising numbers to one device after the other, each after the former's acknowledgement.
private final class RisingWriter: Sendable {
    static let deviceCount = 4
    /// Blocks that the numbers go round in: the last few numbers are all seen.
    static let blockCount = 8

    let place: Int
    private let isEnough = Atomic<Bool>(false)
    private let thread: Mutex<Background<UInt64>?> = Mutex(nil)

    /// Starts to write from block `place * blockCount` on.
    init(_ harness: SnapshotHarness, place: Int) throws {
        self.place = place
        thread.withLock { [self] thread in
            thread = Background { [self] in try run(harness) }
        }
    }

    private func run(_ harness: SnapshotHarness) throws -> UInt64 {
        let clients = try (0..<Self.deviceCount).map { try harness.client("d\($0)") }
        var number: UInt64 = 0
        while !isEnough.load(ordering: .relaxed) {
            number += 1
            var bytes = [UInt8](repeating: UInt8(truncatingIfNeeded: number), count: 4096)
            bytes.withUnsafeMutableBytes { $0.storeBytes(of: number, as: UInt64.self) }
            let block = place * Self.blockCount + Int(number % UInt64(Self.blockCount))
            for client in clients { try client.write(UInt64(block * 4096), bytes) }
        }
        return number
    }

    /// Ends it and returns how many numbers were written.
    func stop() throws -> UInt64 {
        isEnough.store(true, ordering: .relaxed)
        return try thread.withLock { $0 }?.value() ?? 0
    }

    /// The last number in an image, and whether those before it are there too.
    func last(in image: [UInt8]) -> (number: UInt64, isWhole: Bool) {
        let numbers = (0..<Self.blockCount).map { block in
            image.withUnsafeBytes {
                $0.load(
                    fromByteOffset: (place * Self.blockCount + block) * 4096, as: UInt64.self)
            }
        }
        let last = numbers.max() ?? 0
        let isWhole = (0..<UInt64(Self.blockCount)).allSatisfy { back in
            back >= last || numbers[Int((last - back) % UInt64(Self.blockCount))] == last - back
        }
        return (last, isWhole)
    }
}

@Suite(
    .serialized,
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `A cut over several devices` {
    @Test func `never shows a later device ahead of an earlier one`() throws {
        let cutCount = sized("cuts", soak: 1000, otherwise: 50)
        var generator = SeededGenerator.announced("order of devices in the commands")
        let harness = try SnapshotHarness(loops: 4)
        let folder = try TemporaryDirectory(inMemory: true)
        let names = (0..<RisingWriter.deviceCount).map { "d\($0)" }
        for name in names {
            try makeSparseFile(folder.path(name), byteCount: mebibyte)
            try harness.attach(name, folder.path(name))
        }
        let loops = try names.map {
            try harness.ask("GET", "/v1/devices/\($0)")["loop"] as? Int
        }
        #expect(Set(loops).count == names.count, "devices on loops \(loops)")
        let writers = try (0..<2).map { try RisingWriter(harness, place: $0) }
        var longest = 0
        var seen = Set<UInt64>()
        var between = 0
        for cut in 0..<cutCount {
            let made = try harness.take(
                "s\(cut)", of: names.shuffled(using: &generator), storage: ["memory:16M"])
            longest = max(longest, made["cut_microseconds"] as? Int ?? 0)
            let images = try names.map { name in
                try harness.client("\(name)@s\(cut)")
                    .read(0, writers.count * RisingWriter.blockCount * 4096)
            }
            for writer in writers {
                let found = images.map { writer.last(in: $0) }
                let numbers = found.map(\.number)
                #expect(numbers == numbers.sorted(by: >), "cut \(cut): \(numbers)")
                // A wrapped difference is reported as well, instead of a trap.
                #expect(numbers[0] &- numbers[3] <= 1, "cut \(cut): \(numbers)")
                let isWhole = found.allSatisfy { $0.isWhole }
                #expect(isWhole, "cut \(cut): a number is missing")
                seen.insert(numbers[0])
                if numbers[0] != numbers[3] { between += 1 }
            }
            try harness.destroy("s\(cut)")
        }
        let written = try writers.map { try $0.stop() }
        print(
            "\(cutCount) cuts over \(written) numbers, \(between) of \(cutCount * 2) in the "
                + "middle of a round; the longest closed the gates for \(longest) us")
        // Cuts that all fell between two rounds, or saw no writer move, would show nothing.
        #expect(between > 0)
        #expect(seen.count > cutCount / 2)
    }
}
