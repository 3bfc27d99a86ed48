import TestSupport
import Testing

@Suite(
    .serialized,
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `The counters of a snapshot` {
    /// The part of the only device.
    private func part(_ harness: SnapshotHarness) throws -> [String: Any] {
        try #require((try harness.show("s")["devices"] as? [[String: Any]])?.first)
    }

    @Test func `show one byte copied for each byte overwritten first by aligned random writes`()
        throws
    {
        let writeCount = sized("random writes", soak: 20_000, otherwise: 1000)
        var generator = SeededGenerator.announced("random writes")
        let byteCount = 64 * mebibyte
        let harness = try SnapshotHarness(loops: 1)
        let folder = try TemporaryDirectory(inMemory: true)
        try makeRandomFile(folder.path("a"), byteCount: byteCount, generator: &generator)
        try harness.attach("a", folder.path("a"))
        try harness.take("s", of: ["a"], storage: ["memory:96M"])
        let client = try harness.client("a")
        var blocks = Set<Int>()
        for _ in 0..<writeCount {
            let block = Int.random(in: 0..<byteCount / 4096, using: &generator)
            blocks.insert(block)
            try client.write(UInt64(block * 4096), generator.bytes(4096))
        }
        // Once more over the same blocks: nothing is copied again.
        for block in blocks.prefix(200) {
            try client.write(UInt64(block * 4096), generator.bytes(4096))
        }
        let part = try part(harness)
        #expect(part["copied_bytes"] as? Int == blocks.count * 4096)
        #expect(part["stored_bytes"] as? Int == blocks.count * 4096)
        #expect(part["zero_blocks"] as? Int == 0)
        #expect(try harness.storage(of: "s")["stored_bytes"] as? Int == blocks.count * 4096)
        print("\(blocks.count) blocks overwritten, \(part["copied_bytes"] ?? 0) bytes copied")
    }

    @Test func `show no byte stored for holes and blocks of zeroes`() throws {
        let byteCount = 8 * mebibyte
        let harness = try SnapshotHarness(loops: 1)
        let disk = try TemporaryDirectory()
        try makeSparseFile(disk.path("a"), byteCount: byteCount)
        try harness.attach("a", disk.path("a"))
        // Four MiB of zeroes that are written, four that are a hole.
        try harness.fill("a", 0, byteCount: byteCount / 2)
        try harness.take("s", of: ["a"])
        try harness.fill("a", 1, byteCount: byteCount)
        let part = try part(harness)
        #expect(part["stored_bytes"] as? Int == 0)
        #expect(part["zero_blocks"] as? Int == byteCount / 4096)
        let storage = try harness.storage(of: "s")
        #expect(storage["stored_bytes"] as? Int == 0)
        #expect(storage["zero_blocks"] as? Int == byteCount / 4096)
        let image = try harness.contents(of: "a@s")
        let isZero = image == [UInt8](repeating: 0, count: byteCount)
        #expect(isZero)
    }
}
