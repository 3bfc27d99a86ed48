import BlockModel
import Glibc
import RingIO
import TestSupport
import Testing

@testable import ExportNBD

private let mebibyte = 1 << 20

@Suite struct `The server` {
    @Test(arguments: NBDClient.Headers.allCases, [UInt64(1), 512, 4096])
    func `reads what was written, at any place and length`(
        headers: NBDClient.Headers, alignment: UInt64
    ) async throws {
        let harness = try await ServerHarness()
        let device = try await harness.add(alignment: alignment)
        var generator = SeededGenerator.announced("writes and reads")
        var model = [UInt8](repeating: 0, count: ServerHarness.byteCount)
        let client = try harness.connect(headers)
        for _ in 0..<100 {
            let offset = Int.random(in: 0..<model.count - 1, using: &generator)
            let length = min(
                Int.random(
                    in: 1...(1 << Int.random(in: 0...20, using: &generator)), using: &generator),
                model.count - offset)
            if Bool.random(using: &generator) {
                let bytes = generator.bytes(length)
                try client.write(UInt64(offset), bytes)
                model.replaceSubrange(offset..<offset + length, with: bytes)
            } else {
                #expect(
                    try client.read(UInt64(offset), length)
                        == Array(model[offset..<offset + length]))
            }
        }
        #expect(try await device.bytes(0..<model.count) == model)
        #expect(try await device.with { $0.misplacedCount } == 0)
        await harness.stop()
    }

    @Test func `serves a device on another loop, with requests sent behind the last option`()
        async throws
    {
        let harness = try await ServerHarness(loopCount: 2)
        _ = try await harness.add()
        let client = try NBDClient(.unix(path: harness.socketPath))
        _ = try client.greet()
        let request = NBDRequest(.write, cookie: 1, offset: 4096, length: 3, payload: [7, 8, 9])
        var bytes = Handshake.option(7, NBDClient.goData("disk"))
        bytes += request.encoded(.simple)
        bytes += NBDRequest(.read, cookie: 2, offset: 4097, length: 2).encoded(.simple).dropLast(5)
        try client.send(bytes)
        for _ in 0..<3 { _ = try client.receiveOptionReply() }
        #expect(
            try client.receive(16) == [0x67, 0x44, 0x66, 0x98] + [0, 0, 0, 0] + [
                0, 0, 0, 0, 0, 0, 0, 1,
            ])
        try client.send(
            NBDRequest(.read, cookie: 2, offset: 4097, length: 2).encoded(.simple).suffix(5))
        #expect(try client.receive(18).suffix(2) == [8, 9])
        await harness.stop()
    }

    @Test(arguments: NBDClient.Headers.allCases)
    func `takes requests in pieces of every size`(headers: NBDClient.Headers) async throws {
        let harness = try await ServerHarness()
        let device = try await harness.add()
        let client = try harness.connect(headers)
        var bytes: [UInt8] = []
        for index in 0..<8 {
            bytes += NBDRequest(
                .write, cookie: UInt64(index), offset: UInt64(index * 5), length: 5,
                payload: [UInt8](repeating: UInt8(index + 1), count: 5)
            ).encoded(headers)
        }
        for size in [1, 2, 3, 7, 27, 28, 29, 33, 64] {
            var position = 0
            while position < bytes.count {
                let end = min(position + size, bytes.count)
                try client.send(Array(bytes[position..<end]))
                position = end
            }
            for _ in 0..<8 { #expect(try client.receiveChunk().error == nil) }
        }
        #expect(
            try await device.bytes(0..<40)
                == (0..<40).map { UInt8($0 / 5 + 1) })
        await harness.stop()
    }

    /// With one request at a time the header behind a large payload finds no room.
    @Test(arguments: NBDClient.Headers.allCases, [1, 128])
    func `large and small writes behind each other arrive whole, however they are cut`(
        headers: NBDClient.Headers, requestCount: Int
    ) async throws {
        var generator = SeededGenerator.announced("writes of all sizes, \(headers)")
        let harness = try await ServerHarness { $0.session.requestCount = requestCount }
        let device = try await harness.add()
        let client = try harness.connect(headers)
        let direct = NBDSession.directByteCount
        let sizes = [1, 511, 4096, 65536, direct - 1, direct, direct + 1, 3 * direct]
        let noise = (0..<400_000).map { _ in UInt8.random(in: .min ... .max, using: &generator) }
        var expected: [UInt8] = []
        var bytes: [UInt8] = []
        var count = 0
        while true {
            let size = sizes.randomElement(using: &generator)!
            guard expected.count + size <= ServerHarness.byteCount else { break }
            count += 1
            let payload = Array(noise[count..<count + size])
            bytes += NBDRequest(
                .write, cookie: UInt64(count), offset: UInt64(expected.count),
                length: UInt64(size), payload: payload
            ).encoded(headers)
            expected += payload
        }
        var position = 0
        while position < bytes.count {
            let end = min(
                position
                    + Int.random(
                        in: 1...[30, 5000, 500_000].randomElement(using: &generator)!,
                        using: &generator), bytes.count)
            try client.send(Array(bytes[position..<end]))
            position = end
        }
        for cookie in 1...count {
            let chunk = try client.receiveChunk()
            #expect(chunk.error == nil && chunk.cookie == UInt64(cookie))
        }
        #expect(try await device.bytes(0..<expected.count) == expected)
        #expect(try await device.with { $0.misplacedCount } == 0)
        await harness.stop()
    }

    @Test(arguments: NBDClient.Headers.allCases)
    func `a write is told to the device before its payload is taken`(
        headers: NBDClient.Headers
    ) async throws {
        let harness = try await ServerHarness()
        let device = try await harness.add()
        let client = try harness.connect(headers)
        func write(_ offset: UInt64) -> [UInt8] {
            let payload = [UInt8](repeating: 1, count: 512)
            return NBDRequest(.write, offset: offset, length: 512, payload: payload)
                .encoded(headers)
        }
        // One piece: all arrive with one receive. The last header stands alone: nothing follows it.
        let trim = NBDRequest(.trim, offset: 7 * 4096, length: 512).encoded(headers)
        try client.send([write(4096), write(2 * 4096), trim, write(3 * 4096)].flatMap { $0 })
        for _ in 0..<4 { #expect(try client.receiveChunk().error == nil) }
        let seen = try await device.with { ($0.expected, $0.foreseen) }
        #expect(seen.0 == [4096, 2 * 4096, 3 * 4096])
        #expect(seen.1 == [2 * 4096], "the discard behind the second write is none")
        await harness.stop()
    }

    @Test func `payloads of 32 MiB pass, larger ones end their connection alone`() async throws {
        let harness = try await ServerHarness()
        let device = try await harness.add(size: 1 << 40)
        try await device.with { target in
            target.memory.deallocate()
            target.memory = .allocate(byteCount: 33 << 20, alignment: 4096)
        }
        let client = try harness.connect()
        var generator = SeededGenerator.announced("large payloads")
        let bytes = generator.bytes(32 * mebibyte)
        try client.write(0, bytes)
        #expect(try client.read(0, bytes.count) == bytes)
        // Nobody may make the server read past 32 MiB to find the next header.
        let greedy = try harness.connect()
        try greedy.send(NBDRequest(.write, offset: 0, length: UInt64(bytes.count + 1)))
        try greedy.drainUntilClosed()
        #expect(try client.read(5, 10) == Array(bytes[5..<15]))
        await harness.stop()
    }

    @Test(arguments: NBDClient.Headers.allCases)
    func `errors leave the connection alive`(headers: NBDClient.Headers) async throws {
        let harness = try await ServerHarness()
        let device = try await harness.add()
        let client = try harness.connect(headers)
        let end = UInt64(ServerHarness.byteCount)
        let requests: [(NBDRequest, UInt32)] = [
            (NBDRequest(.read, offset: end, length: 1), 22),
            (NBDRequest(.write, offset: end - 1, length: 2, payload: [1, 2]), 28),
            (NBDRequest(.writeZeroes, offset: end, length: 1), 28),
            (NBDRequest(.trim, offset: end, length: 1), 22),
            (NBDRequest(.unknown, offset: 0, length: 0), 22),
            (NBDRequest(.blockStatus, offset: 0, length: 512), 22),
            (NBDRequest(.flush, flags: 1 << 12), 22),
        ]
        for (request, code) in requests {
            #expect(try client.perform(request).error == code, "\(request)")
        }
        try await device.with { $0.mode = .failing(.inputOutput) }
        #expect(try client.perform(NBDRequest(.read, length: 512)).error == 5)
        try await device.with { $0.mode = .failing(.notSupported) }
        let fast = NBDRequest(
            .writeZeroes, flags: TestSupport.NBD.CommandFlag.fastZero, length: 512)
        #expect(try client.perform(fast).error == 95)
        try await device.with { $0.mode = .atOnce }
        #expect(try client.read(0, 4).count == 4)
        await harness.stop()
    }

    @Test(arguments: NBDClient.Headers.allCases)
    func `requests for nothing succeed and do not reach the device`(
        headers: NBDClient.Headers
    ) async throws {
        let harness = try await ServerHarness()
        let device = try await harness.add()
        let client = try harness.connect(headers)
        for command in [TestSupport.NBD.Command.read, .write, .trim, .cache, .writeZeroes] {
            #expect(try client.perform(NBDRequest(command, offset: 512)).error == nil)
        }
        #expect(try await device.with { $0.seen } == [])
        #expect(try client.read(0, 16).count == 16)
        await harness.stop()
    }

    @Test func `a read-only export permits no changes`() async throws {
        let harness = try await ServerHarness()
        let device = try await harness.add(isReadOnly: true)
        let client = try harness.connect()
        let write = NBDRequest(.write, length: 3, payload: [1, 2, 3])
        #expect(try client.perform(write).error == 1)
        for command in [TestSupport.NBD.Command.trim, .writeZeroes] {
            #expect(try client.perform(NBDRequest(command, length: 512)).error == 1)
        }
        #expect(try client.perform(NBDRequest(.flush)).error == nil)
        let changes: Set<RequestOperation> = [.write, .discard, .writeZeroes]
        #expect(try await device.with { $0.seen.allSatisfy { !changes.contains($0.operation) } })
        await harness.stop()
    }

    @Test func `flags reach the device`() async throws {
        let harness = try await ServerHarness()
        let device = try await harness.add()
        let client = try harness.connect()
        let all: UInt16 = 0b1_0011
        try client.succeed(NBDRequest(.writeZeroes, flags: all, length: 512))
        try client.succeed(NBDRequest(.write, flags: 1, length: 1, payload: [9]))
        try client.succeed(NBDRequest(.trim, flags: 1, length: 512))
        try client.succeed(NBDRequest(.flush, flags: 1))
        let seen = try await device.with { $0.seen.map(\.flags) }
        #expect(seen[0] == [.forceUnitAccess, .keepAllocated, .onlyFast])
        #expect(seen[1] == .forceUnitAccess && seen[2] == .forceUnitAccess)
        await harness.stop()
    }

    @Test func `extended lengths beyond 4 GiB reach the device whole`() async throws {
        let harness = try await ServerHarness()
        let device = try await harness.add(size: 1 << 50)
        let client = try harness.connect(.extended, contexts: ["base:allocation"])
        let length = UInt64(1) << 41
        try client.succeed(NBDRequest(.writeZeroes, offset: 1, length: length))
        try client.succeed(NBDRequest(.trim, offset: 2, length: length))
        try client.succeed(NBDRequest(.cache, offset: 3, length: length))
        let extents = try client.blockStatus(4, length)
        #expect(extents.map(\.length) == [length])
        let seen = try await device.with { $0.seen.map { [$0.offset, $0.length] } }
        #expect(seen == [[1, length], [2, length], [3, length], [4, length]])
        await harness.stop()
    }

    @Test(arguments: [NBDClient.Headers.structured, .extended])
    func `every selected context is answered, the last with the end of the reply`(
        headers: NBDClient.Headers
    ) async throws {
        let harness = try await ServerHarness()
        let bases = TestBases(["a", "b"])
        let device = try await harness.add(bases: bases.list.all)
        try await device.with {
            $0.extents = [
                nil: [StatusExtent(length: 8192, flags: 3)],
                bases.base(1): [
                    StatusExtent(length: 4096, flags: 1), StatusExtent(length: 4096, flags: 0),
                ],
                bases.base(2): [StatusExtent(length: 8192, flags: 0)],
            ]
        }
        let names = ["base:allocation", "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"]
        let client = try harness.connect(headers, contexts: names)
        try client.send(NBDRequest(.blockStatus, cookie: 1, length: 8192))
        var chunks: [NBDChunk] = []
        repeat { chunks.append(try client.receiveChunk()) } while chunks.last?.isDone == false
        #expect(chunks.count == 3)
        let told = try NBDReply(cookie: 1, chunks: chunks).extents()
        for (name, lengths) in zip(names, [[8192], [4096, 4096], [8192]] as [[UInt64]]) {
            let id = try #require(client.contexts[name])
            #expect(told[id]?.map(\.length) == lengths)
        }
        if headers == .extended {
            // A subset by id, one extent of it.
            let id = try #require(client.contexts["qemu:dirty-bitmap:a"])
            var payload: [UInt8] = []
            payload.appendWire(UInt64(4096))
            payload.appendWire(id)
            let request = NBDRequest(
                .blockStatus,
                flags: TestSupport.NBD.CommandFlag.payloadLength
                    | TestSupport.NBD.CommandFlag.requestOne,
                cookie: 2, offset: 0, length: UInt64(payload.count), payload: payload)
            try client.send(request)
            let chunk = try client.receiveChunk()
            #expect(chunk.isDone && chunk.error == nil)
            // Twice the same is refused, and so is one that was not selected.
            try client.send(
                NBDRequest(
                    .blockStatus, flags: TestSupport.NBD.CommandFlag.payloadLength, cookie: 4,
                    offset: 0, length: UInt64(payload.count + 4),
                    payload: payload + payload.suffix(4)))
            #expect(try client.receiveChunk().error == 22)
            payload[11] = 99
            try client.send(
                NBDRequest(
                    .blockStatus, flags: TestSupport.NBD.CommandFlag.payloadLength, cookie: 3,
                    offset: 0,
                    length: UInt64(payload.count), payload: payload))
            #expect(try client.receiveChunk().error == 22)
        }
        await harness.stop()
    }
}
