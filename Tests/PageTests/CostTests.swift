import Foundation
import Glibc
import TestSupport
import Testing

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `What the page costs` {
    @Test func `is less than a mebibyte while nobody looks`() throws {
        func resident(_ arguments: [String]) throws -> Int {
            // The least of several: what a start leaves behind is more or less.
            try (0..<3).map { _ in
                let service = try TestService(
                    attaching: [:], loops: 2, extraArguments: arguments)
                defer { _ = try? service.stop() }
                return try service.statusKibibytes("VmRSS")
            }.min() ?? 0
        }
        let without = try resident([])
        let with = try resident(["--http", "tcp:127.0.0.1:\(try TestService.freePort())"])
        print("resident: \(without) KiB without the page, \(with) KiB with it")
        #expect(with - without < 1024)
    }

    /// Operations per second that four clients get done.
    private func rate(_ harness: PageHarness, seconds: Double) throws -> Double {
        let end = monotonicSeconds() + seconds
        let clients = try (0..<4).map { index in
            let client = try NBDClient(.unix(path: harness.service.socketPath), export: "vm1")
            return Background { () -> Int in
                var count = 0
                while monotonicSeconds() < end {
                    let offset = UInt64((count * 7 + index * 1024) % 8192) * 4096
                    if count % 2 == 0 {
                        try client.write(offset, [UInt8](repeating: 1, count: 4096))
                    } else {
                        _ = try client.read(offset, 4096)
                    }
                    count += 1
                }
                return count
            }
        }
        return Double(try clients.reduce(0) { $0 + (try $1.value()) }) / seconds
    }

    /// The median of what remains of the rate while `disturbance` goes on, over alternated pairs.
    private func remainder(
        _ harness: PageHarness, _ disturbance: (Flag) -> [Background<Void>]
    ) throws -> Double {
        var ratios: [Double] = []
        for _ in 0..<7 {
            let alone = try rate(harness, seconds: 3)
            let isOver = Flag()
            let others = disturbance(isOver)
            let disturbed = try rate(harness, seconds: 3)
            isOver.set()
            for other in others { try other.value() }
            ratios.append(disturbed / alone)
        }
        print("NBD's rate beside it, pair by pair: \(ratios.map { ($0 * 1000).rounded() / 1000 })")
        return ratios.sorted()[ratios.count / 2]
    }

    @Test(.enabled(if: isSoak, "a measurement: run it with STILLPOINT_SOAK=1 on a quiet machine"))
    func `is at most 3 percent of NBD's rate with ten who look`() throws {
        let harness = try PageHarness()
        try harness.attach("vm1")
        _ = try rate(harness, seconds: 2)
        let left = try remainder(harness) { isOver in
            (0..<10).map { _ in
                Background {
                    let events = try NBDClient(.tcp(port: harness.port))
                    try events.send(
                        Array("GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n".utf8))
                    var round = 0
                    while !isOver.isSet {
                        // As the page asks, faster: every second, and all at once at the begin.
                        if round % 5 == 0 {
                            for path in ["status", "health", "checkpoints", "copies"] {
                                _ = try harness.ask("GET", "/v1/" + path)
                            }
                            _ = try harness.ask(
                                "GET", "/v1/devices/vm1/changes/summary?cells=2048")
                        }
                        _ = try harness.ask("GET", "/v1/activity")
                        round += 1
                        _ = poll(nil, 0, 1000)
                    }
                }
            }
        }
        #expect(left >= 0.97)
    }

    @Test(.enabled(if: isSoak, "a measurement: run it with STILLPOINT_SOAK=1 on a quiet machine"))
    func `is at most 5 percent of NBD's rate with those who only hold connections`() throws {
        let harness = try PageHarness()
        try harness.attach("vm1")
        _ = try rate(harness, seconds: 2)
        // Before the measurement: connecting costs the machine more than the service.
        var held = (0..<10_000).compactMap { _ in
            try? NBDClient(.tcp(port: harness.port), timeoutSeconds: 5)
        }
        let left = try remainder(harness) { isOver in
            (0..<200).map { _ in
                Background {
                    // A byte now and then, again and again.
                    while !isOver.isSet {
                        guard let slow = try? NBDClient(.tcp(port: harness.port)) else { continue }
                        for byte in "GET /v1/status HTTP/1.1\r\nX: ".utf8 where !isOver.isSet {
                            guard (try? slow.send([byte])) != nil else { break }
                            _ = poll(nil, 0, 300)
                        }
                    }
                }
            }
        }
        held.removeAll()
        #expect(left >= 0.95)
    }
}
