import Foundation
import TestSupport
import Testing

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Those who ask the page without end` {
    /// Asks on `clientCount` connections for `seconds`, each time for what `target` says; the
    /// answers' status, and the seconds that it took.
    private func flood(
        _ harness: PageHarness, clientCount: Int, seconds: Double,
        _ target: @escaping @Sendable (Int) -> String
    ) throws -> (statuses: [Int], seconds: Double) {
        let begin = monotonicSeconds()
        let clients = (0..<clientCount).map { client in
            Background {
                var statuses: [Int] = []
                while monotonicSeconds() < begin + seconds {
                    let place = target(client + statuses.count * clientCount)
                    statuses.append(try harness.ask("GET", place).status)
                }
                return statuses
            }
        }
        let statuses = try clients.flatMap { try $0.value() }
        return (statuses, monotonicSeconds() - begin)
    }

    @Test func `are answered as fast as the service has time for`() throws {
        let harness = try PageHarness()
        let (statuses, seconds) = try flood(harness, clientCount: 16, seconds: 3) { _ in "/v1" }
        #expect(statuses.allSatisfy { $0 == 200 })
        print("\(statuses.count) answers to a flood in \(seconds) s")
        #expect(Double(statuses.count) < 200 + 200 * seconds + 16)
        // A client that asks now and then does not wait long.
        let begin = monotonicSeconds()
        #expect(try harness.ask("GET", "/v1").status == 200)
        #expect(monotonicSeconds() - begin < 5)
    }

    @Test func `leave the loop to others when they ask for changes again and again`() throws {
        let harness = try PageHarness()
        try harness.attach("big", byteCount: 1 << 38)
        // Every page of the map is in use.
        try harness.done("changes", "mark", "big", "--range", "0:256G")
        let before = try harness.service.processorSeconds()
        let (statuses, seconds) = try flood(harness, clientCount: 40, seconds: 4) { number in
            let kind = number % 2 == 0 ? "/summary?cells=\(number % 4000 + 1)" : "?limit=1"
            return "/v1/devices/big/changes" + kind
        }
        let share = (try harness.service.processorSeconds() - before) / seconds
        print(
            "\(statuses.count { $0 == 200 }) questions about changes answered, "
                + "\(statuses.count { $0 == 409 }) refused in \(seconds) s, with "
                + "\((share * 1000).rounded() / 10) % of a processor")
        #expect(Set(statuses) == [200, 409])
        #expect(share < 0.2)
    }
}
