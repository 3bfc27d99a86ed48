import Foundation
import Glibc
import TestSupport
import Testing

private let guides = PythonTools.repository + "/docs/monitoring"

@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: Command.exists("curl"), "needs curl"))
struct `What monitoring reads` {
    /// Names of metrics in a text.
    private func names(in text: String) throws -> Set<String> {
        let name = try Regex("(?:stillpoint|process)_[a-z_]+[a-z]")
        return Set(text.matches(of: name).map { String(text[$0.range]) })
    }

    /// Names that a scrape knows: families, and what histograms add.
    private func families(_ text: String) -> Set<String> {
        var names: Set<String> = []
        for line in text.split(separator: "\n") where line.hasPrefix("# TYPE ") {
            let words = line.split(separator: " ").map(String.init)
            names.insert(words[2])
            guard words[3] == "histogram" else { continue }
            for suffix in ["bucket", "sum", "count"] { names.insert("\(words[2])_\(suffix)") }
        }
        return names
    }

    @Test func `is what the guide, the alerts and the dashboard ask for`() throws {
        let harness = try PageHarness()
        let there = families(try harness.ask("GET", "/metrics").body)
        for file in ["alerts.yaml", "grafana.json", "../monitoring.md"] {
            let text = try String(contentsOfFile: guides + "/" + file, encoding: .utf8)
            let wanted = try names(in: text)
            #expect(wanted.count > 10, "\(file)")
            #expect(wanted.subtracting(there) == [], "\(file) asks for what is not there")
        }
        let board = try JSONSerialization.jsonObject(
            with: Data(contentsOf: URL(filePath: guides + "/grafana.json")))
        let panels = try #require((board as? [String: Any])?["panels"] as? [[String: Any]])
        #expect(panels.count > 10)
        #expect(Set(panels.compactMap { $0["id"] as? Int }).count == panels.count)
    }

