import Foundation
import Glibc
import TestSupport
import Testing

/// `run` against the real service.
@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: canUseLoopDevices && canUseFUSE, "it needs root, loop devices and FUSE"))
struct `Commands over images` {
    private func harness(_ kind: MountedDisk.Kind = .ext4) throws -> CopyHarness {
        let harness = try CopyHarness(
            byteCount: kind == .ext4 ? 32 * mebibyte : 320 * mebibyte, keepsContents: false)
        let block = try harness.command("block", "attach", "disk")
            .trimmingCharacters(in: .whitespacesAndNewlines)
        let mounted = try MountedDisk(kind, onDevice: block)
        try Data("as it was".utf8).write(to: URL(filePath: mounted.path("file")))
        sync()
        return harness
    }

    /// Nothing of a run is there: no snapshot, no block device of an image, no mount.
    private func expectNothingLeft(_ harness: CopyHarness) throws {
        #expect(try harness.command("snapshot", "list", "--json").contains("\"id\"") == false)
        #expect(try harness.command("block", "list", "--json").contains("disk@") == false)
        let mounts = try String(contentsOfFile: "/proc/self/mountinfo", encoding: .utf8)
        #expect(!mounts.contains(harness.files.root + "/stillpoint-run-"))
        let left = try FileManager.default.contentsOfDirectory(atPath: harness.files.root)
        #expect(left.filter { $0.hasPrefix("stillpoint-run-") } == [])
    }

    /// A process of the program that was given this service's address goes on: the one that takes down what
    /// a killed run made may just begin.
    private func isTakingDown(_ harness: CopyHarness) throws -> Bool {
        let own = Array("STILLPOINT_CONTROL=\(harness.service.controlPath)".utf8)
        return try FileManager.default.contentsOfDirectory(atPath: "/proc").contains { name in
            // A process may end at any time.
            guard Int(name) != nil,
                let line = FileManager.default.contents(atPath: "/proc/\(name)/cmdline"),
                String(decoding: line, as: UTF8.self).hasPrefix("stillpoint"),
                let variables = FileManager.default.contents(atPath: "/proc/\(name)/environ")
            else { return false }
            return variables.split(separator: 0).contains { $0.elementsEqual(own) }
        }
    }

    private func run(_ harness: CopyHarness, _ line: String) throws -> Command.Outcome {
        try harness.bash(
            "export TMPDIR=\"$files\"; exec \"$stillpoint\" run --device disk \(line)")
    }

    @Test(arguments: MountedDisk.Kind.allCases)
    func `see the files of one moment, and end as they end`(_ kind: MountedDisk.Kind) throws {
        let harness = try harness(kind)
        let read = try run(harness, "--mount -- sh -c 'cat \"${STILLPOINT_MOUNTS#*=}/file\"'")
        #expect(read.status == 0, "\(read.diagnostics)")
        #expect(read.output == "as it was")
        try expectNothingLeft(harness)
        let images = try run(harness, "-- sh -c 'echo \"$STILLPOINT_IMAGES\"; exit 7'")
        #expect(images.status == 7)
        #expect(images.output.hasPrefix("disk=/dev/"), "\(images.output)")
        let killed = try run(harness, "-- sh -c 'kill -TERM $$'")
        #expect(killed.status == 128 + SIGTERM)
        let missing = try run(harness, "-- no-such-program")
        #expect(missing.status == 3)
        let written = try run(
            harness, "--mount -- sh -c 'touch \"${STILLPOINT_MOUNTS#*=}/new\" 2>/dev/null'")
        #expect(written.status != 0)
        try expectNothingLeft(harness)
    }

    @Test func `leave nothing behind, whoever is killed`() throws {
        let harness = try harness()
        var generator = SeededGenerator.announced("killed runs")
        for round in 0..<sized("killed runs", soak: 100, otherwise: 8) {
            let process = try ChildProcess(
                "/bin/bash",
                [
                    "-c",
                    "exec \"$stillpoint\" run --device disk --mount -- "
                        + "sh -c 'echo $$; cd \"${STILLPOINT_MOUNTS#*=}\"; sleep 1000 & wait'",
                ],
                environment: [
                    "stillpoint": TestService.binary,
                    "STILLPOINT_CONTROL": harness.service.controlPath,
                    "TMPDIR": harness.files.root,
                    "PATH": ProcessInfo.processInfo.environment["PATH"] ?? "",
                ])
            let victim = Int.random(in: 0..<4, using: &generator)
            if victim == 0 {
                // At any instant of its beginning.
                let end = monotonicSeconds() + Double.random(in: 0...0.5, using: &generator)
                while monotonicSeconds() < end { sched_yield() }
                process.send(signal: SIGKILL)
            } else {
                let line = try process.readLine(deadline: 120) ?? ""
                let command = try #require(pid_t(line), "round \(round)")
                switch victim {
                case 1: kill(command, SIGKILL)
                case 2: process.send(signal: SIGKILL)
                default: process.send(signal: SIGTERM)
                }
            }
            _ = try process.wait(deadline: 120)
            try waitUntil("all of round \(round), victim \(victim), is taken down") {
                try !isTakingDown(harness)
            }
            try expectNothingLeft(harness)
        }
    }
}
