import BlockModel
import ChangeTracking
import Foundation
import Glibc
import TestSupport
import Testing

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `A damaged change map` {
    /// A device with changes behind a checkpoint, stopped cleanly.
    private func stopped() throws -> GenerationHarness {
        let harness = try GenerationHarness()
        try harness.attachImage()
        try harness.checkpoint("base")
        try harness.write(1, block: 3)
        try harness.write(1, block: 9000)
        try harness.stop()
        return harness
    }

    private func killed() throws -> GenerationHarness {
        let harness = try GenerationHarness()
        try harness.attachImage()
        try harness.checkpoint("base")
        try harness.write(1, block: 3)
        try harness.killed()
        return harness
    }

    /// The history is new, the reason says `reason`, and old checkpoints are refused.
    private func expectNew(_ harness: GenerationHarness, _ reason: String) throws {
        try harness.service.restart()
        let now = try harness.history()
        #expect(!now.isContinued)
        #expect(now.reason.contains(reason), "\(now.reason)")
        #expect(try harness.status(ofChangesSince: "base") == 5)
        // And from here on all is well.
        let fresh = "fresh-" + now.generation.prefix(8)
        try harness.checkpoint(fresh)
        try harness.write(2, block: 77)
        #expect(try harness.changedBlocks(since: fresh) == [77])
        try harness.stop()
        try harness.service.restart()
        #expect(try harness.history().isContinued)
        #expect(try harness.changedBlocks(since: fresh) == [77])
    }

    @Test func `with flipped bits is refused and kept aside once`() throws {
        var generator = SeededGenerator.announced("flipped bits of a map file")
        let harness = try stopped()
        let good = try Data(contentsOf: URL(filePath: harness.savedMap))
        #expect(good.count >= 3 * 4096)
        // Header, checksums, the page of entries.
        for part in 0..<3 {
            var bytes = good
            // What the second save wrote is damaged in turn.
            if part > 0 { bytes = try Data(contentsOf: URL(filePath: harness.savedMap)) }
            let place = part * 4096 + Int.random(in: 0..<4096, using: &generator)
            bytes[place] ^= 1 << UInt8.random(in: 0..<8, using: &generator)
            try bytes.write(to: URL(filePath: harness.savedMap))
            try harness.service.restart()
            let now = try harness.history()
            #expect(!now.isContinued, "byte \(place)")
            #expect(now.reason.contains("saved change map"), "\(now.reason)")
            #expect(try harness.status(ofChangesSince: "base") == 5)
            #expect(try Data(contentsOf: URL(filePath: harness.savedMap + ".damaged")) == bytes)
            try harness.write(3, block: part)
            try harness.stop()
        }
        try harness.service.restart()
        #expect(try harness.history().isContinued)
    }

    @Test(arguments: [0, 1, 4095, 4096, 8191, 8192, 12287])
    func `that was cut short is refused`(byteCount: Int) throws {
        let harness = try stopped()
        #expect(truncate(harness.savedMap, off_t(byteCount)) == 0)
        try expectNew(harness, "cut short")
    }

    @Test func `of another device or another file is refused`() throws {
        let harness = try stopped()
        let foreign = try GenerationHarness()
        try foreign.attachImage()
        try foreign.stop()
        try FileManager.default.removeItem(atPath: harness.savedMap)
        try FileManager.default.copyItem(atPath: foreign.savedMap, toPath: harness.savedMap)
        try expectNew(harness, "another file")
        try harness.stop()
        try rewriteHeader(harness.savedMap) { header in
            let name = ObjectName("other")!
            var other = MapFileHeader(
                beginning: header.generation, of: name, state: .clean, size: header.size,
                bootID: header.bootID, instance: header.instance, origin: header.origin)
            other.epoch = header.epoch
            header = other
        }
        try expectNew(harness, "belongs to device other")
    }

    @Test func `of a later version is refused`() throws {
        let harness = try stopped()
        var bytes = [UInt8](try Data(contentsOf: URL(filePath: harness.savedMap)))
        bytes[8] = 2
        seal(&bytes)
        try Data(bytes).write(to: URL(filePath: harness.savedMap))
        try expectNew(harness, "version 2")
        #expect(access(harness.savedMap + ".damaged", F_OK) == 0)
    }

    @Test func `left by a killed service is refused`() throws {
        var harness = try killed()
        // Entries lie behind 4 MiB of bits; block 3 is in the first one.
        try overwrite(harness.runningMap, at: 16384 + 4 << 20, [0, 0])
        try expectNew(harness, "has an impossible value")
        harness = try killed()
        #expect(truncate(harness.runningMap, 8192) == 0)
        try expectNew(harness, "cut short")
        harness = try killed()
        #expect(truncate(harness.runningMap, 0) == 0)
        try expectNew(harness, "cut short")
        harness = try killed()
        #expect(unlink(harness.runningMap) == 0)
        try expectNew(harness, "first time")
    }

    @Test func `lost after it was saved once is told from a first attach`() throws {
        let harness = try stopped()
        try harness.service.restart()
        try harness.service.process.killAndWait()
        #expect(unlink(harness.runningMap) == 0)
        try expectNew(harness, "did not end cleanly")
    }

    @Test func `whose pages were lost is refused`() throws {
        let harness = try killed()
        try Command.check(
            "fallocate",
            [
                "--punch-hole", "--offset", "\(16384 + 4 << 20)", "--length", "4096",
                harness.runningMap,
            ])
        try expectNew(harness, "cut short")
    }

    @Test func `with used up epochs begins anew at the next cut, which can be asked for`() throws {
        let harness = try stopped()
        try rewriteHeader(harness.savedMap) { $0.epoch = .last }
        try harness.service.restart()
        #expect(try harness.history().isContinued)
        #expect(try harness.status(ofChangesSince: "base") == 0)
        try harness.write(1, block: 5)
        let old = try harness.history().generation
        try harness.checkpoint("next")
        let now = try harness.history()
        #expect(now.generation != old)
        #expect(now.epoch == 2)
        #expect(now.reason.contains("used up"))
        #expect(
            (try harness.event("history-new")["message"] as? String ?? "").contains("used up"))
        try harness.write(1, block: 6)
        #expect(try harness.changedBlocks(since: "next") == [6])
        #expect(try harness.status(ofChangesSince: "base") == 5)
        try harness.service.process.killAndWait()
        try harness.service.restart()
        #expect(try harness.history().isContinued)
        #expect(try harness.changedBlocks(since: "next") == [6])
    }

    private func rewriteHeader(_ path: String, _ body: (inout MapFileHeader) -> Void) throws {
        var bytes = [UInt8](try Data(contentsOf: URL(filePath: path)))
        var header = try MapFileHeader(decoding: bytes.span.bytes)
        body(&header)
        var page = [UInt8](repeating: 0, count: 4096)
        do {
            var span = page.mutableSpan
            var raw = span.mutableBytes
            header.encode(into: &raw)
        }
        bytes.replaceSubrange(0..<4096, with: page)
        try Data(bytes).write(to: URL(filePath: path))
    }

    private func seal(_ bytes: inout [UInt8]) {
        let checksum = bytes.withUnsafeBytes {
            Checksum.crc32c(UnsafeRawBufferPointer(rebasing: $0[..<4092]))
        }
        for position in 0..<4 {
            bytes[4092 + position] = UInt8(truncatingIfNeeded: checksum >> UInt32(8 * position))
        }
    }
}
