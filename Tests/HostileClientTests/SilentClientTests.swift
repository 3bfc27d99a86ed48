import Foundation
import Glibc
import TestSupport
import Testing

/// Clients that ask for much and take none of it, beside one that behaves.
@Suite(
    .serialized, .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Clients that ask and do not read` {
    /// So many of them, how they connect, and to how many devices of one loop.
    struct Siege: Sendable, CustomTestStringConvertible {
        let count: Int
        let transport: TestService.Transport
        let deviceCount: Int

        var testDescription: String { "\(count) over \(transport), \(deviceCount) device(s)" }

        static let all: [Siege] =
            isSoak
            ? [1, 16, 200].flatMap { count in
                TestService.Transport.allCases.flatMap { transport in
                    [1, 3].map { Siege(count: count, transport: transport, deviceCount: $0) }
                }
            }
            : [
                Siege(count: 16, transport: .unix, deviceCount: 1),
                Siege(count: 200, transport: .unix, deviceCount: 3),
                Siege(count: 16, transport: .tcp, deviceCount: 1),
            ]
    }

    /// What a client that behaves saw.
    private struct Sight {
        var requestsPerSecond: Double
        var p99Milliseconds: Double
        var worstMilliseconds: Double
    }

    private static let mebibyte = 1 << 20

    /// Small writes, one after the other, for some time and at least 300 of them.
    private func write(_ client: NBDClient, seconds: Double) throws -> Sight {
        let data = [UInt8](repeating: 0x5a, count: 4096)
        var times: [Double] = []
        let start = monotonicSeconds()
        while times.count < 300 || monotonicSeconds() - start < seconds {
            let begun = monotonicSeconds()
            try client.write(UInt64(times.count % 1000) * 4096, data)
            times.append((monotonicSeconds() - begun) * 1000)
        }
        let took = monotonicSeconds() - start
        let rate = Double(times.count) / took
        times.sort()
        return Sight(
            requestsPerSecond: rate, p99Milliseconds: times[times.count * 99 / 100],
            worstMilliseconds: times[times.count - 1])
    }

    /// Asks for 200 MiB and reads none of it.
    private func silent(_ service: TestService, _ siege: Siege, _ number: Int) throws -> NBDClient {
        let client = try NBDClient(
            service.address(siege.transport), export: "disk\(number % siege.deviceCount)",
            headers: .simple)
        let requests = (0..<200).flatMap { cookie in
            NBDRequest(.read, cookie: UInt64(cookie), length: UInt64(Self.mebibyte))
                .encoded(.simple)
        }
        try client.send(requests)
        return client
    }

    @Test(arguments: Siege.all)
    func `keep nobody else waiting`(siege: Siege) throws {
        let origins = try (0..<siege.deviceCount).map { _ in
            try TestOrigin(.sparseFile, byteCount: 8 * Self.mebibyte)
        }
        let service = try TestService(
            attaching: Dictionary(
                uniqueKeysWithValues: origins.enumerated().map { ("disk\($0)", $1.path) }),
            loops: 1)
        let good = try NBDClient(
            service.address(siege.transport), export: "disk0", headers: .structured)
        let quiet = try write(good, seconds: isSoak ? 10 : 0.3)
        // They are cut off after 10 s without progress, and come again.
        for round in 0..<(isSoak ? 4 : 1) {
            let held = try (0..<siege.count).map { try silent(service, siege, $0) }
            let beside = try write(good, seconds: isSoak ? 12 : 0.3)
            let newcomer = try NBDClient(
                service.address(siege.transport), export: "disk0", headers: .structured)
            #expect(try newcomer.read(0, 4096).count == 4096)
            print(
                """
                \(siege.testDescription), round \(round): \(Int(quiet.requestsPerSecond)) writes/s \
                without them, \(Int(beside.requestsPerSecond)) beside them, p99 \
                \(quiet.p99Milliseconds) ms and \(beside.p99Milliseconds) ms, slowest \
                \(quiet.worstMilliseconds) ms and \(beside.worstMilliseconds) ms
                """)
            // Without shares a request waited until the others were cut off.
            #expect(beside.worstMilliseconds < 5000)
            if isSoak {
                #expect(beside.requestsPerSecond >= quiet.requestsPerSecond / 2)
                #expect(beside.worstMilliseconds <= quiet.p99Milliseconds + 50)
            }
            _ = held.count
        }
        #expect(try service.stop() == .exited(0))
    }
}
