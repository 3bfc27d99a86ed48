import Foundation
import TestSupport
import Testing

/// The guides under docs/: what they show in `sh` blocks runs as it stands, with a service that has
/// the devices they name; only the places are others.
@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `The guides` {
    private let place: TemporaryDirectory
    private let service: TestService

    init() throws {
        place = try TemporaryDirectory()
        for name in ["srv", "bin", "mnt", "backup"] {
            try FileManager.default.createDirectory(
                atPath: place.path(name), withIntermediateDirectories: false)
        }
        try FileManager.default.createSymbolicLink(
            atPath: place.path("bin/stillpoint"), withDestinationPath: TestService.binary)
        var origins: [String: String] = [:]
        for name in ["vm1", "data"] {
            origins[name] = place.path("srv/\(name).img")
            try makeSparseFile(place.path("srv/\(name).img"), byteCount: 64 << 20)
        }
        service = try TestService(attaching: origins)
    }

    /// The blocks of a guide with the given fence, in their order.
    private func blocks(_ guide: String, fence: String) throws -> [String] {
        let text = try String(
            contentsOfFile: PythonTools.repository + "/docs/\(guide).md", encoding: .utf8)
        return text.components(separatedBy: "```\(fence)\n").dropFirst().compactMap {
            $0.components(separatedBy: "```").first
        }
    }

    private func run(_ script: String) throws -> Command.Outcome {
        var text = "set -euo pipefail\n" + script
        for directory in ["/srv/", "/mnt/", "/backup/"] {
            text = text.replacingOccurrences(of: directory, with: place.root + directory)
        }
        let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
        return try Command.run(
            "bash", ["-c", text],
            environment: [
                "PATH": place.path("bin") + ":" + path, "STILLPOINT_CONTROL": service.controlPath,
            ])
    }

    @Test func `on snapshots runs as it stands`() throws {
        let outcome = try run(try blocks("snapshots", fence: "sh").joined())
        #expect(outcome.status == 0, "\(outcome.diagnostics)\n\(service.log)")
        #expect(outcome.output.contains("nightly") && outcome.output.contains("destroyed"))
    }

    @Test(.enabled(if: Command.exists("curl"), "curl is not installed"))
    func `on clients runs as it stands, and its program lists what changed`() throws {
        let outcome = try run(try blocks("client", fence: "sh").joined())
        #expect(outcome.status == 0, "\(outcome.diagnostics)")
        #expect(outcome.output.contains("\"vm1\""))
        let program = try #require(try blocks("client", fence: "python").first)
        try program.write(toFile: place.path("client.py"), atomically: true, encoding: .utf8)
        let round = try run(
            """
            stillpoint checkpoint create monday --device vm1
            stillpoint changes mark vm1 --range 8192:4096
            python3 \(place.path("client.py")) "$STILLPOINT_CONTROL"
            """)
        #expect(round.status == 0, "\(round.diagnostics)")
        #expect(round.output.hasSuffix("8192 4096\n"), "\(round.output)")
    }
}
