import Foundation
import TestSupport
import Testing

@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: PythonTools.areThere, "the Python packages cannot be had"))
struct `The description of the HTTP interface` {
    @Test func `holds for whatever schemathesis asks`() throws {
        // It may ask for the root disk of this machine, and must not get it.
        let harness = try ControlHarness(environment: ["STILLPOINT_NO_LIVE": "1"])
        try harness.attach("vm1")
        // Soak: at least the 2000 requests that issue 5 asks for.
        let examples = isSoak ? "60" : "2"
        let seed = ProcessInfo.processInfo.environment["STILLPOINT_SEED"] ?? "1"
        let outcome = try PythonTools.run(
            "fuzz.py",
            [
                harness.service.controlPath, PythonTools.repository + "/docs/openapi.yaml",
                examples, seed,
            ], deadline: 3600)
        #expect(outcome.status == 0, "\(outcome.output)\(outcome.diagnostics)")
        let scrape = try Scrape(of: harness)
        let answers = scrape.samples.filter { $0.name == "stillpoint_http_requests_total" }
        let total = answers.reduce(0) { $0 + $1.value }
        print("schemathesis: \(Int(total)) requests, seed \(seed)")
        #expect(total >= (isSoak ? 2000 : 200))
        for status in ["200", "201", "400", "404", "405", "409"] {
            #expect(answers.contains { $0.labels["status"] == status }, "never \(status)")
        }
        #expect(!answers.contains { $0.labels["status"]?.hasPrefix("5") ?? true })
        #expect(try harness.service.stop() == .exited(0))
    }
}
