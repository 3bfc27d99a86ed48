import Foundation
import Glibc
import TestSupport
import Testing

/// `stillpoint copy` against the real service.
@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Copies of images` {
    @Test func `are the image at its cut, sparse where it is, whatever is written meanwhile`()
        throws
    {
        let harness = try CopyHarness(byteCount: 96 * mebibyte + 512)
        var generator = SeededGenerator.announced("full copy")
        try harness.change(40, &generator)
        try harness.write(generator.bytes(512), at: 96 * mebibyte)
        try harness.take("s1")
        let atCut = harness.contents
        try harness.change(20, &generator)
        let result = try harness.copy("s1")
        #expect(try readFile(harness.copyPath, 0..<harness.byteCount) == atCut)
        #expect(result["full"] as? Bool == true && result["size"] as? Int == harness.byteCount)
        let blocks = stride(from: 0, to: atCut.count, by: 4096).count { start in
            atCut[start..<min(start + 4096, atCut.count)].contains { $0 != 0 }
        }
        #expect(result["written_bytes"] as? Int ?? 0 <= blocks * 4096)
        // Extents of a filesystem may be larger than blocks, a little.
        #expect(harness.allocatedByteCount(harness.copyPath) <= blocks * 4096 + mebibyte)

        // A full copy over an older one: what became zero is a hole again.
        try harness.zero(0..<48 * mebibyte)
        try harness.take("s2")
        try harness.copy("s2", isForced: true)
        try harness.expectCopyIsRight("a second full copy")
        let used = harness.allocatedByteCount(harness.copyPath)
        #expect(used <= 48 * mebibyte + mebibyte)
        #expect(try harness.record()["device"] as? String == "disk")
    }

    @Test func `after 1000 writes of 4 KiB to 64 GiB transfer 4.2 MiB at most`() throws {
        let harness = try CopyHarness(byteCount: 64 << 30, keepsContents: false)
        var generator = SeededGenerator.announced("increment of 64 GiB")
        try harness.write(generator.bytes(mebibyte), at: 5 << 30)
        try harness.take("base")
        #expect(try harness.copy("base")["transferred_bytes"] as? Int ?? 0 <= 2 * mebibyte)
        var written: [Int: [UInt8]] = [:]
        for _ in 0..<1000 {
            let offset = Int.random(in: 0..<(64 << 30) / 4096, using: &generator) * 4096
            written[offset] = generator.bytes(4096)
            try harness.write(written[offset]!, at: offset)
        }
        try harness.take("next")
        let result = try harness.copy("next", since: "base")
        #expect(result["full"] as? Bool == false && result["since"] as? String == "base")
        #expect(result["transferred_bytes"] as? Int == written.count * 4096)
        #expect(result["transferred_bytes"] as? Int ?? .max <= mebibyte * 42 / 10)
        #expect(result["changed_bytes"] as? Int == written.count * 4096)
        for (offset, bytes) in written {
            #expect(try readFile(harness.copyPath, offset..<offset + 4096) == bytes)
        }
        #expect(
            try readFile(harness.copyPath, 5 << 30..<5 << 30 + 4096)
                == readFile(harness.files.path("disk"), 5 << 30..<5 << 30 + 4096))
    }

    @Test func `follow the device round by round, past images that are written to`() throws {
        let harness = try CopyHarness(byteCount: 24 * mebibyte)
        var generator = SeededGenerator.announced("rounds of copies")
        try harness.change(20, &generator)
        try harness.take("r0")
        try harness.copy("r0")
        for round in 1...sized("rounds of copies", soak: 300, otherwise: 15) {
            let base = "r\(round - 1)"
            // What is written through an image is nobody's business but the image's.
            if Bool.random(using: &generator) {
                let image = try NBDClient(
                    harness.service.address(), export: "disk@\(base):rw", headers: .structured)
                try image.write(
                    UInt64(Int.random(in: 0..<1000, using: &generator) * 4096),
                    generator.bytes(8192))
            }
            try harness.change(Int.random(in: 0...12, using: &generator), &generator)
            // Destroyed before or after the next one is taken: the chain needs only its name.
            let isEarly = Bool.random(using: &generator)
            if isEarly { try harness.destroy(base) }
            try harness.take("r\(round)")
            try harness.copy("r\(round)", since: base)
            try harness.expectCopyIsRight("round \(round), seed \(generator.seed)")
            if !isEarly { try harness.destroy(base) }
            try harness.command("checkpoint", "delete", base)
        }
    }

    @Test func `killed at any instant are finished by the same command, or a newer snapshot`()
        throws
    {
        let harness = try CopyHarness(byteCount: 48 * mebibyte)
        var generator = SeededGenerator.announced("killed copies")
        try harness.write(generator.bytes(40 * mebibyte), at: 0)
        try harness.take("k0")
        var base = "k0"
        var killed = 0
        _ = try killRandomly(harness, harness.copyArguments("k0"), &generator, &killed)
        try harness.copy("k0")
        try harness.expectCopyIsRight("the full copy, seed \(generator.seed)")
        for round in 1...sized("rounds of killed copies", soak: 300, otherwise: 15) {
            let bytes = generator.bytes(Int.random(in: 1...32, using: &generator) * mebibyte / 4)
            try harness.write(bytes, at: Int.random(in: 0...64, using: &generator) * 65536)
            try harness.change(6, &generator)
            var next = "k\(round)"
            try harness.take(next)
            var isDone = false
            for attempt in 0..<Int.random(in: 1...3, using: &generator) where !isDone {
                isDone = try killRandomly(
                    harness, harness.copyArguments(next, since: base), &generator, &killed)
                guard !isDone, Bool.random(using: &generator) else { continue }
                // The snapshot is lost, and the next one is later.
                try harness.destroy(next)
                try harness.change(6, &generator)
                next = "k\(round)-\(attempt)"
                try harness.take(next)
            }
            try harness.copy(next, since: base)
            try harness.expectCopyIsRight("round \(round), seed \(generator.seed)")
            if try harness.run(["snapshot", "show", base]).status == 0 {
                try harness.destroy(base)
            }
            base = next
        }
        print("\(killed) copies were killed")
        #expect(killed > 0)
    }

    /// Starts a copy and kills it after a while; true when it was faster.
    private func killRandomly(
        _ harness: CopyHarness, _ arguments: [String], _ generator: inout SeededGenerator,
        _ killed: inout Int
    ) throws -> Bool {
        let process = try ChildProcess(
            TestService.binary, arguments + ["--control", harness.service.controlPath])
        // The instant is the test's subject, not a synchronisation.
        let end = monotonicSeconds() + Double.random(in: 0...0.25, using: &generator)
        while monotonicSeconds() < end { sched_yield() }
        process.send(signal: SIGKILL)
        switch try process.wait(deadline: 60) {
        case .exited(let code):
            #expect(code == 0)
            return true
        case .killed:
            killed += 1
            return false
        }
    }

    @Test func `of three consumers at different ages are each brought forward`() throws {
        let harness = try CopyHarness(byteCount: 8 * mebibyte)
        var generator = SeededGenerator.announced("three consumers")
        var targets: [String] = []
        for name in ["a", "b", "c"] {
            try harness.change(8, &generator)
            try harness.take(name)
            targets.append(harness.files.path("copy-\(name)"))
            try harness.command("copy", "disk@\(name)", targets.last!)
        }
        try harness.change(8, &generator)
        try harness.destroy("a")
        try harness.take("last")
        for (name, target) in zip(["b", "a", "c"], [targets[1], targets[0], targets[2]]) {
            try harness.command("copy", "disk@last", target, "--since", name)
            #expect(try readFile(target, 0..<harness.byteCount) == harness.contents)
            try harness.command("checkpoint", "delete", name)
        }
    }

    @Test(.enabled(if: canUseLoopDevices, "loop devices need root"))
    func `go onto a block device that holds nothing, and follow there`() throws {
        let harness = try CopyHarness(byteCount: 8 * mebibyte)
        var generator = SeededGenerator.announced("block device target")
        try makeSparseFile(harness.files.path("target"), byteCount: 12 * mebibyte)
        let loop = try LoopDevice(over: harness.files.path("target"), sectorSize: 512)
        try harness.change(8, &generator)
        try harness.take("a")
        try harness.command("copy", "disk@a", loop.path)
        #expect(try readFile(loop.path, 0..<harness.byteCount) == harness.contents)
        try harness.change(8, &generator)
        try harness.take("b")
        try harness.command("copy", "disk@b", loop.path, "--since", "a")
        #expect(try readFile(loop.path, 0..<harness.byteCount) == harness.contents)
        #expect(access(loop.path + ".stillpoint", F_OK) != 0)
        // Somebody makes it something else.
        try Command.check("mkfs.ext4", ["-q", "-F", loop.path])
        try harness.expectRefusal(4, "changed since", ["copy", "disk@b", loop.path])
        for record in try harness.diskRecords() { unlink(record) }
        try harness.expectRefusal(4, "ext4", ["copy", "disk@b", loop.path])
        try harness.command("copy", "disk@b", loop.path, "--force")
        #expect(try readFile(loop.path, 0..<harness.byteCount) == harness.contents)
    }
}
