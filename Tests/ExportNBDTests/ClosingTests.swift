import BlockModel
import Glibc
import RingIO
import TestSupport
import Testing

@testable import ExportNBD

@Suite struct `Connections end` {
    @Test func `with DISC, after the requests before it are answered`() async throws {
        let harness = try await ServerHarness()
        let device = try await harness.add()
        try await device.with { $0.mode = .held }
        let client = try harness.connect()
        try client.send(NBDRequest(.read, cookie: 1, length: 100))
        try client.send(NBDRequest(.disconnect))
        try await device.waitForHeld(1)
        try await device.with { $0.releaseHeld() }
        #expect(try client.receiveChunk(readLength: { _ in 100 }).cookie == 1)
        try client.drainUntilClosed()
        try await harness.waitForConnections(0)
        #expect(try await device.with { $0.userCount } == 0)
        await harness.stop()
    }

    @Test(arguments: 0..<6)
    func `at once when the client vanishes with requests in flight`(round: Int) async throws {
        let harness = try await ServerHarness()
        let device = try await harness.add()
        try await device.with { $0.mode = .held }
        do {
            let client = try harness.connect()
            try client.send(NBDRequest(.read, cookie: 1, length: 1 << 20))
            try client.send(
                NBDRequest(
                    .write, cookie: 2, length: 4096, payload: [UInt8](repeating: 1, count: 4096)))
            try await device.waitForHeld(2)
            // Vanishing in the middle of a header, or of a payload.
            if round % 3 == 1 { try client.send([0x25, 0x60, 0x95]) }
            if round % 3 == 2 { try client.send(NBDRequest(.write, cookie: 3, length: 65536)) }
            if round >= 3 { client.shutdownSending() }
        }
        try await device.with { $0.releaseHeld() }
        try await harness.waitForConnections(0)
        #expect(try await device.with { $0.userCount } == 0)
        await harness.stop()
    }

    @Test(arguments: NBDClient.Headers.allCases)
    func `alone, when they break the protocol`(headers: NBDClient.Headers) async throws {
        let harness = try await ServerHarness()
        _ = try await harness.add()
        let other = try harness.connect(headers)
        let client = try harness.connect(headers)
        var bytes = NBDRequest(.read, length: 512).encoded(headers)
        bytes[3] ^= 1
        try client.send(bytes)
        try client.drainUntilClosed()
        #expect(try other.read(0, 16).count == 16)
        await harness.stop()
    }

    /// A client that connects again asks once more for what got no answer, and hands an error on.
    @Test func `when the server stops, after what is under way is answered, and nothing else is`()
        async throws
    {
        // Limits are no part of this: other tests may hold this one up for long, with half a write
        // sent.
        let harness = try await ServerHarness {
            $0.stopNanoseconds = 1_000_000_000_000
            $0.session.stallNanoseconds = 1_000_000_000_000
        }
        let device = try await harness.add()
        try await device.with { $0.mode = .held }
        let client = try harness.connect()
        let idle = try harness.connect()
        let halfOpen = try NBDClient(.unix(path: harness.socketPath))
        try client.send(NBDRequest(.read, cookie: 1, length: 512))
        let write = NBDRequest(
            .write, cookie: 2, length: 70_000, payload: [UInt8](repeating: 1, count: 70_000)
        ).encoded(.structured)
        try client.send(write.part(0..<1000))
        try await device.waitForHeld(1)
        async let stopped: Void = harness.stop()
        // Not by reads that block: the stop needs a thread of the pool that this test runs on.
        let told: Result<Void, any Error>
        do {
            told = .success(try await harness.waitForConnections(1))
        } catch { told = .failure(error) }
        let sent = Result {
            try told.get()
            try idle.drainUntilClosed()
            try halfOpen.drainUntilClosed()
            // All were told in one go: what is asked from now on, or was not complete, is not begun.
            try client.send(write.part(1000..<write.count))
            try client.send(NBDRequest(.read, cookie: 3, length: 512))
            try client.send(
                NBDRequest(
                    .write, cookie: 4, length: 512, payload: [UInt8](repeating: 1, count: 512)))
        }
        // The stop waits for it, whatever was found.
        try await device.with { $0.releaseHeld() }
        try sent.get()
        #expect(try client.receiveChunk(readLength: { _ in 512 }).cookie == 1)
        #expect(throws: ConnectionEnded.self) { try client.receiveChunk() }
        await stopped
        #expect(access(harness.socketPath, F_OK) != 0)
    }

