import Foundation
import TestSupport
import Testing

/// The README's first round, run as it stands: only the places are others, so that it leaves
/// nothing behind.
@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: canUseLoopDevices && canUseFUSE, "it needs root, loop devices and FUSE"))
struct `The README's first round` {
    @Test func `protects, copies, copies what changed, and restores`() throws {
        let place = try TemporaryDirectory()
        for name in ["srv", "bin", "run"] {
            try FileManager.default.createDirectory(
                atPath: place.path(name), withIntermediateDirectories: false)
        }
        try FileManager.default.createSymbolicLink(
            atPath: place.path("bin/stillpoint"), withDestinationPath: TestService.binary)
        let script = try Self.script(in: place)
        // Whatever happens, nothing stays mounted and no service is left.
        let ticket = ExitCleanup.shared.register("umount -l \(place.path("mnt/vm1")) 2>/dev/null")
        defer { ExitCleanup.shared.withdraw(ticket) }
        let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
        let outcome = try Command.run(
            "bash", ["-c", script],
            environment: [
                "PATH": place.path("bin") + ":" + path,
                "STILLPOINT_CONTROL": place.path("run/control.sock"),
            ])
        let log = (try? String(contentsOfFile: place.path("log"), encoding: .utf8)) ?? ""
        #expect(outcome.status == 0, "\(outcome.diagnostics)\n\(log)")
        let copies = outcome.output.components(separatedBy: "copied").count - 1
        #expect(copies >= 3, "\(outcome.output)")
        #expect(outcome.output.contains("written on the second day"))
        #expect(outcome.output.contains("end of the round"))
    }

    /// The commands of the section, with what a person does between them.
    private static func script(in place: TemporaryDirectory) throws -> String {
        let readme = try String(
            contentsOfFile: PythonTools.repository + "/README.md", encoding: .utf8)
        let section = try #require(
            readme.components(separatedBy: "\n## ").first { $0.hasPrefix("A first round\n") })
        let blocks = section.components(separatedBy: "```sh\n").dropFirst().compactMap {
            $0.components(separatedBy: "```").first
        }
        #expect(blocks.count == 7)
        var commands = blocks.joined()
        let serve = "stillpoint serve --attach vm1=/srv/vm1.img\n"
        #expect(commands.contains(serve))
        // In a terminal of its own, until it says `ready`.
        commands = commands.replacingOccurrences(
            of: serve,
            with: """
                mkfifo \(place.path("ready"))
                stillpoint serve --state-dir \(place.path("state")) \
                --attach vm1=/srv/vm1.img >\(place.path("ready")) 2>\(place.path("log")) &
                service=$!
                trap 'umount -l /mnt/vm1 2>/dev/null; kill $service 2>/dev/null' EXIT
                read -r -t 120 word <\(place.path("ready")); test "$word" = ready

                """)
        for directory in ["/srv/", "/mnt/", "/backup"] {
            commands = commands.replacingOccurrences(of: directory, with: place.root + directory)
        }
        return "set -euo pipefail\n" + commands + """

            trap - EXIT
            kill $service; wait $service
            echo end of the round
            """
    }
}
