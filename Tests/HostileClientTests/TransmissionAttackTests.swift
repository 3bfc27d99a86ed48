import Foundation
import Glibc
import TestSupport
import Testing

private let mebibyte = 1 << 20

/// What hostile clients do once the export is open.
@Suite(
    .serialized, .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Attacks on an open export` {
    @Test(arguments: NBDClient.Headers.allCases)
    func `a wrong magic ends this connection alone`(headers: NBDClient.Headers) throws {
        let victim = try Victim()
        let client = try victim.opened(headers)
        var bytes = NBDRequest(.read, length: 512).encoded(headers)
        bytes[0] ^= 0xff
        try client.send(bytes)
        try client.drainUntilClosed()
        // The other form of headers is a wrong magic too.
        let other = try victim.opened(headers)
        let wrong: NBDClient.Headers = headers == .extended ? .simple : .extended
        try other.send(NBDRequest(.read, length: 512).encoded(wrong))
        other.shutdownSending()
        try other.drainUntilClosed()
        try victim.expectUnharmed()
    }

    @Test(arguments: NBDClient.Headers.allCases)
    func `lengths at every border are answered without allocating them`(
        headers: NBDClient.Headers
    ) throws {
        let victim = try Victim()
        let before = try victim.peakKibibytes()
        var lengths: [UInt64] = [
            0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_f000, 0xffff_fffe, 0xffff_ffff,
        ]
        if headers == .extended { lengths += [1 << 32, 1 << 40, 1 << 62, 1 << 63, .max - 1, .max] }
        let offsets: [UInt64] = [
            0, 1, 4095, UInt64(Victim.byteCount) - 1, UInt64(Victim.byteCount), 1 << 32, 1 << 63,
            .max - 4095, .max,
        ]
        let contexts = headers == .simple ? [] : ["base:allocation"]
        let client = try victim.opened(headers, contexts: contexts)
        let commands: [NBD.Command] = [.read, .trim, .cache, .writeZeroes, .blockStatus, .flush]
        for command in commands {
            for offset in offsets {
                for length in lengths {
                    // The witness watches the first block: it must stay as it is.
                    if offset < 4096 && (command == .trim || command == .writeZeroes) { continue }
                    let reply = try client.perform(
                        NBDRequest(command, offset: offset, length: length))
                    let (end, overflows) = offset.addingReportingOverflow(length)
                    let isBeyond = overflows || end > UInt64(Victim.byteCount)
                    if isBeyond && command != .flush {
                        #expect(reply.error != nil, "\(command) of \(length) at \(offset)")
                    }
                }
            }
        }
        #expect(try victim.peakKibibytes() - before < 48 * 1024)
        try victim.expectUnharmed()
    }

    @Test func `CVE-2025-47711: block status of the largest length is counted right`() throws {
        // One extent of more than 4 GiB, asked for with lengths around 2^32.
        let victim = try Victim(byteCount: 9 << 30)
        let client = try victim.opened(contexts: ["base:allocation"])
        for length in [UInt64(0xffff_ffff), 0xffff_fe00, 0xffff_f000, 0x8000_0000, 0x7fff_ffff] {
            for offset: UInt64 in [4096, 4097, 1 << 32, (9 << 30) - 0xffff_ffff] {
                for flags in [0, NBD.CommandFlag.requestOne] {
                    let extents = try client.blockStatus(offset, length, flags: flags)
                    let total = extents.reduce(0) { $0 + $1.length }
                    #expect(extents.allSatisfy { $0.length > 0 && $0.flags == 3 })
                    #expect(total > 0 && offset + total <= 9 << 30)
                    if flags != 0 { #expect(extents.count == 1 && total <= length) }
                }
            }
        }
        try victim.expectUnharmed()
    }

    @Test func `CVE-2025-47712: zeroes and trims of the largest length are done right`() throws {
        let victim = try Victim(byteCount: 9 << 30)
        let client = try victim.opened()
        let mark = [UInt8](repeating: 1, count: 512)
        let start = UInt64(4096)
        let end = start + 0xffff_ffff
        for command in [NBD.Command.writeZeroes, .trim] {
            try client.write(start + (1 << 31), mark)
            try client.write(end - 512, mark)
            try client.write(end, mark)
            try client.succeed(NBDRequest(command, offset: start, length: 0xffff_ffff))
            #expect(try client.read(end, 512) == mark)
            if command == .writeZeroes {
                #expect(try client.read(start + (1 << 31), 512).allSatisfy { $0 == 0 })
                #expect(try client.read(end - 512, 512).allSatisfy { $0 == 0 })
            }
        }
        try victim.expectUnharmed()
    }

    @Test func `an answer about blocks is bounded however scattered they are`() throws {
        let victim = try Victim(byteCount: 64 << 20)
        let client = try victim.opened(contexts: ["base:allocation"])
        let block = [UInt8](repeating: 1, count: 4096)
        for offset in stride(from: UInt64(0), to: 64 << 20, by: 8192) {
            try client.write(offset, block)
        }
        // 16384 extents of 8 bytes; an answer has at most 256 KiB, and goes on where it ended.
        var position: UInt64 = 0
        var answers = 0
        while position < 64 << 20 {
            let extents = try client.blockStatus(position, (64 << 20) - position)
            #expect(extents.count <= 32768 && extents.allSatisfy { $0.length == 4096 })
            position += extents.reduce(0) { $0 + $1.length }
            answers += 1
        }
        #expect(answers >= 1 && answers < 256)
        try victim.expectAlive()
    }

    @Test(arguments: NBDClient.Headers.allCases)
    func `a write larger than allowed is refused and costs no memory`(
        headers: NBDClient.Headers
    ) throws {
        let victim = try Victim()
        let before = try victim.peakKibibytes()
        for length in [UInt64(33 * mebibyte), 0x8000_0000, 0xffff_ffff] {
            let client = try victim.opened(headers)
            let request = NBDRequest(.write, cookie: 5, offset: 0, length: length)
            do {
                try client.send(request)
                // The server may end the connection, or swallow all of it and say no.
                let part = [UInt8](repeating: 0, count: mebibyte)
                for _ in 0..<min(64, length / UInt64(mebibyte)) { try client.send(part) }
                if length == UInt64(33 * mebibyte) {
                    #expect(try client.receiveChunk().error != nil)
                }
            } catch is ConnectionEnded {}
        }
        #expect(try victim.peakKibibytes() - before < 64 * 1024)
        try victim.expectUnharmed()
    }

    @Test func `requests without end cost bounded memory when replies are not read`() throws {
        let victim = try Victim()
        let before = try victim.peakKibibytes()
        let client = try victim.opened(.simple)
        _ = fcntl(client.descriptor, F_SETFL, O_NONBLOCK)
        let request = NBDRequest(.read, length: UInt64(mebibyte)).encoded(.simple)
        // Until neither side takes anything more, or a bound far beyond any reasonable one.
        var sent = 0
        let end = monotonicSeconds() + 60
        while sent < 1_000_000 && monotonicSeconds() < end {
            let count = request.withUnsafeBytes {
                send(client.descriptor, $0.baseAddress!, $0.count, Int32(MSG_NOSIGNAL))
            }
            if count < 0 && errno == EAGAIN {
                // Full. The witness being served shows that the service has had its turn.
                try victim.expectUnharmed()
                var entry = pollfd(fd: client.descriptor, events: Int16(POLLOUT), revents: 0)
                if poll(&entry, 1, 500) == 0 { break }
            } else if count < 0 {
                break
            }
            sent += 1
        }
        print("\(sent) requests of 1 MiB sent without reading a reply")
        #expect(sent < 1_000_000)
        #expect(try victim.peakKibibytes() - before < 128 * 1024)
        try victim.expectUnharmed()
    }

    @Test func `payloads that never come hold no one else up`() throws {
        let victim = try Victim()
        var stalled: [NBDClient] = []
        for index in 0..<32 {
            let client = try victim.opened()
            try client.send(
                NBDRequest(.write, offset: 8192, length: UInt64(4 * mebibyte)))
            if index.isMultiple(of: 2) { try client.send([UInt8](repeating: 1, count: 100_000)) }
            stalled.append(client)
        }
        let start = monotonicSeconds()
        for _ in 0..<20 { try victim.expectUnharmed() }
        // A connection that holds a buffer without progress is closed after 10 s: up to then others
        // may wait for a buffer, but not longer.
        #expect(monotonicSeconds() - start < 60)
        withExtendedLifetime(stalled) {}
    }

    @Test func `CVE-2024-7409: clients that hold their sockets do not hold up a stop`() throws {
        let victim = try Victim()
        var clients: [NBDClient] = []
        for index in 0..<60 {
            switch index % 4 {
            case 0: clients.append(try victim.connect())
            case 1: clients.append(try victim.greeted())
            case 2:
                let client = try victim.opened()
                try client.send(
                    NBDRequest(.write, offset: 8192, length: 65536, payload: [1, 2, 3]))
                clients.append(client)
            default:
                let client = try victim.opened()
                for _ in 0..<8 {
                    try client.send(NBDRequest(.read, length: UInt64(4 * mebibyte)))
                }
                clients.append(client)
            }
        }
        #expect(try victim.service.stop() == .exited(0))
        withExtendedLifetime(clients) {}
    }

    @Test func `mutated sessions end alone`() throws {
        var generator = SeededGenerator.announced("mutated sessions")
        let victim = try Victim()
        let before = try victim.peakKibibytes()
        let rounds = scaled(4000, "mutated sessions")
        for round in 0..<rounds {
            let headers = NBDClient.Headers.allCases[round % 3]
            let client = try victim.opened(
                headers, contexts: headers == .simple ? [] : ["base:allocation"])
            var bytes: [UInt8] = []
            for _ in 0..<Int.random(in: 1...12, using: &generator) {
                bytes += randomRequest(headers, &generator)
            }
            for _ in 0..<Int.random(in: 0...6, using: &generator) {
                let index = Int.random(in: 0..<bytes.count, using: &generator)
                switch Int.random(in: 0..<3, using: &generator) {
                case 0: bytes[index] ^= UInt8(1 << Int.random(in: 0..<8, using: &generator))
                case 1: bytes[index] = UInt8.random(in: 0...255, using: &generator)
                default: bytes.removeSubrange(index..<min(bytes.count, index + 3))
                }
                if bytes.isEmpty { bytes = [0] }
            }
            do {
                try client.send(bytes)
                client.shutdownSending()
                try client.drainUntilClosed()
            } catch is ConnectionEnded {}
            if round.isMultiple(of: 50) { try victim.expectAlive() }
        }
        try victim.expectAlive()
        #expect(try victim.peakKibibytes() - before < 128 * 1024)
    }

    /// A proper request, small, at a random place.
    private func randomRequest(
        _ headers: NBDClient.Headers, _ generator: inout SeededGenerator
    ) -> [UInt8] {
        let commands: [NBD.Command] = [
            .read, .write, .flush, .trim, .cache, .writeZeroes, .blockStatus,
        ]
        let command = commands.randomElement(using: &generator)!
        let length = Int.random(in: 1...2000, using: &generator)
        let payload = command == .write ? generator.bytes(length) : []
        return NBDRequest(
            command, flags: UInt16.random(in: 0..<8, using: &generator) == 0 ? 1 : 0,
            cookie: generator.next(),
            offset: UInt64.random(in: 0..<UInt64(Victim.byteCount), using: &generator),
            length: UInt64(length), payload: payload
        ).encoded(headers)
    }
}
