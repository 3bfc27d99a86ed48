import Foundation
import Glibc
import Synchronization
import TestSupport
import Testing

/// Fifty clients over HTTP, each with a connection of its own for each request.
@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: PythonTools.areThere, "the Python packages cannot be had"))
struct `Many clients at once` {
    private static let clientCount = 50
    private static let deviceCount = 8

    /// What the clients did, counted from the answers they got.
    private struct Tally {
        var taken = 0
        var destroyed = 0
        var checkpoints = 0
        var refused = 0
        var strange: [String] = []
    }

    @Test func `create, take, show and destroy on eight devices under load`() throws {
        let seconds = isSoak ? 60.0 : 3.0
        print("many clients: \(Int(seconds)) s of the stated 60")
        let harness = try ControlHarness()
        for index in 0..<Self.deviceCount { try harness.attach("d\(index)") }
        // Once before, so that what is made at first use is there.
        try storm(harness, seconds: 1, round: 0)
        let before = try Figures(of: harness)
        let tally = try storm(harness, seconds: seconds, round: 1)
        print("many clients: \(tally.taken) snapshots, \(tally.checkpoints) checkpoints")
        #expect(tally.strange == [])
        #expect(tally.taken > 20)
        #expect(tally.checkpoints > 20)
        let after = try Figures(of: harness)
        #expect(after.snapshots == [])
        #expect(after.held == 0)
        #expect(after.checkpoints == before.checkpoints)
        #expect(after.taken - before.taken == tally.taken)
        #expect(after.destroyed - before.destroyed == tally.destroyed)
        #expect(after.descriptors <= before.descriptors + 3)
        #expect(after.residentKibibytes <= before.residentKibibytes + 48 << 10)
        // Numbers without gap, and what happened to each snapshot once.
        let events = try #require(try harness.document("events") as? [[String: Any]])
        let numbers = events.compactMap { $0["number"] as? Int }
        #expect(numbers == Array((numbers.first ?? 1)..<(numbers.first ?? 1) + numbers.count))
        for type in ["taken", "destroyed"] {
            let ids = events.filter { $0["type"] as? String == type }
                .compactMap { $0["snapshot"] as? String }
            #expect(Set(ids).count == ids.count, "\(type) comes twice")
        }
        #expect(try harness.service.stop() == .exited(0))
    }

    /// What the service says of itself, from its four mouths.
    private struct Figures {
        let snapshots: [String]
        let checkpoints: Int
        let held: Int
        let taken: Int
        let destroyed: Int
        let descriptors: Int
        let residentKibibytes: Int

        init(of harness: ControlHarness) throws {
            let scrape = try Scrape(of: harness)
            snapshots = try harness.snapshotNames()
            checkpoints = (try harness.document("checkpoint", "list") as? [Any])?.count ?? -1
            held = Int(try scrape.value("stillpoint_snapshots", ["state": "held"]))
            taken = Int(try scrape.value("stillpoint_events_total", ["type": "taken"]))
            destroyed = Int(try scrape.value("stillpoint_events_total", ["type": "destroyed"]))
            descriptors = try FileManager.default.contentsOfDirectory(
                atPath: "/proc/\(harness.service.process.processID)/fd"
            ).count
            residentKibibytes = try harness.service.statusKibibytes("VmRSS")
        }
    }

    /// Lets all clients and a writer for each device loose.
    @discardableResult
    private func storm(
        _ harness: ControlHarness, seconds: Double, round: Int
    ) throws -> Tally {
        let tally = Mutex(Tally())
        let end = monotonicSeconds() + seconds
        let group = DispatchGroup()
        let queue = DispatchQueue(label: "clients", attributes: .concurrent)
        for device in 0..<Self.deviceCount {
            group.enter()
            Thread.detachNewThread {
                defer { group.leave() }
                do {
                    try Self.write(to: "d\(device)", harness, until: end)
                } catch { tally.withLock { $0.strange.append("writer \(device): \(error)") } }
            }
        }
        for client in 0..<Self.clientCount {
            group.enter()
            Thread.detachNewThread {
                defer { group.leave() }
                var count = 0
                while monotonicSeconds() < end {
                    count += 1
                    do {
                        try Self.once(harness, client, "r\(round)c\(client)n\(count)", tally)
                    } catch { tally.withLock { $0.strange.append("client \(client): \(error)") } }
                }
            }
        }
        withExtendedLifetime(queue) { group.wait() }
        return tally.withLock { $0 }
    }

    private static func write(
        to device: String, _ harness: ControlHarness, until end: Double
    ) throws {
        let client = try NBDClient(.unix(path: harness.service.socketPath), export: device)
        var generator = SeededGenerator(seed: UInt64(device.utf8.last ?? 0))
        while monotonicSeconds() < end {
            let block = UInt64.random(in: 0..<4096, using: &generator)
            try client.write(block * 4096, generator.bytes(4096))
        }
    }

    /// One life of a snapshot and one of a checkpoint.
    private static func once(
        _ harness: ControlHarness, _ client: Int, _ name: String, _ tally: borrowing Mutex<Tally>
    ) throws {
        let devices = "\"d\(client % deviceCount)\",\"d\((client + 3) % deviceCount)\""
        let prepares = client % 2 == 0
        var isOurs = try ask(
            harness, "POST", "/v1/snapshots",
            "{\"devices\":[\(devices)],\"name\":\"\(name)\",\"storage\":[\"memory:8M\"],"
                + "\"prepare\":\(prepares)}", [201], [409], tally)
        if isOurs, prepares {
            if try ask(harness, "POST", "/v1/snapshots/\(name)/take", "", [200], [409], tally) {
                tally.withLock { $0.taken += 1 }
            }
        } else if isOurs {
            tally.withLock { $0.taken += 1 }
        }
        if isOurs {
            try ask(harness, "GET", "/v1/snapshots/\(name)", "", [200], [], tally)
            isOurs = try ask(
                harness, "DELETE", "/v1/snapshots/\(name)", "", [200], [], tally)
            if isOurs { tally.withLock { $0.destroyed += 1 } }
            // A named snapshot that was taken leaves a checkpoint; one that was not has none.
            try ask(harness, "DELETE", "/v1/checkpoints/\(name)", "", [200], [404], tally)
        }
        let checkpoint = "k" + name
        if try ask(
            harness, "POST", "/v1/checkpoints",
            "{\"devices\":[\(devices)],\"name\":\"\(checkpoint)\"}", [201], [409], tally)
        {
            tally.withLock { $0.checkpoints += 1 }
            try ask(harness, "DELETE", "/v1/checkpoints/\(checkpoint)", "", [200], [], tally)
        }
    }

    /// True when the answer was among `good`; anything that is not among `bearable` either is
    /// strange.
    @discardableResult
    private static func ask(
        _ harness: ControlHarness, _ method: String, _ target: String, _ body: String,
        _ good: [Int], _ bearable: [Int], _ tally: borrowing Mutex<Tally>
    ) throws -> Bool {
        let answer = try harness.http(method, target, body: body)
        if good.contains(answer.status) { return true }
        tally.withLock { tally in
            tally.refused += 1
            if !bearable.contains(answer.status), tally.strange.count < 10 {
                tally.strange.append("\(method) \(target): \(answer)")
            }
        }
        return false
    }
}