    @Test func `tells of checkpoints, what changed since, copies and block devices`() throws {
        let harness = try PageHarness()
        try harness.attach("vm1")
        func value(_ line: String) throws -> Double? {
            try harness.metrics().split(separator: "\n")
                .first { $0.hasPrefix(line + " ") }
                .flatMap { Double($0.dropFirst(line.count + 1)) }
        }
        let device = "{device=\"vm1\"}"
        #expect(try value("stillpoint_device_checkpoint_timestamp_seconds" + device) == nil)
        #expect(try value("stillpoint_device_history_continued" + device) == 0)
        #expect(try value("stillpoint_device_origin_present" + device) == 1)
        #expect(try value("stillpoint_device_change_map_bytes" + device) == 0)
        try harness.write("vm1", blocks: [5, 100, 3000])
        // One page, and perhaps the other one of this device, made ahead.
        let pages = try value("stillpoint_device_change_map_bytes" + device)
        #expect(pages == 4096 || pages == 8192)
        try harness.done(
            "snapshot", "create", "--device", "vm1", "--name", "s1", "--storage", "memory:8M")
        try harness.write("vm1", blocks: [5, 6, 2000])
        let now = Date().timeIntervalSince1970
        let made = try #require(
            try value("stillpoint_device_checkpoint_timestamp_seconds" + device))
        #expect(abs(now - made) < 120)
        #expect(try value("stillpoint_device_changed_bytes" + device) == 3 * 4096)
        #expect(try value("stillpoint_last_copy_success" + device) == nil)
        let target = harness.service.directory.path("copy")
        try harness.done("copy", "vm1@s1", target)
        #expect(try value("stillpoint_last_copy_success" + device) == 1)
        let copied = try #require(try value("stillpoint_last_copy_bytes" + device))
        #expect(copied >= 3 * 4096)
        // It is not forgotten, and what changed is still known.
        #expect(try harness.service.stop() == .exited(0))
        try harness.service.restart()
        #expect(try value("stillpoint_last_copy_success" + device) == 1)
        #expect(try value("stillpoint_device_history_continued" + device) == 1)
        #expect(try value("stillpoint_device_changed_bytes" + device) == 3 * 4096)
        // A copy that fails is one, too.
        try harness.done(
            "snapshot", "create", "--device", "vm1", "--name", "s2", "--storage", "memory:8M")
        let outcome = try Command.run(
            TestService.binary,
            ["copy", "vm1@s2", "/dev/full/x", "--control", harness.service.controlPath])
        #expect(outcome.status != 0)
        let copies = try harness.ask("GET", "/v1/copies").body
        #expect(copies.contains("\"state\":\"done\""))
    }

    @Test(.enabled(if: Command.exists("promtool"), "needs promtool (prometheus)"))
    func `has alerts that Prometheus takes, each for what it is there for`() throws {
        try Command.check("promtool", ["check", "rules", guides + "/alerts.yaml"])
        let tests = PythonTools.repository + "/Tests/Tools/alerts.test.yaml"
        let outcome = try Command.run("promtool", ["test", "rules", tests])
        #expect(outcome.status == 0, "\(outcome.output)\(outcome.diagnostics)")
        let rules = try String(contentsOfFile: guides + "/alerts.yaml", encoding: .utf8)
        let tested = try String(contentsOfFile: tests, encoding: .utf8)
        let guide = try String(contentsOfFile: guides + "/../monitoring.md", encoding: .utf8)
        for line in rules.split(separator: "\n") where line.contains("- alert: ") {
            let name = String(line.split(separator: " ").last ?? "")
            #expect(tested.contains("alertname=\"\(name)\""), "\(name) is not tested")
            #expect(guide.contains(name), "\(name) is not in the guide")
        }
    }

    @Test(.enabled(if: Command.exists("prometheus"), "needs prometheus"))
    func `raises the alert that is promised when a snapshot overflows`() throws {
        let harness = try PageHarness()
        try harness.attach("vm1")
        let prometheus = try Prometheus(
            scraping: "127.0.0.1:\(harness.port)", rules: guides + "/alerts.yaml")
        try prometheus.wait(for: "up{job=\"stillpoint\"} == 1")
        try harness.write("vm1", blocks: Array(0..<1024))
        try harness.done(
            "snapshot", "create", "--device", "vm1", "--name", "tonight", "--storage", "memory:1M")
        try prometheus.wait(for: "stillpoint_snapshots{state=\"held\"} == 1")
        #expect(try prometheus.query("ALERTS{alertname=\"StillpointSnapshotCorrupted\"}").isEmpty)
        try harness.write("vm1", blocks: Array(0..<1024), seed: 2)
        let alert =
            "ALERTS{alertname=\"StillpointSnapshotCorrupted\", alertstate=\"firing\", "
            + "device=\"vm1\", name=\"tonight\"}"
        try prometheus.wait(for: alert)
        // Each scrape was good: the counter of them says how many there were.
        let seconds = isSoak ? 60 : 5
        try prometheus.wait(
            for: "count_over_time(up{job=\"stillpoint\"}[10m]) >= \(seconds)", seconds: 300)
        #expect(try prometheus.query("min_over_time(up{job=\"stillpoint\"}[10m]) == 0").isEmpty)
        try prometheus.wait(
            for: "prometheus_target_scrapes_sample_duplicate_timestamp_total == 0")
        #expect(
            try prometheus.query("stillpoint_page_requests_total{status=\"200\"} > 3").count == 1)
        // Prometheus understands each query of the dashboard. These find nothing: the snapshot is full
        // already, nothing was copied, and there is no block device.
        let absent = [
            "Time until snapshots are full", "Last copies",
            "Block devices: users and takeovers",
        ]
        for (title, expression) in try dashboardQueries() {
            let isFound = try !prometheus.query(expression).isEmpty
            #expect(isFound != absent.contains(title), "\(title): \(expression)")
        }
    }

    @Test(.enabled(if: Command.exists("prometheus"), "needs prometheus"), arguments: [true, false])
    func `is scraped through TLS by those who have the token`(hasToken: Bool) throws {
        let certificates = try TestCertificates()
        let (token, wrong) = (certificates.path("token"), certificates.path("wrong"))
        for (path, word) in [(token, "0123456789abcdef"), (wrong, "fedcba9876543210")] {
            try word.write(toFile: path, atomically: true, encoding: .utf8)
            #expect(chmod(path, 0o600) == 0)
        }
        let harness = try PageHarness(
            certificates.arguments(askingClients: false) + ["--http-token-file", token],
            host: "0.0.0.0")
        let prometheus = try Prometheus(
            scraping: "localhost:\(harness.port)", rules: guides + "/alerts.yaml",
            options: [
                "scheme: https", "tls_config: {ca_file: \(certificates.path("ca-cert.pem"))}",
                "authorization: {credentials_file: \(hasToken ? token : wrong)}",
            ])
        // The other job is Prometheus itself: it scrapes by now.
        try prometheus.wait(for: "up{job=\"prometheus\"} == 1")
        try prometheus.wait(for: "up{job=\"stillpoint\"} == \(hasToken ? 1 : 0)")
        try prometheus.wait(
            for: hasToken ? "stillpoint_devices == 0" : "absent(stillpoint_devices)")
    }

    /// What the panels of the dashboard ask for, with all devices chosen.
    private func dashboardQueries() throws -> [(title: String, expression: String)] {
        let board = try JSONSerialization.jsonObject(
            with: Data(contentsOf: URL(filePath: guides + "/grafana.json")))
        let panels = try #require((board as? [String: Any])?["panels"] as? [[String: Any]])
        return panels.flatMap { panel in
            let targets = panel["targets"] as? [[String: Any]] ?? []
            return targets.compactMap { $0["expr"] as? String }.map { expression in
                var expression = expression
                for (name, value) in [
                    ("$instance", ".*"), ("$device", ".*"), ("$__rate_interval", "1m"),
                ] {
                    expression = expression.replacing(name, with: value)
                }
                return (panel["title"] as? String ?? "", expression)
            }
        }
    }
}

