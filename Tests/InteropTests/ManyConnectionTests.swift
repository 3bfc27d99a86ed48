import Foundation
import Glibc
import TestSupport
import Testing

private let mebibyte = 1 << 20

/// One service, many clients.
@Suite(
    .serialized, .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Many connections` {
    init() {
        // Two sockets per connection at most, and some to spare.
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        limit.rlim_cur = min(limit.rlim_max, 4096)
        setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    }

    @Test(arguments: TestService.Transport.allCases)
    func `500 idle connections stay open and cost less than 64 MiB`(
        transport: TestService.Transport
    ) throws {
        let served = try ServedOrigin(
            Setting(kind: .sparseFile, transport: transport), byteCount: 16 * mebibyte)
        // Whatever the first connection sets up once is no cost of a connection.
        let first = try served.client()
        #expect(try first.read(0, 4096).count == 4096)
        let before = try served.service.statusKibibytes("VmRSS")
        let idle = try (0..<500).map { _ in try served.client(contexts: ["base:allocation"]) }
        for client in idle { #expect(try client.read(0, 512).count == 512) }
        let after = try served.service.statusKibibytes("VmRSS")
        print("500 idle connections over \(transport): \(after - before) KiB")
        #expect(after - before < 64 * 1024)
        for client in idle.reversed() { #expect(try client.read(4096, 512).count == 512) }
    }

    @Test(arguments: TestService.Transport.allCases)
    func `64 busy connections progress fairly`(transport: TestService.Transport) throws {
        let served = try ServedOrigin(
            Setting(kind: .tmpfsFile, transport: transport), byteCount: 64 * mebibyte)
        let clients = try (0..<64).map { _ in try served.client(.simple) }
        var generator = SeededGenerator.announced("64 busy connections")
        var completed = [Int](repeating: 0, count: clients.count)
        func ask(_ index: Int) throws {
            let block = UInt64.random(in: 0..<UInt64(64 * mebibyte / 4096), using: &generator)
            try clients[index].send(NBDRequest(.read, offset: block * 4096, length: 4096))
        }
        for index in clients.indices { for _ in 0..<4 { try ask(index) } }
        let target = 64 * 1500
        var total = 0
        let end = monotonicSeconds() + 300
        // Every ready connection gets one reply read and one request sent per round, so that what
        // is unfair here is the server.
        while total < target {
            var entries = clients.map {
                pollfd(fd: $0.descriptor, events: Int16(POLLIN), revents: 0)
            }
            guard poll(&entries, nfds_t(entries.count), 60_000) > 0, monotonicSeconds() < end else {
                throw TestFailure("no progress after \(total) replies")
            }
            for (index, entry) in entries.enumerated() where entry.revents != 0 {
                let chunk = try clients[index].receiveChunk { _ in 4096 }
                #expect(chunk.error == nil)
                completed[index] += 1
                total += 1
                try ask(index)
            }
        }
        let mean = Double(total) / 64
        let slowest = completed.min() ?? 0
        print("64 busy connections over \(transport): mean \(mean), slowest \(slowest)")
        #expect(Double(slowest) >= mean / 2)
    }

    @Test(arguments: TestService.Transport.allCases)
    func `a client that stops reading its replies holds no one else up`(
        transport: TestService.Transport
    ) throws {
        let served = try ServedOrigin(
            Setting(kind: .tmpfsFile, transport: transport), byteCount: 64 * mebibyte, loops: 1)
        let stalled = try (0..<4).map { _ in try served.client(.simple) }
        for client in stalled {
            for index in 0..<32 {
                try client.send(
                    NBDRequest(.read, cookie: UInt64(index), length: UInt64(2 * mebibyte)))
            }
        }
        let other = try served.client()
        var slowestSeconds = 0.0
        for index in 0..<500 {
            let start = monotonicSeconds()
            let bytes = [UInt8](repeating: UInt8(index % 251), count: 65536)
            try other.write(UInt64(index % 64 * 65536), bytes)
            #expect(try other.read(UInt64(index % 64 * 65536), 65536) == bytes)
            slowestSeconds = max(slowestSeconds, monotonicSeconds() - start)
        }
        print("slowest of 500 beside stalled clients over \(transport): \(slowestSeconds) s")
        // Usually far below a hundredth of a second; this detects waiting for the stalled ones.
        #expect(slowestSeconds < 5)
        // Who reads on gets the rest, unless the server gave the connection up meanwhile.
        do {
            for _ in 0..<32 {
                let chunk = try stalled[0].receiveChunk { _ in 2 * mebibyte }
                #expect(chunk.error == nil)
            }
        } catch is ConnectionEnded {}
    }

    @Test func `what one connection flushed another one's writes too`() throws {
        let served = try ServedOrigin(
            Setting(kind: .sparseFile, transport: .unix), byteCount: mebibyte)
        let clients = try (0..<4).map { _ in try served.client() }
        #expect(clients.allSatisfy { $0.flags & NBD.TransmissionFlag.canMultiConn != 0 })
        for round in 0..<50 {
            let bytes = [UInt8](repeating: UInt8(round), count: 4096)
            try clients[round % 4].write(UInt64(round * 4096), bytes)
            try clients[(round + 1) % 4].succeed(NBDRequest(.flush))
            #expect(try clients[(round + 2) % 4].read(UInt64(round * 4096), 4096) == bytes)
        }
    }
}
