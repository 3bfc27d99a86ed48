import Foundation
import Glibc
import TestSupport
import Testing

/// Every kind of target in every situation: right content or the documented refusal, and never a
/// wrong copy with exit status 0.
@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Copies to every kind of target` {
    private static let byteCount = 12 * mebibyte
    /// Where no test writes on the device, so that a byte written behind our back stays.
    private static let quiet = 8 * mebibyte

    /// A device with a snapshot `a`, and a target.
    private final class Round {
        let harness: CopyHarness
        let target: any MatrixTarget
        var generator: SeededGenerator
        /// What the device held at each cut.
        var cuts: [String: [UInt8]] = [:]

        init(_ kind: MatrixKind, _ seed: String, room: Int? = nil) throws {
            generator = SeededGenerator.announced("\(seed), \(kind)")
            var environment: [String: String] = [:]
            if kind == .rbd { environment = try TestCeph.shared.get().environment }
            harness = try CopyHarness(
                byteCount: `Copies to every kind of target`.byteCount)
            clientEnvironment = environment
            target = try kind.make(harness.files.root, harness.byteCount)
            try change()
            try take("a")
        }

        let clientEnvironment: [String: String]

        /// Changes before the quiet part of the device.
        func change() throws {
            for _ in 0..<10 {
                let length = Int.random(in: 1...64, using: &generator) * 512
                let offset =
                    Int.random(
                        in: 0..<(`Copies to every kind of target`.quiet - length) / 512,
                        using: &generator) * 512
                try harness.write(generator.bytes(length), at: offset)
            }
            let zero = Int.random(in: 0..<100, using: &generator) * 65536
            try harness.zero(zero..<zero + 65536)
        }

        func take(_ name: String) throws {
            try harness.take(name)
            cuts[name] = harness.contents
        }

        func run(_ arguments: [String]) throws -> Command.Outcome {
            try Command.run(
                TestService.binary, arguments + ["--control", harness.service.controlPath],
                environment: clientEnvironment, deadline: 300)
        }

        /// Runs a copy that must succeed, and compares its bytes.
        func succeed(_ arguments: [String], _ cut: String) throws {
            let outcome = try run(arguments)
            guard outcome.status == 0 else {
                throw TestFailure("\(arguments): \(outcome.status) \(outcome.diagnostics)")
            }
            target.finished()
            try expect(cut)
        }

        func expect(_ cut: String) throws {
            let there = try target.contents(harness.byteCount)
            if let place = there.firstDifference(from: cuts[cut] ?? []) {
                throw TestFailure("the copy differs from \(cut) at \(place)")
            }
        }

        /// Right content, or a refusal with one of these statuses.
        func expectRightOr(_ statuses: [Int32], _ arguments: [String], _ cut: String) throws {
            let outcome = try run(arguments)
            if outcome.status == 0 {
                target.finished()
                try expect(cut)
            } else if !statuses.contains(outcome.status) {
                throw TestFailure("\(arguments): \(outcome.status) \(outcome.diagnostics)")
            }
        }

        func expectRefusal(_ statuses: [Int32], _ arguments: [String]) throws {
            let outcome = try run(arguments)
            guard statuses.contains(outcome.status) else {
                throw TestFailure(
                    "\(arguments): \(outcome.status) \(outcome.output)\(outcome.diagnostics)")
            }
        }

        /// Kills a copy at a random instant.
        func interrupt(_ arguments: [String], by signal: Int32) throws -> Bool {
            let process = try ChildProcess(
                TestService.binary, arguments + ["--control", harness.service.controlPath],
                environment: clientEnvironment)
            // The instant is the test's subject, not a synchronisation.
            let end = monotonicSeconds() + Double.random(in: 0.02...0.3, using: &generator)
            while monotonicSeconds() < end { sched_yield() }
            process.send(signal: signal)
            switch try process.wait(deadline: 120) {
            case .exited(0): return false
            case .exited, .killed: return true
            }
        }
    }

    @Test(arguments: MatrixKind.here)
    func `full and incremental copies hold the image`(_ kind: MatrixKind) throws {
        let round = try Round(kind, "matrix")
        try round.succeed(round.target.full("a"), "a")
        for (base, next) in [("a", "b"), ("b", "c"), ("c", "d")] {
            try round.change()
            try round.take(next)
            try round.succeed(round.target.increment(next, since: base), next)
        }
        // Nothing changed.
        try round.take("e")
        try round.succeed(round.target.increment("e", since: "d"), "e")
    }

    @Test(arguments: MatrixKind.here)
    func `interrupted at any instant they are finished`(_ kind: MatrixKind) throws {
        let round = try Round(kind, "interrupted matrix")
        var interrupted = 0
        // Clients of Ceph that were killed are waited for.
        let signals = kind == .rbd && !isSoak ? [SIGTERM] : [SIGTERM, SIGKILL]
        for signal in signals {
            if try round.interrupt(round.target.full("a"), by: signal) { interrupted += 1 }
        }
        try round.succeed(round.target.full("a"), "a")
        var base = "a"
        for number in 0..<sized("interrupted increments", soak: 30, otherwise: 2) {
            try round.change()
            let next = "i\(number)"
            try round.take(next)
            let arguments = round.target.increment(next, since: base)
            if try round.interrupt(arguments, by: signals[number % signals.count]) {
                interrupted += 1
            } else {
                round.target.finished()
                base = next
                continue
            }
            try round.succeed(arguments, next)
            base = next
        }
        print("\(kind): \(interrupted) copies were interrupted")
    }

    @Test(arguments: MatrixKind.here)
    func `an increment from another cut than that of the target is refused, or right`(
        _ kind: MatrixKind
    ) throws {
        let round = try Round(kind, "wrong base")
        try round.change()
        try round.take("b")
        // Its copy is of the earlier cut, and what changed since the later one is not enough.
        try round.succeed(round.target.full("a"), "a")
        try round.change()
        try round.take("c")
        try round.expectRefusal([5], round.target.increment("c", since: "b"))
        try round.expect("a")
        // An earlier base names more than is needed.
        try round.succeed(round.target.increment("c", since: "a"), "c")
    }

    @Test(arguments: MatrixKind.here)
    func `another disk under the same name is never taken for the copy`(_ kind: MatrixKind) throws {
        let round = try Round(kind, "another disk")
        try round.succeed(round.target.full("a"), "a")
        try round.target.replace()
        try round.change()
        try round.take("b")
        try round.expectRefusal([4, 5], round.target.increment("b", since: "a"))
        #expect(try round.target.isUntouched())
    }

    @Test(arguments: MatrixKind.here)
    func `what somebody wrote to since gets no increment`(_ kind: MatrixKind) throws {
        let round = try Round(kind, "written since")
        try round.succeed(round.target.full("a"), "a")
        // At the beginning, where whoever uses a disk writes: on an export nothing else tells.
        try round.target.write(at: 512)
        try round.take("b")
        try round.expectRefusal([5], round.target.increment("b", since: "a"))
        // Of a qcow2 file a full copy goes into a new one.
        if kind != .qcow { try round.expectRefusal([4], round.target.full("b")) }
    }

    @Test(arguments: MatrixKind.here)
    func `what somebody wrote to while it was interrupted is not finished as if it were right`(
        _ kind: MatrixKind
    ) throws {
        let round = try Round(kind, "written while interrupted")
        try round.succeed(round.target.full("a"), "a")
        try round.change()
        try round.take("b")
        let arguments = round.target.increment("b", since: "a")
        guard try round.interrupt(arguments, by: SIGTERM) else {
            round.target.finished()
            try round.expect("b")
            return
        }
        if kind != .qcow { try round.target.write(at: 512) }
        try round.expectRightOr([5], arguments, "b")
    }

    @Test(arguments: MatrixKind.here.filter { [.disk, .nbdkit, .qemuNBD].contains($0) })
    func `one that is too small is refused`(_ kind: MatrixKind) throws {
        let round = try Round(kind, "too small")
        let small = try kind.make(
            round.harness.files.root, round.harness.byteCount - 4096, name: "small")
        for force in [[], ["--force"]] {
            try round.expectRefusal([1], small.full("a") + force)
            #expect(try small.isUntouched())
        }
    }

    @Test(
        .enabled(if: isRoot, "mounting needs root"),
        arguments: MatrixKind.here.filter { [.file, .qcow, .nbdkit, .qemuNBD].contains($0) })
    func `one whose place is full says so, and is finished when there is room`(
        _ kind: MatrixKind
    ) throws {
        let round = try Round(kind, "full")
        try round.harness.write(round.generator.bytes(6 * mebibyte), at: 0)
        try round.take("b")
        let memory = try MountedMemory(byteCount: 3 * mebibyte)
        let target = try kind.make(memory.path, round.harness.byteCount)
        let outcome = try round.run(target.full("b"))
        #expect(outcome.status == 1, "\(outcome)")
        #expect(outcome.diagnostics.contains("room"), "\(outcome.diagnostics)")
        try Command.check("mount", ["-o", "remount,size=64M", memory.path])
        #expect(try round.run(target.full("b")).status == 0)
        target.finished()
        #expect(
            try target.contents(round.harness.byteCount).firstDifference(
                from: round.cuts["b"] ?? []) == nil)
    }
}
