import BlockModel
import Glibc
import RingIO
import TestSupport
import Testing

@testable import ExportNBD

@Suite struct `Under pressure` {
    /// A loop with little of everything.
    private var small: LoopConfiguration {
        var configuration = LoopConfiguration()
        configuration.bufferPoolBytes = 64 << 20
        configuration.requestCapacity = 16
        configuration.receiveBufferBytes = 4096
        configuration.receiveBufferCount = 2
        return configuration
    }

    @Test func `more requests than there is room for are served in turn`() async throws {
        let harness = try await ServerHarness(loop: small) { $0.session.requestCount = 4 }
        let device = try await harness.add()
        let client = try harness.connect(.simple)
        try await device.with { $0.mode = .held }
        var bytes: [UInt8] = []
        for index in 0..<100 {
            bytes += NBDRequest(
                .write, cookie: UInt64(index), offset: UInt64(index) * 300, length: 300,
                payload: [UInt8](repeating: UInt8(index), count: 300)
            ).encoded(.simple)
        }
        try client.send(bytes)
        try await device.waitForHeld(4)
        #expect(try await device.with { $0.seen.count } == 4)
        try await device.with { target in
            target.mode = .atOnce
            target.releaseHeld(reversed: true)
        }
        var cookies: Set<UInt64> = []
        for _ in 0..<100 { cookies.insert(try client.receiveChunk().cookie) }
        #expect(cookies == Set(0..<100))
        #expect(
            try await device.bytes(0..<30000) == (0..<30000).map { UInt8($0 / 300) })
        await harness.stop()
    }

    @Test func `connections without room wait for each other and all are served`() async throws {
        let harness = try await ServerHarness(loop: small)
        let device = try await harness.add()
        let clients = try (0..<6).map { _ in try harness.connect(.structured) }
        try await device.with { $0.mode = .held }
        for (number, client) in clients.enumerated() {
            for index in 0..<20 {
                try client.send(
                    NBDRequest(
                        .write, cookie: UInt64(index), offset: UInt64(number * 20 + index) * 5000,
                        length: 5000, payload: [UInt8](repeating: UInt8(number + 1), count: 5000)))
            }
        }
        try await device.waitForHeld(6)
        try await device.with { target in
            target.mode = .atOnce
            target.releaseHeld()
        }
        for client in clients {
            for _ in 0..<20 { #expect(try client.receiveChunk().error == nil) }
        }
        #expect(
            try await device.bytes(0..<600_000) == (0..<600_000).map { UInt8($0 / 100_000 + 1) })
        await harness.stop()
    }

    @Test func `a request that came in pieces and finds no room twice is served later`()
        async throws
    {
        let harness = try await ServerHarness { $0.session.requestCount = 2 }
        let device = try await harness.add()
        let other = try harness.connect(.simple)
        let client = try harness.connect(.simple)
        try await device.with { $0.mode = .held }
        var bytes: [UInt8] = []
        for cookie in 0..<2 {
            bytes += NBDRequest(.read, cookie: UInt64(cookie), length: 512).encoded(.simple)
        }
        try client.send(bytes)
        try await device.waitForHeld(2)
        try await device.with { $0.mode = .atOnce }
        let third = NBDRequest(.read, cookie: 2, length: 512).encoded(.simple)
        try client.send(Array(third[..<10]))
        // What was sent before this was answered has come in.
        #expect(try other.read(0, 512).count == 512)
        try client.send(third[10...] + NBDRequest(.flush, cookie: 3).encoded(.simple))
        // Each gives back what somebody may wait for, but not what this client waits for.
        for _ in 0..<3 { #expect(try other.read(0, 512).count == 512) }
        try await device.with { $0.releaseHeld() }
        var cookies: Set<UInt64> = []
        for _ in 0..<4 {
            cookies.insert(try client.receiveChunk { $0 == 3 ? 0 : 512 }.cookie)
        }
        #expect(cookies == [0, 1, 2, 3])
        await harness.stop()
    }

    @Test func `a client that reads nothing holds no one else up and is ended`() async throws {
        let harness = try await ServerHarness { $0.session.stallNanoseconds = 300_000_000 }
        _ = try await harness.add()
        let deaf = try harness.connect(.simple)
        for index in 0..<64 {
            try deaf.send(NBDRequest(.read, cookie: UInt64(index), length: 1 << 20))
        }
        let other = try harness.connect()
        for _ in 0..<100 { #expect(try other.read(0, 4096).count == 4096) }
        try await harness.waitForConnections(1)
        #expect(try other.read(0, 4096).count == 4096)
        await harness.stop()
    }

    @Test(arguments: [1, 16, 200])
    func `clients that read nothing leave the others their share, for as long as they stay`(
        count: Int
    ) async throws {
        let mebibyte = 1 << 20
        let harness = try await ServerHarness { $0.session.stallNanoseconds = 3_600_000_000_000 }
        let device = try await harness.add()
        let good = try harness.connect()
        // What it has taken speaks for it.
        for _ in 0..<80 { #expect(try good.read(0, mebibyte).count == mebibyte) }
        var silent: [NBDClient] = []
        for _ in 0..<count {
            let client = try harness.connect(.simple)
            try client.send(
                (0..<200).flatMap {
                    NBDRequest(.read, cookie: UInt64($0), length: UInt64(mebibyte))
                        .encoded(.simple)
                })
            silent.append(client)
        }
        try await waitUntil {
            let used = try await device.with {
                $0.loop.buffers.capacityBytes - $0.loop.buffers.freeBytes
            }
            return used >= min(count, 64) * mebibyte
        }
        let newcomer = try harness.connect()
        for number in 0..<200 {
            for client in [good, newcomer] {
                try client.write(UInt64(number) * 4096, [UInt8](repeating: 1, count: 4096))
                #expect(try client.read(UInt64(number) * 4096, 4096).count == 4096)
            }
        }
        for _ in 0..<20 { #expect(try good.read(0, mebibyte).count == mebibyte) }
        #expect(harness.server.connections == count + 2, "the others are still there")
        silent = []
        await harness.stop()
    }

    @Test func `many large reads of one client are begun in turns of their own`() async throws {
        let harness = try await ServerHarness()
        let device = try await harness.add()
        let client = try harness.connect(.simple)
        // In pieces that end within a header, and many in one.
        let length = 256 << 10
        let bytes = (0..<100).flatMap {
            NBDRequest(.read, cookie: UInt64($0), length: UInt64(length)).encoded(.simple)
        }
        try client.send(Array(bytes[..<500]))
        for _ in 0..<5 { _ = try client.receiveChunk { _ in length } }
        try client.send(Array(bytes[500...]))
        for _ in 5..<100 {
            #expect(try client.receiveChunk { _ in length }.payload.count == length)
        }
        // A turn's end begins what the next turn may.
        #expect(try await device.with { $0.readBytesInATurn } <= 2 << 20)
        #expect(try await device.with { $0.seen.count } == 100)
        await harness.stop()
    }

    @Test func `what was written is no longer held for a client that takes no answers`()
        async throws
    {
        let harness = try await ServerHarness { $0.session.stallNanoseconds = 3_600_000_000_000 }
        let device = try await harness.add()
        let deaf = try harness.connect(.simple)
        var size: Int32 = 4096
        setsockopt(deaf.descriptor, SOL_SOCKET, SO_RCVBUF, &size, 4)
        // A large reply fills the socket; what follows is performed all the same.
        var bytes = NBDRequest(.read, length: 3 << 20).encoded(.simple)
        for cookie in 1...40 {
            bytes += NBDRequest(
                .write, cookie: UInt64(cookie), length: 65536,
                payload: [UInt8](repeating: 1, count: 65536)
            ).encoded(.simple)
        }
        try deaf.send(bytes)
        try await waitUntil {
            try await device.with { $0.seen.filter { $0.operation == .write }.count } == 40
        }
        let used = try await device.with {
            $0.loop.buffers.capacityBytes - $0.loop.buffers.freeBytes
        }
        #expect(used == 4 << 20, "the read's buffer alone")
        #expect(try deaf.receive(16 + (3 << 20)).count == 16 + (3 << 20))
        for _ in 1...40 { #expect(try deaf.receiveChunk().error == nil) }
        await harness.stop()
    }

    @Test func `sending on does not excuse reading nothing`() async throws {
        let harness = try await ServerHarness { $0.session.stallNanoseconds = 300_000_000 }
        _ = try await harness.add()
        let deaf = try harness.connect(.simple)
        for index in 0..<4 {
            try deaf.send(NBDRequest(.read, cookie: UInt64(index), length: 1 << 20))
        }
        // Fewer than may be unanswered, spread over four times the limit.
        var sentCount = 0
        var hangup = pollfd(fd: deaf.descriptor, events: 0, revents: 0)
        while sentCount < 60, poll(&hangup, 1, 20) == 0 {
            do { try deaf.send(NBDRequest(.flush)) } catch is ConnectionEnded { break }
            sentCount += 1
        }
        #expect(sentCount < 60)
        try await harness.waitForConnections(0)
        await harness.stop()
    }

    @Test(arguments: [10, 100_000])
    func `a payload that never comes ends its connection`(sentByteCount: Int) async throws {
        let harness = try await ServerHarness { $0.session.stallNanoseconds = 300_000_000 }
        _ = try await harness.add()
        let client = try harness.connect()
        try client.send(NBDRequest(.write, cookie: 1, length: 1 << 20))
        try client.send([UInt8](repeating: 1, count: sentByteCount))
        try client.drainUntilClosed()
        try await harness.waitForConnections(0)
        await harness.stop()
    }

    @Test func `idle connections own no buffers and stay`() async throws {
        let harness = try await ServerHarness(loop: small) {
            $0.session.stallNanoseconds = 100_000_000
        }
        let device = try await harness.add()
        let clients = try (0..<50).map { _ in try harness.connect() }
        for client in clients { #expect(try client.read(0, 512).count == 512) }
        let free = await device.thread.mailbox.run {
            $0.buffers.capacityBytes - $0.buffers.freeBytes
        }
        #expect(free == 0)
        for client in clients.reversed() { #expect(try client.read(0, 512).count == 512) }
        await harness.stop()
    }
}