/// Debian's Prometheus, which scrapes every second; ended with the object.
final class Prometheus {
    private let directory: TemporaryDirectory
    private let process: ChildProcess
    private let port: UInt16

    /// `options` of the job, lines of YAML.
    init(scraping target: String, rules: String, options: [String] = []) throws {
        directory = try TemporaryDirectory()
        port = try TestService.freePort()
        try """
        global: {scrape_interval: 1s, evaluation_interval: 1s, scrape_timeout: 1s}
        rule_files: ["\(rules)"]
        scrape_configs:
          - job_name: stillpoint
            static_configs: [{targets: ["\(target)"]}]
        \(options.map { "    " + $0 }.joined(separator: "\n"))
          - job_name: prometheus
            static_configs: [{targets: ["127.0.0.1:\(port)"]}]
        """.write(toFile: directory.path("prometheus.yaml"), atomically: true, encoding: .utf8)
        process = try ChildProcess(
            "prometheus",
            [
                "--config.file=" + directory.path("prometheus.yaml"),
                "--storage.tsdb.path=" + directory.path("data"),
                "--web.listen-address=127.0.0.1:\(port)", "--log.level=warn",
            ], diagnostics: directory.path("log"))
    }

    /// The samples that a query finds: labels and value.
    func query(_ text: String) throws -> [[String: Any]] {
        let outcome = try Command.run(
            "curl",
            [
                "-sS", "--max-time", "20", "--retry", "60", "--retry-connrefused", "--retry-delay",
                "1", "--retry-all-errors", "--get", "--data-urlencode", "query=" + text,
                "http://127.0.0.1:\(port)/api/v1/query",
            ])
        let object = try JSONSerialization.jsonObject(with: Data(outcome.output.utf8))
        let answer = object as? [String: Any]
        guard answer?["status"] as? String == "success" else {
            throw TestFailure("\(text): \(outcome.output) \(outcome.diagnostics)")
        }
        return (answer?["data"] as? [String: Any])?["result"] as? [[String: Any]] ?? []
    }

    /// Asks until the query finds something.
    func wait(for text: String, seconds: Double = 120) throws {
        let end = monotonicSeconds() + seconds
        while try query(text).isEmpty {
            guard monotonicSeconds() < end else {
                let log = try? String(contentsOfFile: directory.path("log"), encoding: .utf8)
                throw TestFailure("never: \(text)\n\(log ?? "")")
            }
            usleep(200_000)
        }
    }
}
