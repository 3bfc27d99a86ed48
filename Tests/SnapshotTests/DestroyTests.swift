import Foundation
import Glibc
import Synchronization
import TestSupport
import Testing

/// Longest a destroy may take here; the target is 1 s on an idle machine.
private let destroySecondsMax = 5.0

@Suite(
    .serialized,
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Destroying a snapshot` {
    private static let byteCount = 16 * mebibyte

    /// Reads or writes an image until it is taken away; returns how many requests succeeded.
    private func user(
        _ harness: SnapshotHarness, _ export: String, isWriting: Bool, seed: UInt64,
        started: DispatchSemaphore
    ) throws -> Background<Int> {
        let client = try harness.client(export)
        return Background {
            var generator = SeededGenerator(seed: seed)
            let bytes = generator.bytes(64 << 10)
            var count = 0
            var inFlight = 0
            do {
                while true {
                    while inFlight < 4 {
                        let place = Int.random(in: 0..<Self.byteCount / 65536, using: &generator)
                        try client.send(
                            NBDRequest(
                                isWriting ? .write : .read, offset: UInt64(place * 65536),
                                length: 65536, payload: isWriting ? bytes : []))
                        inFlight += 1
                    }
                    let chunk = try client.receiveChunk()
                    // An error ends it too, before the connection does.
                    if chunk.error != nil { return count }
                    if chunk.isDone {
                        inFlight -= 1
                        count += 1
                    }
                    if count == 4 && chunk.isDone { started.signal() }
                }
            } catch is ConnectionEnded {}
            return count
        }
    }

    @Test func `while its images are busy returns soon, and the origin notices nothing`() throws {
        let roundCount = sized("rounds", soak: 100, otherwise: 5)
        var generator = SeededGenerator.announced("users of an image")
        let harness = try SnapshotHarness(loops: 2)
        let folder = try TemporaryDirectory(inMemory: true)
        try makeSparseFile(folder.path("a"), byteCount: Self.byteCount)
        try harness.attach("a", folder.path("a"))
        try harness.fill("a", 1, byteCount: Self.byteCount)
        var longest = 0.0
        var requestCount = 0
        var settled = 0
        for round in 0..<roundCount + 2 {
            try harness.take("s", of: ["a"], storage: ["memory:48M"])
            let started = DispatchSemaphore(value: 0)
            let users = try (0..<8).map { number in
                try user(
                    harness, number < 4 ? "a@s" : "a@s:rw", isWriting: number >= 4,
                    seed: generator.next(), started: started)
            }
            let value = UInt8(2 + round % 200)
            let writer = try TimedWriter(
                harness, "a", value: value, byteCount: Self.byteCount)
            for _ in users { started.wait() }
            let began = monotonicSeconds()
            try harness.destroy("s")
            let took = monotonicSeconds() - began
            longest = max(longest, took)
            #expect(took < destroySecondsMax)
            for user in users { requestCount += try user.value() }
            let wait = try writer.finish()
            #expect(wait < destroySecondsMax)
            let origin = try harness.contents(of: "a")
            let isRight = origin == [UInt8](repeating: value, count: Self.byteCount)
            #expect(isRight, "round \(round): the origin lacks what was written")
            // The first rounds fill pools that stay.
            if round == 1 { settled = try harness.memoryKibibytes() }
        }
        let grown = try harness.memoryKibibytes() - settled
        print(
            "\(roundCount) rounds, \(requestCount) image requests: the longest destroy took "
                + "\(longest) s (target 1 s), memory grew by \(grown) KiB from \(settled)")
        #expect(grown < 8192)
    }

    @Test func `gives back the memory that its blocks passed through, when it was the last`()
        throws
    {
        let harness = try SnapshotHarness(loops: 2)
        let folder = try TemporaryDirectory(inMemory: true)
        for name in ["a", "b"] {
            try makeSparseFile(folder.path(name), byteCount: Self.byteCount)
            try harness.attach(name, folder.path(name))
            try harness.fill(name, 1, byteCount: Self.byteCount)
        }
        let limit = 64 * mebibyte
        let storage = [folder.root]
        try harness.take("first", of: ["a", "b"], storage: storage, limit: limit)
        try harness.take("second", of: ["a"], storage: storage, limit: limit)
        for name in ["a", "b"] { try harness.fill(name, 2, byteCount: Self.byteCount) }
        let used = try harness.unstoredMemoryKibibytes()
        #expect(used > 0, "no block was held before it was stored")
        try harness.destroy("first")
        try harness.destroy("second")
        // It goes a slice a turn, after the answer.
        let end = monotonicSeconds() + 60
        while try harness.unstoredMemoryKibibytes() > 0, monotonicSeconds() < end { sched_yield() }
        #expect(try harness.unstoredMemoryKibibytes() == 0)
        // What was given back serves the next snapshot.
        try harness.take("third", of: ["a", "b"], storage: storage, limit: limit)
        for name in ["a", "b"] {
            try harness.fill(name, 3, byteCount: Self.byteCount)
            let image = try harness.contents(of: "\(name)@third")
            #expect(image == [UInt8](repeating: 2, count: Self.byteCount))
        }
    }
}
