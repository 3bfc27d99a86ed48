import BlockModel
import RingIO
import TestSupport
import Testing

@testable import ExportNBD

@Suite struct `Clients of others, as recorded` {
    /// A server whose export is what the recordings were made with.
    private func server() async throws -> (harness: ServerHarness, device: TestDevice) {
        let harness = try await ServerHarness()
        let bases = TestBases(["mon"])
        let device = try await harness.add(bases: bases.list.all)
        try await device.with {
            $0.extents = [
                nil: [
                    StatusExtent(length: 8192, flags: 3), StatusExtent(length: 8192, flags: 0),
                    StatusExtent(length: 1 << 30, flags: 3),
                ],
                bases.base(1): [
                    StatusExtent(length: 8192, flags: 0), StatusExtent(length: 1 << 30, flags: 1),
                ],
            ]
        }
        return (harness, device)
    }

    /// Goes through the recorded handshake; every option must be acknowledged.
    private func connect(
        _ recording: RecordedClient, to harness: ServerHarness
    ) throws -> NBDClient {
        let client = try NBDClient(.unix(path: harness.socketPath))
        _ = try client.receive(18)
        try client.send(recording.handshake[0])
        for option in recording.handshake.dropFirst() {
            try client.send(option)
            var reply: NBDClient.OptionReply
            repeat {
                reply = try client.receiveOptionReply()
            } while reply.type == 3
                || reply.type == 4
            #expect(reply.type == 1, "option \(reply.option) is refused")
        }
        client.headers = .extended
        return client
    }

    /// Receives the chunks of one reply.
    private func reply(to request: RecordedClient.Request, _ client: NBDClient) throws -> NBDReply {
        let cookie: UInt64 = request.header.big(at: 8)
        var reply = NBDReply(cookie: cookie, chunks: [])
        repeat {
            reply.chunks.append(try client.receiveChunk())
            #expect(reply.chunks.last?.cookie == cookie)
        } while reply.chunks.last?.isDone == false
        return reply
    }

    @Test(arguments: RecordedClient.all)
    func `are answered without an error`(recording: RecordedClient) async throws {
        let (harness, device) = try await server()
        let client = try connect(recording, to: harness)
        var model = [UInt8](repeating: 0, count: ServerHarness.byteCount)
        for request in recording.requests {
            try client.send(request.header + request.payload)
            let type: UInt16 = request.header.big(at: 6)
            let offset: UInt64 = request.header.big(at: 16)
            let length: UInt64 = request.header.big(at: 24)
            guard type != 2 else { continue }
            let reply = try reply(to: request, client)
            #expect(reply.error == nil, "request of type \(type) at \(offset)")
            switch type {
            case 0:
                let range = Int(offset)..<Int(offset + length)
                #expect(
                    try reply.data(offset: offset, length: Int(length)) == Array(model[range]))
            case 1:
                let range = Int(offset)..<Int(offset + length)
                model.replaceSubrange(range, with: request.payload)
            case 7:
                let told = try reply.extents().values.map { $0.reduce(0) { $0 + $1.length } }
                #expect(Set(told).count == 1 && !told.contains(0))
            default: break
            }
        }
        client.shutdownSending()
        try client.drainUntilClosed()
        #expect(try await device.bytes(0..<model.count) == model)
        await harness.stop()
    }

    @Test(arguments: RecordedClient.all)
    func `are answered when all of it comes at once`(recording: RecordedClient) async throws {
        let (harness, device) = try await server()
        let client = try connect(recording, to: harness)
        try client.send(recording.requests.flatMap { $0.header + $0.payload })
        // Answers come in the order in which they are ready; QEMU uses a cookie again at once.
        var left = recording.requests.filter { $0.header[7] != 2 }.map {
            $0.header.big(at: 8) as UInt64
        }
        while !left.isEmpty {
            let chunk = try client.receiveChunk()
            #expect(chunk.error == nil && left.contains(chunk.cookie))
            if chunk.isDone { left.remove(at: try #require(left.firstIndex(of: chunk.cookie))) }
        }
        client.shutdownSending()
        try client.drainUntilClosed()
        let writes = recording.requests.filter { $0.header[7] == 1 }
        #expect(
            try await device.with { $0.seen.filter { $0.operation == .write }.count }
                == writes.count)
        await harness.stop()
    }
}

@Suite struct `A refused request` {
    private static let payloadFlag = TestSupport.NBD.CommandFlag.payloadLength

