import Foundation
import TestSupport
import Testing

/// Metrics of a service, read by prometheus_client.
struct Scrape {
    struct Sample: Decodable {
        let name: String
        let labels: [String: String]
        let value: Double
        let type: String
    }

    let samples: [Sample]

    init(of harness: ControlHarness) throws {
        let answer = try harness.exchange(
            "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        let parts = answer.components(separatedBy: "\r\n\r\n")
        guard parts.count == 2, parts[0].contains("200 OK") else { throw TestFailure(answer) }
        let outcome = try PythonTools.run("metrics.py", input: Data(parts[1].utf8))
        guard outcome.status == 0 else { throw TestFailure(outcome.diagnostics) }
        samples = try JSONDecoder().decode([Sample].self, from: Data(outcome.output.utf8))
    }

    /// The one number of that name whose labels contain `labels`.
    func value(_ name: String, _ labels: [String: String] = [:]) throws -> Double {
        let found = samples.filter { sample in
            sample.name == name && labels.allSatisfy { sample.labels[$0.key] == $0.value }
        }
        guard found.count == 1 else {
            throw TestFailure("\(found.count) samples of \(name) \(labels)")
        }
        return found[0].value
    }
}

@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: PythonTools.areThere, "the Python packages cannot be had"))
struct Metrics {
    @Test func `count every request with its bytes and its time`() throws {
        let harness = try ControlHarness()
        try harness.attach("vm1")
        let client = try NBDClient(.unix(path: harness.service.socketPath), export: "vm1")
        for index in 0..<7 {
            try client.write(UInt64(index) * 65536, [UInt8](repeating: 1, count: 4096))
        }
        for index in 0..<3 { _ = try client.read(UInt64(index) * 65536, 8192) }
        try client.succeed(NBDRequest(.flush))
        let scrape = try Scrape(of: harness)
        for (operation, count, bytes) in [("write", 7, 7 * 4096), ("read", 3, 3 * 8192)] {
            let labels = ["device": "vm1", "target": "device", "operation": operation]
            #expect(try scrape.value("stillpoint_requests_total", labels) == Double(count))
            #expect(try scrape.value("stillpoint_request_bytes_total", labels) == Double(bytes))
            #expect(try scrape.value("stillpoint_request_failures_total", labels) == 0)
            let histogram = "stillpoint_request_duration_seconds"
            #expect(try scrape.value(histogram + "_count", labels) == Double(count))
            let seconds = try scrape.value(histogram + "_sum", labels)
            #expect(seconds >= 0 && seconds < 60)
            let infinite = labels.merging(["le": "+Inf"]) { $1 }
            #expect(try scrape.value(histogram + "_bucket", infinite) == Double(count))
        }
        let flush = ["device": "vm1", "operation": "flush"]
        #expect(try scrape.value("stillpoint_requests_total", flush) == 1)
        #expect(try scrape.value("stillpoint_device_size_bytes") == Double(16 << 20))
        #expect(try scrape.value("stillpoint_device_users") == 1)
        #expect(try scrape.value("process_resident_memory_bytes") > 1e6)
        #expect(try scrape.value("process_open_fds") > 5)
    }

    @Test func `tell of snapshots, their storage, their cuts, and of events`() throws {
        let harness = try ControlHarness()
        try harness.attach("vm1")
        let client = try NBDClient(.unix(path: harness.service.socketPath), export: "vm1")
        try client.write(0, [UInt8](repeating: 1, count: 65536))
        try harness.done(
            "snapshot", "create", "--device", "vm1", "--name", "nightly", "--storage",
            "memory:16M")
        try harness.done(
            "snapshot", "create", "--device", "vm1", "--name", "later", "--prepare", "--storage",
            "memory:16M")
        // Two blocks of data, and one that was a hole.
        try client.write(0, [UInt8](repeating: 2, count: 8192))
        try client.write(1 << 20, [UInt8](repeating: 2, count: 4096))
        let image = try NBDClient(.unix(path: harness.service.socketPath), export: "vm1@nightly")
        _ = try image.read(0, 4096)
        let scrape = try Scrape(of: harness)
        #expect(try scrape.value("stillpoint_snapshots", ["state": "held"]) == 1)
        #expect(try scrape.value("stillpoint_snapshots", ["state": "prepared"]) == 1)
        #expect(try scrape.value("stillpoint_copied_blocks_total", ["device": "vm1"]) == 3)
        let storage = "stillpoint_snapshot_storage_"
        let nightly = ["name": "nightly"]
        #expect(try scrape.value(storage + "stored_bytes", nightly) == 8192)
        #expect(try scrape.value(storage + "zero_blocks", nightly) == 1)
        #expect(try scrape.value(storage + "limit_bytes", nightly) == Double(16 << 20))
        #expect(try scrape.value("stillpoint_cut_duration_seconds_count") == 1)
        #expect(try scrape.value("stillpoint_cut_drain_seconds_count") == 1)
        #expect(try scrape.value("stillpoint_cuts_called_off_total") == 0)
        let read = ["device": "vm1", "target": "image", "operation": "read"]
        #expect(try scrape.value("stillpoint_requests_total", read) == 1)
        try harness.done("snapshot", "destroy", "nightly")
        let events = try #require(try harness.document("events") as? [[String: Any]])
        let after = try Scrape(of: harness)
        let counted = after.samples.filter { $0.name == "stillpoint_events_total" }
        #expect(counted.reduce(0) { $0 + $1.value } == Double(events.count))
        for sample in counted {
            let type = sample.labels["type"]
            #expect(sample.value == Double(events.count { $0["type"] as? String == type }))
        }
        #expect(try after.value("stillpoint_snapshots", ["state": "held"]) == 0)
    }

    @Test func `keep what names and paths can hold apart from the format`() throws {
        let harness = try ControlHarness()
        try harness.attach("a.b-c_d")
        let scrape = try Scrape(of: harness)
        #expect(
            try scrape.value("stillpoint_copied_blocks_total", ["device": "a.b-c_d"]) == 0)
    }
}
