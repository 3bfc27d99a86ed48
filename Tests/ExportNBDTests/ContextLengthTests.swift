import BlockModel
import RingIO
import TestSupport
import Testing

@testable import ExportNBD

/// Clients walk the lists of several contexts together, and would miss what only the longest tells.
@Suite struct `Several contexts in one reply` {
    private static let names = [
        "base:allocation", "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b", "stillpoint:changes:a",
    ]

    /// What each context says, with lengths that add up to no more than these.
    private static let totals: [[UInt64]] = [
        [4096, 65536, 65536], [65536, 4096, 65536], [65536, 65536, 4096], [8192, 12288, 4096],
        [65536, 65536, 65536], [512, 1, 65535],
    ]

    /// Extents of `total` bytes, cut at random.
    private func extents(
        _ total: UInt64, _ generator: inout SeededGenerator
    ) -> [StatusExtent] {
        var extents: [StatusExtent] = []
        var left = total
        while left > 0 {
            let length = UInt64.random(in: 1...left, using: &generator)
            extents.append(StatusExtent(length: length, flags: UInt64(extents.count % 2)))
            left -= length
        }
        return extents
    }

    @Test(arguments: [NBDClient.Headers.structured, .extended], totals)
    func `describe the same bytes, each as the device says`(
        headers: NBDClient.Headers, totals: [UInt64]
    ) async throws {
        let harness = try await ServerHarness()
        let bases = TestBases(["a", "b"])
        let device = try await harness.add(bases: bases.list.all)
        var generator = SeededGenerator.announced("context lengths")
        let told = [
            nil: extents(totals[0], &generator), bases.base(1): extents(totals[1], &generator),
            bases.base(2): extents(totals[2], &generator),
        ]
        try await device.with { $0.extents = told }
        let least = totals.min() ?? 0
        for flags in [0, TestSupport.NBD.CommandFlag.requestOne] {
            let client = try harness.connect(headers, contexts: Self.names)
            let reply = try client.perform(
                NBDRequest(.blockStatus, flags: flags, length: 1 << 20))
            #expect(reply.error == nil && reply.chunks.count == Self.names.count)
            let answers = try reply.extents()
            var lengths: Set<UInt64> = []
            for (name, base) in zip(Self.names, [nil, bases.base(1), bases.base(2), bases.base(1)])
            {
                let id = try #require(client.contexts[name])
                let answer = try #require(answers[id])
                let length = answer.reduce(0) { $0 + $1.length }
                lengths.insert(length)
                let expected = bytes((told[base] ?? []).map { ($0.length, $0.flags) })
                #expect(
                    bytes(answer.map { ($0.length, UInt64($0.flags)) })
                        == Array(expected.prefix(Int(length))))
                if flags != 0 { #expect(answer.count == 1) }
            }
            #expect(lengths.count == 1, "\(lengths)")
            if flags == 0 { #expect(lengths == [least]) }
            // Nothing of a reply is left over.
            #expect(try client.read(0, 16).count == 16)
        }
        await harness.stop()
    }

    /// The flags of every byte.
    private func bytes(_ extents: [(UInt64, UInt64)]) -> [UInt8] {
        extents.flatMap { [UInt8](repeating: UInt8($0.1), count: Int($0.0)) }
    }

    @Test func `are asked for in turns of their own, and others are served in between`()
        async throws
    {
        let harness = try await ServerHarness()
        let bases = TestBases((1...63).map { "c\($0)" })
        let device = try await harness.add(bases: bases.list.all)
        let names = (1...63).map { "qemu:dirty-bitmap:c\($0)" }
        let client = try harness.connect(.extended, contexts: names)
        try await device.with { $0.mode = .held }
        try client.send(NBDRequest(.blockStatus, cookie: 1, length: 1 << 20))
        try await device.waitForHeld(1)
        try await device.with { target in
            target.mode = .atOnce
            target.releaseHeld()
        }
        var chunks = 0
        repeat { chunks += 1 } while try !client.receiveChunk().isDone
        #expect(chunks == 63)
        #expect(try await device.with { $0.statusesInATurn } == 1)
        await harness.stop()
    }

    @Test func `end with an error when the device shrinks between two of them`() async throws {
        let harness = try await ServerHarness()
        let bases = TestBases(["a"])
        let device = try await harness.add(bases: bases.list.all)
        let client = try harness.connect(
            .extended, contexts: ["base:allocation", "qemu:dirty-bitmap:a"])
        try await device.with { $0.mode = .held }
        try client.send(NBDRequest(.blockStatus, cookie: 1, length: 1 << 20))
        try await device.waitForHeld(1)
        try await device.with { target in
            target.size = 4096
            target.releaseHeld()
        }
        #expect(try client.receiveChunk().error == 22)
        await harness.stop()
    }
}
