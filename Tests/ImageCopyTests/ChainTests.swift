import Foundation
import Glibc
import TestSupport
import Testing

/// A copy brought forward again and again, whatever becomes of the service.
@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `A chain of copies` {
    private static let byteCount = 48 * mebibyte

    /// When the service is killed.
    private enum Kill: CaseIterable {
        case never, beforeTake, afterTake, duringCopy, duringWrites
    }

    @Test func `goes on without a full copy when the service is killed at any instant`() throws {
        let harness = try CopyHarness(byteCount: Self.byteCount)
        var generator = SeededGenerator.announced("chain over kills")
        try harness.change(20, &generator)
        try harness.take("k0")
        try harness.copy("k0")
        var base = "k0"
        for round in 1...sized("rounds of a chain over kills", soak: 300, otherwise: 15) {
            try harness.change(6, &generator)
            let what = "round \(round), seed \(generator.seed)"
            let next = "k\(round)"
            switch Kill.allCases[round % Kill.allCases.count] {
            case .never: try harness.take(next)
            case .beforeTake:
                try kill(harness)
                try harness.take(next)
            case .afterTake:
                try harness.take("\(next)-lost")
                try harness.change(3, &generator)
                try kill(harness)
                try harness.take(next)
            case .duringCopy:
                try harness.take("\(next)-lost")
                let copy = try start(harness, harness.copyArguments("\(next)-lost", since: base))
                try killSoon(harness, &generator)
                // It may have been faster.
                _ = try copy.wait(deadline: 120)
                try harness.restart()
                try harness.change(3, &generator)
                try harness.take(next)
            case .duringWrites:
                let load = try ChildProcess(
                    TestService.built("nbd-load"),
                    [
                        harness.service.socketPath, "disk", "write", "random", "4096", "8", "600",
                        "\(round)",
                    ])
                try killSoon(harness, &generator)
                _ = try load.wait(deadline: 120)
                try harness.restart()
                try harness.take(next)
            }
            let result = try harness.copy(next, since: base)
            #expect(result["full"] as? Bool == false, "\(what)")
            try harness.expectCopyIsRight(what)
            try harness.destroy(next)
            try harness.command("checkpoint", "delete", base)
            base = next
        }
    }

    private func start(_ harness: CopyHarness, _ arguments: [String]) throws -> ChildProcess {
        try ChildProcess(
            TestService.binary, arguments + ["--control", harness.service.controlPath])
    }

    private func kill(_ harness: CopyHarness) throws {
        try harness.service.process.killAndWait()
        try harness.restart()
    }

    /// Kills the service after a while; the caller starts it again.
    private func killSoon(_ harness: CopyHarness, _ generator: inout SeededGenerator) throws {
        // The instant is the test's subject, not a synchronisation.
        let end = monotonicSeconds() + Double.random(in: 0...0.2, using: &generator)
        while monotonicSeconds() < end { sched_yield() }
        try harness.service.process.killAndWait()
    }

    /// What makes the history of a device unknown.
    enum Break: CaseIterable {
        case newBoot, outsideWriteWhileStopped, outsideWriteAfterKill, replacedFile
    }

    @Test(arguments: Break.allCases)
    func `ends with status 5 when changes may have been missed, and a full copy is right`(
        _ kind: Break
    ) throws {
        let harness = try CopyHarness(byteCount: Self.byteCount)
        var generator = SeededGenerator.announced("broken chain")
        try harness.change(20, &generator)
        try harness.take("a")
        try harness.copy("a")
        try harness.change(5, &generator)
        var environment: [String: String] = [:]
        switch kind {
        case .newBoot:
            try harness.service.process.killAndWait()
            environment["STILLPOINT_BOOT_ID"] = "another boot"
        case .outsideWriteWhileStopped:
            #expect(try harness.service.stop() == .exited(0))
            try writeOutside(harness)
        case .outsideWriteAfterKill:
            try harness.service.process.killAndWait()
            try waitForGuardian(harness)
            try writeOutside(harness)
        case .replacedFile:
            #expect(try harness.service.stop() == .exited(0))
            let disk = harness.files.path("disk")
            try FileManager.default.copyItem(atPath: disk, toPath: disk + ".new")
            #expect(rename(disk + ".new", disk) == 0)
        }
        try harness.restart(environment: environment)
        try harness.take("b")
        try harness.expectRefusal(5, "full", harness.copyArguments("b", since: "a"))
        try harness.copy("b", isForced: true)
        try harness.expectCopyIsRight("\(kind)")
        // From here on a chain goes on.
        try harness.change(5, &generator)
        try harness.take("c")
        #expect(try harness.copy("c", since: "b")["full"] as? Bool == false)
        try harness.expectCopyIsRight("\(kind), the next increment")
    }

    private func writeOutside(_ harness: CopyHarness) throws {
        let file = open(harness.files.path("disk"), O_WRONLY | O_CLOEXEC)
        defer { close(file) }
        guard file >= 0, pwrite(file, [1, 2, 3], 3, 12345) == 3, fsync(file) == 0 else {
            throw TestFailure("cannot write to the origin")
        }
    }

    /// The guardian has recorded what it watched when it gives its lock up.
    private func waitForGuardian(_ harness: CopyHarness) throws {
        let lock = open(
            harness.service.directory.path("state") + "/guardian.lock", O_RDWR | O_CLOEXEC)
        guard lock >= 0 else { throw TestFailure("the guardian has no lock") }
        defer { close(lock) }
        guard flock(lock, LOCK_EX) == 0 else { throw TestFailure("the guardian's lock: \(errno)") }
    }
}