    @Test func `when their device closes`() async throws {
        let harness = try await ServerHarness()
        let device = try await harness.add()
        let other = try await harness.add("other")
        let client = try harness.connect()
        let stays = try harness.connect(export: "other")
        #expect(try client.read(0, 16).count == 16)
        try await device.with { $0.closeUsers() }
        try client.drainUntilClosed()
        try await waitUntil { try await device.with { $0.userCount } == 0 }
        #expect(try stays.read(0, 16).count == 16)
        #expect(try await other.with { $0.userCount } == 1)
        await harness.stop()
    }

    @Test func `at once when their device is closing already`() async throws {
        let harness = try await ServerHarness()
        let device = try await harness.add()
        // An export that was looked up just before it was withdrawn.
        try await device.with { $0.closeUsers() }
        let late = try harness.connect()
        try late.drainUntilClosed()
        try await harness.waitForConnections(0)
        #expect(try await device.with { $0.userCount } == 0)
        await harness.stop()
    }

    @Test func `in bounded time when clients do not let go`() async throws {
        let harness = try await ServerHarness { $0.stopNanoseconds = 200_000_000 }
        _ = try await harness.add()
        var clients: [NBDClient] = []
        for index in 0..<12 {
            let client = try harness.connect()
            if index % 3 == 1 {
                for _ in 0..<8 { try client.send(NBDRequest(.read, length: 4 << 20)) }
            }
            if index % 3 == 2 { try client.send(NBDRequest(.write, length: 65536)) }
            clients.append(client)
        }
        await harness.stop()
        withExtendedLifetime(clients) {}
    }
}

@Suite struct `Listening` {
    private func server(
        _ addresses: [NBDEndpoint], _ loop: LoopThread, allowsPlaintext: Bool = false,
        busyPortNanoseconds: UInt64 = 3_000_000_000
    ) -> NBDServer {
        var configuration = NBDServerConfiguration(endpoints: addresses)
        if allowsPlaintext { configuration.exposureRefusal = nil }
        configuration.busyPortNanoseconds = busyPortNanoseconds
        return NBDServer(directory: TestDirectory(), loops: [loop], configuration: configuration)
    }

    private func failure(_ addresses: [NBDEndpoint]) async throws -> NBDServerError {
        let loop = try LoopThread(index: 0, configuration: LoopConfiguration())
        defer { loop.stopAndJoin() }
        let server = server(addresses, loop)
        let error = await #expect(throws: NBDServerError.self) { try await server.start() }
        return try #require(error)
    }

    @Test func `a socket is private, and its path is free again afterwards`() async throws {
        let harness = try await ServerHarness()
        var facts = stat()
        #expect(lstat(harness.socketPath, &facts) == 0)
        #expect(facts.st_mode & 0o7777 == 0o600)
        await harness.stop()
        #expect(lstat(harness.socketPath, &facts) != 0)
    }

