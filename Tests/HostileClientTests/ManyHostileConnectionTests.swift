import Foundation
import Glibc
import TestSupport
import Testing

/// Thousands of clients that mean ill, one after the other and beside each other.
@Suite(
    .serialized, .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Thousands of hostile connections` {
    /// What one of them does.
    private enum Attack: CaseIterable {
        case garbage, stopHalfway, flood, hugeReads, vanishInFlight, holdReplies
    }

    /// Connections that hold their replies back at a time: each may keep what one may hold of the
    /// loop's buffers until its time without progress is over.
    private static let heldCount = 16

    @Test func `leave memory, descriptors and the latency of others as they were`() throws {
        var generator = SeededGenerator.announced("hostile connections")
        let victim = try Victim()
        var held: [NBDClient] = []
        // What the first ones set up once is no cost of a connection.
        for index in 0..<120 { try attack(victim, index, &held, &generator) }
        held = []
        try awaitDescriptors(
            victim, atMost: try victim.service.openDescriptors().count, isFirst: true)
        let before = try measure(victim)
        let count = scaled(10_000, "hostile connections")
        for index in 0..<count {
            try attack(victim, index, &held, &generator)
            if index.isMultiple(of: 100) { try victim.expectAlive() }
        }
        let during = try medianMicroseconds(victim)
        held = []
        try awaitDescriptors(victim, atMost: before.descriptors, isFirst: false)
        let after = try measure(victim)
        print(
            """
            \(count) hostile connections: median latency \(before.microseconds) us before, \
            \(during) us with \(Self.heldCount) that hold replies, \(after.microseconds) us after; \
            memory \(before.kibibytes) KiB before, \(after.kibibytes) KiB after; descriptors \
            \(before.descriptors) before, \(after.descriptors) after
            """)
        #expect(after.descriptors <= before.descriptors)
        #expect(after.kibibytes - before.kibibytes < 8 * 1024)
        // Usually the same; others use this machine too.
        #expect(after.microseconds < before.microseconds * 3 + 200)
        #expect(during < before.microseconds * 5 + 500)
        #expect(try victim.service.stop() == .exited(0))
    }

    private func attack(
        _ victim: Victim, _ index: Int, _ held: inout [NBDClient],
        _ generator: inout SeededGenerator
    ) throws {
        do {
            switch Attack.allCases[index % Attack.allCases.count] {
            case .garbage:
                let client = try victim.connect()
                try client.send(generator.bytes(Int.random(in: 1...5000, using: &generator)))
            case .stopHalfway:
                let client = try victim.opened()
                let request = NBDRequest(
                    .write, offset: 4096, length: 65536,
                    payload: [UInt8](repeating: 7, count: 65536)
                ).encoded(.structured)
                try client.send(
                    Array(request.prefix(Int.random(in: 1..<request.count, using: &generator))))
                if Bool.random(using: &generator) { client.shutdownSending() }
            case .flood:
                let client = try victim.opened(.simple)
                var bytes: [UInt8] = []
                for cookie in 0..<500 {
                    bytes += NBDRequest(.read, cookie: UInt64(cookie), length: 512)
                        .encoded(.simple)
                }
                // It takes none of the replies, and so cannot send all of it for ever.
                _ = bytes.withUnsafeBytes {
                    send(
                        client.descriptor, $0.baseAddress!, $0.count,
                        Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT))
                }
            case .hugeReads:
                let headers: NBDClient.Headers =
                    Bool.random(using: &generator) ? .extended : .simple
                let client = try victim.opened(headers)
                let length: UInt64 = headers == .extended ? 4 << 30 : 0xffff_ffff
                #expect(try client.perform(NBDRequest(.read, length: length)).error != nil)
            case .vanishInFlight:
                let client = try victim.opened()
                for _ in 0..<128 { try client.send(NBDRequest(.read, length: 65536)) }
                // A reset instead of a proper end, where the transport knows one.
                var linger = linger(l_onoff: 1, l_linger: 0)
                setsockopt(
                    client.descriptor, SOL_SOCKET, SO_LINGER, &linger,
                    socklen_t(MemoryLayout.size(ofValue: linger)))
            case .holdReplies:
                let client = try victim.opened()
                for _ in 0..<8 { try client.send(NBDRequest(.read, length: 1 << 20)) }
                held.append(client)
                if held.count > Self.heldCount { held.removeFirst() }
            }
        } catch is ConnectionEnded {
            // The server had enough, which is its right.
        }
    }

    // MARK: What must be as before

    private struct State {
        var kibibytes: Int
        var descriptors: Int
        var microseconds: Int
    }

    private func measure(_ victim: Victim) throws -> State {
        State(
            kibibytes: try victim.service.residentKibibytesWithoutBuffers(),
            descriptors: try victim.service.openDescriptors().count,
            microseconds: try medianMicroseconds(victim))
    }

    /// Waits until the service has closed what its clients closed: at first until the number does
    /// not fall any more, later for the number known.
    private func awaitDescriptors(_ victim: Victim, atMost count: Int, isFirst: Bool) throws {
        let end = monotonicSeconds() + 60
        var lowest = count
        var lastFall = monotonicSeconds()
        while monotonicSeconds() < end {
            let now = try victim.service.openDescriptors().count
            if !isFirst && now <= count { return }
            if now < lowest {
                lowest = now
                lastFall = monotonicSeconds()
            }
            if isFirst && monotonicSeconds() - lastFall > 12 { return }
            try victim.expectAlive()
        }
        let open = try victim.service.openDescriptors().count
        Issue.record("\(open) descriptors are open, \(count) were before")
    }

    private func medianMicroseconds(_ victim: Victim) throws -> Int {
        let client = try victim.opened()
        var times: [Double] = []
        for index in 0..<1000 {
            let start = monotonicSeconds()
            _ = try client.read(UInt64(index % 64) * 4096, 4096)
            times.append(monotonicSeconds() - start)
        }
        return Int(times.sorted()[500] * 1e6)
    }
}