    /// A write that must never be performed.
    private static func trap(_ headers: NBDClient.Headers) -> [UInt8] {
        NBDRequest(.writeZeroes, cookie: 666, offset: 0, length: 1 << 20).encoded(headers)
    }

    /// Requests that are refused, each with a payload that looks like requests, and the error.
    private static func refused(_ headers: NBDClient.Headers) -> [(NBDRequest, UInt32)] {
        let data = [[UInt8]](repeating: trap(headers), count: 64).flatMap { $0 }
        let end = UInt64(ServerHarness.byteCount)
        func request(
            _ command: TestSupport.NBD.Command, _ flags: UInt16 = 0, at offset: UInt64 = 0
        ) -> NBDRequest {
            var request = NBDRequest(
                command, flags: flags, offset: offset, length: UInt64(data.count), payload: data)
            request.omitsPayloadFlag = true
            return request
        }
        var all: [(NBDRequest, UInt32)] = [
            (request(.write, at: end), 28), (request(.write, at: .max - 3), 28),
            (request(.write, 1 << 12), 22), (request(.write, 1 << 1), 22),
        ]
        if headers == .extended {
            let commands: [TestSupport.NBD.Command] = [
                .read, .flush, .trim, .cache, .writeZeroes, .blockStatus, .unknown,
            ]
            for command in commands { all.append((request(command, payloadFlag), 22)) }
            all.append((request(.write, payloadFlag, at: end), 28))
        } else {
            // The flag means nothing here; a write's data follow all the same.
            all.append((request(.write, payloadFlag), 22))
        }
        return all
    }

    @Test(arguments: NBDClient.Headers.allCases, [1, 37, 100_000])
    func `takes its payload with it, whatever the command and the flags`(
        headers: NBDClient.Headers, pieceByteCount: Int
    ) async throws {
        let harness = try await ServerHarness()
        let device = try await harness.add()
        let client = try harness.connect(headers)
        for (request, code) in Self.refused(headers) {
            var request = request
            request.cookie = client.freshCookie()
            let bytes = request.encoded(headers)
            for start in stride(from: 0, to: bytes.count, by: pieceByteCount) {
                try client.send(Array(bytes[start..<min(start + pieceByteCount, bytes.count)]))
            }
            let chunk = try client.receiveChunk()
            #expect(chunk.cookie == request.cookie && chunk.error == code, "\(request.command)")
            // The next request is the next one that was sent.
            #expect(try client.read(0, 512).count == 512)
        }
        #expect(try await device.with { $0.seen.allSatisfy { $0.operation == .read } })
        await harness.stop()
    }

    @Test(arguments: NBDClient.Headers.allCases)
    func `of a read-only export takes its payload with it`(
        headers: NBDClient.Headers
    ) async throws {
        let harness = try await ServerHarness()
        let device = try await harness.add(isReadOnly: true)
        let client = try harness.connect(headers)
        let data = [[UInt8]](repeating: Self.trap(headers), count: 64).flatMap { $0 }
        for omitsFlag in [true, false] {
            var request = NBDRequest(.write, length: UInt64(data.count), payload: data)
            request.omitsPayloadFlag = omitsFlag
            #expect(try client.perform(request).error == 1)
            #expect(try client.read(0, 512).count == 512)
        }
        #expect(try await device.with { $0.seen.allSatisfy { $0.operation == .read } })
        await harness.stop()
    }

    @Test(arguments: NBDClient.Headers.allCases)
    func `of an export that goes away is not begun, and its payload is not read as requests`(
        headers: NBDClient.Headers
    ) async throws {
        let harness = try await ServerHarness()
        let device = try await harness.add()
        let client = try harness.connect(headers)
        try await device.with { $0.mode = .held }
        try client.send(NBDRequest(.read, cookie: 1, length: 512))
        try await device.waitForHeld(1)
        try await device.with { $0.closeUsers() }
        let data = [[UInt8]](repeating: Self.trap(headers), count: 64).flatMap { $0 }
        var write = NBDRequest(.write, cookie: 2, length: UInt64(data.count), payload: data)
        write.omitsPayloadFlag = true
        try client.send(write)
        try await device.with { $0.releaseHeld() }
        #expect(try client.receiveChunk { _ in 512 }.cookie == 1)
        #expect(throws: ConnectionEnded.self) { try client.receiveChunk() }
        #expect(try await device.with { $0.seen.count } == 1)
        await harness.stop()
    }
}
