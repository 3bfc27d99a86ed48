import Foundation
import Glibc
import TestSupport
import Testing

/// The worst map: every second chunk of a large device changed.
@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `A fully scattered map` {
    /// Runs the command given, counts its lines, and prints their number and the most memory it had
    /// in KiB.
    private static let counter = """
        import resource, subprocess, sys
        with subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE) as process:
            count = sum(part.count(b"\\n") for part in iter(lambda: process.stdout.read(1 << 20), b""))
        print(count, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
        sys.exit(process.returncode)
        """

    @Test func `is told range by range, with little memory on either side`() throws {
        let harness = try GenerationHarness()
        let full = 8_388_608
        let count = isSoak ? full : full / 20
        print(
            "scattered ranges: \(count) of \(full)\(isSoak ? "" : "; STILLPOINT_SOAK=1 runs all")")
        try harness.attachImage(byteCount: count * 131_072)
        // Trims of holes: nothing has to be stored for them.
        try Command.check(
            TestService.built("nbd-load"),
            [
                harness.service.socketPath, harness.device, "trim", "sequential", "4096", "32", "0",
                "1", "131072", "\(count)",
            ])
        let before = try harness.service.statusKibibytes("VmRSS")
        // Begins a new high-water mark.
        try Data("5".utf8).write(
            to: URL(filePath: "/proc/\(harness.service.process.processID)/clear_refs"))
        let began = monotonicSeconds()
        let outcome = try Command.check(
            "python3",
            [
                "-c", Self.counter, TestService.binary, "changes", harness.device, "--since",
                "generation", "--format", "ranges", "--control", harness.service.controlPath,
            ])
        let seconds = monotonicSeconds() - began
        let growth = try harness.service.statusKibibytes("VmHWM") - before
        let words = outcome.split(whereSeparator: \.isWhitespace).compactMap { Int($0) }
        guard words.count == 2 else { throw TestFailure("the counter said \(outcome)") }
        print(
            "scattered ranges: \(seconds) s, client \(words[1] / 1024) MiB, service "
                + "\(growth / 1024) MiB more")
        #expect(words[0] == count)
        #expect(words[1] < 100 << 10)
        #expect(growth < 100 << 10)
    }
}
