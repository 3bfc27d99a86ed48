import Foundation
import Glibc
import TestSupport
import Testing

/// Copies in RBD images, and streams that Ceph's own tools read and write.
@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: TestCeph.obstacle == nil, "\(TestCeph.obstacle ?? "")"))
struct `Copies in Ceph` {
    private let ceph: TestCeph
    private let harness: CopyHarness
    private let target: RBDTarget

    init() throws {
        ceph = try TestCeph.shared.get()
        harness = try CopyHarness(byteCount: 16 * mebibyte)
        target = RBDTarget("vm-\(UInt32.random(in: 0 ... .max))")
    }

    private func run(_ arguments: [String]) throws -> Command.Outcome {
        try Command.run(
            TestService.binary, arguments + ["--control", harness.service.controlPath],
            environment: ceph.environment, deadline: 300)
    }

    @discardableResult
    private func succeed(_ arguments: String...) throws -> [String: Any] {
        let outcome = try run(arguments + ["--json"])
        guard outcome.status == 0 else {
            throw TestFailure("\(arguments): \(outcome.status) \(outcome.diagnostics)")
        }
        return try JSONSerialization.jsonObject(with: Data(outcome.output.utf8)) as? [String: Any]
            ?? [:]
    }

    private func refuse(_ status: Int32, _ words: String, _ arguments: String...) throws {
        let outcome = try run(arguments)
        #expect(outcome.status == status, "\(arguments): \(outcome.diagnostics)")
        #expect(outcome.diagnostics.contains(words), "\(outcome.diagnostics)")
    }

    private func snapshots() throws -> [String] {
        let text = try ceph.rbd("snap", "ls", "--format", "json", "rbd/\(target.image)")
        let list = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [[String: Any]]
        return list?.compactMap { $0["name"] as? String } ?? []
    }

    @Test func `leave a snapshot of each cut, from which a device can be rolled back`() throws {
        var generator = SeededGenerator.announced("versions in Ceph")
        var nights: [[UInt8]] = []
        for night in 0..<4 {
            try harness.change(6, &generator)
            let result = try succeed(
                "copy", "disk", target.name, "--since", "auto", "--checkpoint", "n\(night)")
            #expect(result["full"] as? Bool == (night == 0), "\(result)")
            nights.append(harness.contents)
        }
        #expect(try snapshots() == ["n0", "n1", "n2", "n3"])
        for (night, contents) in nights.enumerated() {
            #expect(try target.contents(harness.byteCount, at: "n\(night)") == contents)
        }
        let list = try run(["copies", target.name, "--json"])
        #expect(list.output.contains("@n2"), "\(list.output)")
        try harness.change(3, &generator)
        harness.disconnect()
        let back = try succeed("restore", target.name + "@n1", "disk", "--yes")
        #expect(back["quick"] as? Bool == true, "\(back)")
        try harness.takeContents()
        #expect(harness.contents == nights[1])
        try harness.reconnect()
        try harness.change(2, &generator)
        let next = try succeed(
            "copy", "disk", target.name, "--since", "auto", "--checkpoint", "n4")
        #expect(next["full"] as? Bool == false)
        #expect(try target.contents(harness.byteCount, at: "n4") == harness.contents)
        try succeed("snapshot", "create", "--device", "disk", "--name", "now")
        #expect(try run(["verify", target.name, "disk@now"]).status == 0)
        #expect(try run(["verify", target.name + "@n3", "disk@now"]).status == 1)
        #expect(try run(["verify", target.name + "@n3", "disk@now", "--audit"]).status == 0)
    }