    @Test func `a live socket is refused, a stale one replaced`() async throws {
        let harness = try await ServerHarness()
        let error = try await failure([.unix(path: harness.socketPath)])
        #expect(error.kind == .busy && error.message.contains(harness.socketPath))
        #expect(try NBDClient(.unix(path: harness.socketPath)).greet() == 3)
        await harness.stop()

        let files = try TemporaryDirectory()
        let path = files.path("stale.sock")
        let stale = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        var name = sockaddr_un()
        name.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: path.utf8) }
        let bound = withUnsafePointer(to: &name) { name in
            name.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(stale, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        #expect(bound == 0)
        close(stale)
        let loop = try LoopThread(index: 0, configuration: LoopConfiguration())
        let server = server([.unix(path: path)], loop)
        try await server.start()
        #expect(try NBDClient(.unix(path: path)).greet() == 3)
        await server.stop()
        loop.stopAndJoin()
    }

    /// A killed service's port is free some time after its process is gone.
    @Test func `a TCP port in use is waited for, and refused when it stays so`() async throws {
        let loop = try LoopThread(index: 0, configuration: LoopConfiguration())
        let port = try TestService.freePort()
        let address = NBDEndpoint.tcp(host: "127.0.0.1", port: port)
        let holder = server([address], loop)
        try await holder.start()
        let hasty = server([address], loop, busyPortNanoseconds: 100_000_000)
        let error = await #expect(throws: NBDServerError.self) { try await hasty.start() }
        #expect(error?.kind == .busy && error?.message.contains("\(port) is in use") == true)
        let patient = server([address], loop, busyPortNanoseconds: 600_000_000_000)
        let starting = Task { try await patient.start() }
        // It finds the port in use at first; were it slower than this, it would find it free.
        let began = ContinuousClock.now
        try await waitUntil { ContinuousClock.now - began > .milliseconds(100) }
        await holder.stop()
        try await starting.value
        #expect(try NBDClient(.tcp(port: port)).greet() == 3)
        await patient.stop()
        loop.stopAndJoin()
    }

    @Test func `what cannot be an address is refused with a reason`() async throws {
        let files = try TemporaryDirectory()
        let plain = files.path("file")
        close(open(plain, O_CREAT | O_WRONLY, 0o600))
        #expect(try await failure([.unix(path: plain)]).kind == .busy)
        #expect(access(plain, F_OK) == 0)
        let long = "/" + String(repeating: "x", count: 107)
        #expect(try await failure([.unix(path: long)]).message.contains("107"))
        #expect(try await failure([.unix(path: files.path("none/x"))]).kind == .failed)
        let open = try await failure([.tcp(host: "0.0.0.0", port: 0)])
        #expect(open.kind == .refused && open.message.contains("--allow-plaintext"))
        // The first of two is not left behind.
        let first = files.path("first.sock")
        _ = try await failure([.unix(path: first), .unix(path: plain)])
        #expect(access(first, F_OK) != 0)
    }

    @Test(arguments: [
        ("127.0.0.1", true), ("127.255.1.2", true), ("127.1", true), ("0x7f.1", true),
        ("::1", true), ("0:0::1", true), ("128.0.0.1", false), ("12.7.0.1", false),
        ("1.127.0.0", false), ("::127.0.0.1", false), ("1::1", false), ("::", false),
        ("::ffff:192.0.2.1", false),
    ])
    func `CVE-2013-6410: an address is loopback by its bytes, not by its text`(
        host: String, isLoopback: Bool
    ) {
        let problem = NBDServer.listenProblem(.tcp(host: host, port: 1), .withoutTLS)
        #expect((problem == nil) == isLoopback, "\(problem ?? host)")
    }

    @Test func `connections beyond the limit are closed at once`() async throws {
        let harness = try await ServerHarness { $0.connectionCountMax = 3 }
        _ = try await harness.add()
        let clients = try (0..<3).map { _ in try harness.connect() }
        try NBDClient(.unix(path: harness.socketPath)).drainUntilClosed()
        for client in clients { #expect(try client.read(0, 16).count == 16) }
        await harness.stop()
    }

    @Test func `idle handshakes give way to new ones`() async throws {
        let harness = try await ServerHarness { $0.handshakeCountMax = 4 }
        _ = try await harness.add()
        let idle = try (0..<4).map { _ in try NBDClient(.unix(path: harness.socketPath)) }
        for client in idle { #expect(try client.greet() == 3) }
        let real = try harness.connect()
        #expect(try real.read(0, 16).count == 16)
        try idle[0].drainUntilClosed()
        #expect(try idle[3].negotiate(TestSupport.NBD.Option.list).count == 2)
        await harness.stop()
    }

    @Test func `a handshake has a time limit`() async throws {
        let harness = try await ServerHarness { $0.handshakeNanoseconds = 100_000_000 }
        _ = try await harness.add()
        let open = try harness.connect()
        let idle = try NBDClient(.unix(path: harness.socketPath))
        #expect(try idle.greet() == 3)
        try idle.drainUntilClosed()
        #expect(try open.read(0, 16).count == 16)
        await harness.stop()
    }
}