    @Test func `are known again by what Ceph says of them, not by their name`() throws {
        var generator = SeededGenerator.announced("identity in Ceph")
        try harness.change(6, &generator)
        try harness.take("a")
        try succeed("copy", "disk@a", target.name)
        try harness.change(6, &generator)
        try harness.take("b")
        // The name of a snapshot is nobody's property.
        try ceph.rbd("snap", "rm", "--no-progress", "rbd/\(target.image)@a")
        try refuse(5, "written to", "copy", "disk@b", target.name, "--since", "a")
        try ceph.rbd("snap", "create", "--no-progress", "rbd/\(target.image)@a")
        try refuse(5, "written to", "copy", "disk@b", target.name, "--since", "a")
        try ceph.rbd("snap", "create", "--no-progress", "rbd/\(target.image)@b")
        try refuse(4, "snapshot b already", "copy", "disk@b", target.name, "--since", "auto")
        try ceph.rbd("snap", "rm", "--no-progress", "rbd/\(target.image)@b")
        try succeed("copy", "disk@b", target.name, "--since", "auto")
        #expect(try target.contents(harness.byteCount, at: "b") == harness.contents)
        // An image that holds something no record tells of.
        try ceph.rbd("create", "--size", "16M", "rbd/\(target.image)-other")
        try ceph.rbd(
            "bench", "--io-type", "write", "--io-size", "4K", "--io-total", "4K",
            "rbd/\(target.image)-other")
        try refuse(4, "no record", "copy", "disk@b", target.name + "-other")
    }

    @Test func `follow a device that grows and shrinks`() throws {
        var generator = SeededGenerator.announced("sizes in Ceph")
        try harness.change(6, &generator)
        try harness.take("a")
        try succeed("copy", "disk@a", target.name)
        #expect(truncate(harness.files.path("disk"), off_t(20 * mebibyte)) == 0)
        try harness.command("device", "resize", "disk")
        try harness.change(3, &generator)
        try harness.take("b")
        try succeed("copy", "disk@b", target.name, "--since", "a")
        let there = try target.contents(20 * mebibyte, at: "b")
        #expect(there.firstDifference(from: harness.contents) == nil)
        #expect(there.isZero(in: harness.byteCount..<20 * mebibyte))
    }

    @Test func `streams and Ceph's own differences make equal images`() throws {
        var generator = SeededGenerator.announced("differences of Ceph")
        try harness.change(8, &generator)
        for name in ["a", "b", "c"] {
            if name != "a" { try harness.change(6, &generator) }
            try harness.take(name)
        }
        let line = """
            set -e; set -o pipefail
            export CEPH_CONF=\(ceph.configuration)
            image=rbd/\(target.image)
            rbd create --size 16M $image
            "$stillpoint" copy disk@a - --format diff | rbd import-diff --no-progress - $image
            "$stillpoint" copy disk@b - --format diff --since a >"$files/ab"
            "$stillpoint" copy disk@c - --format diff --since b >"$files/bc"
            rbd merge-diff "$files/ab" "$files/bc" "$files/ac" >/dev/null
            rbd import-diff --no-progress "$files/ac" $image
            rbd export-diff --no-progress $image@c - | "$stillpoint" restore - "$files/back"
            """
        let outcome = try harness.bash(line)
        #expect(outcome.status == 0, "\(outcome.diagnostics)")
        #expect(try target.contents(harness.byteCount, at: nil) == harness.contents)
        #expect(try readFile(harness.files.path("back"), 0..<harness.byteCount) == harness.contents)
    }

    @Test func `killed at any instant leave an image that is finished`() throws {
        var generator = SeededGenerator.announced("killed copies in Ceph")
        try harness.write(generator.bytes(12 * mebibyte), at: 0)
        try harness.take("k0")
        // A client that was killed is waited for: up to half a minute each.
        for round in 0..<sized("killed copies in Ceph", soak: 12, otherwise: 1) {
            var arguments = ["copy", "disk@k\(round)", target.name]
            if round > 0 {
                arguments += ["--since", "k\(round - 1)"]
            }
            let process = try ChildProcess(
                TestService.binary, arguments + ["--control", harness.service.controlPath],
                environment: ceph.environment)
            // The instant is the test's subject, not a synchronisation.
            let end = monotonicSeconds() + Double.random(in: 0.1...0.8, using: &generator)
            while monotonicSeconds() < end { sched_yield() }
            process.send(signal: isSoak ? SIGKILL : SIGTERM)
            try process.wait(deadline: 120)
            let outcome = try run(arguments)
            #expect(outcome.status == 0, "\(outcome.diagnostics)")
            let there = try target.contents(harness.byteCount, at: "k\(round)")
            #expect(there.firstDifference(from: harness.contents) == nil)
            try harness.change(20, &generator)
            try harness.take("k\(round + 1)")
        }
    }
}
