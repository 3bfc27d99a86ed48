import Foundation
import Glibc
import TestSupport
import Testing

/// What is special to targets that are neither files nor block devices.
@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Targets of copies` {
    private func harness(_ seed: String) throws -> (CopyHarness, SeededGenerator) {
        let harness = try CopyHarness(byteCount: 8 * mebibyte)
        var generator = SeededGenerator.announced(seed)
        try harness.change(8, &generator)
        try harness.take("a")
        return (harness, generator)
    }

    // MARK: qcow2

    @Test(.enabled(if: Command.exists("qemu-nbd"), "it needs qemu-utils"))
    func `a qcow2 copy stays as it is, and what changed lies on it`() throws {
        var (harness, generator) = try harness("qcow2 chain")
        var cuts = [harness.contents]
        func file(_ number: Int) -> String { harness.files.path("n\(number).qcow2") }
        try harness.command("copy", "disk@a", file(0))
        for number in 1...3 {
            try harness.change(6, &generator)
            // No --since: it begins at the cut of what it lies on.
            let result = try harness.json(
                [
                    "copy", "disk", file(number), "--onto", file(number - 1), "--checkpoint",
                    "n\(number)",
                ])
            #expect(result["full"] as? Bool == false, "\(result)")
            cuts.append(harness.contents)
        }
        for (number, cut) in cuts.enumerated() {
            #expect(try qcowContents(file(number), harness.byteCount) == cut, "\(number)")
            try Command.check("qemu-img", ["check", "-q", file(number)])
        }
        let info = try Command.check("qemu-img", ["info", file(3)])
        #expect(info.contains("backing file: n2.qcow2"), "\(info)")
        try harness.command("restore", file(1), harness.files.path("back"))
        #expect(try readFile(harness.files.path("back"), 0..<harness.byteCount) == cuts[1])
        try harness.take("now")
        try harness.command("verify", file(3), "disk@now")
        try harness.command("verify", file(1), "disk@now", "--audit")
        try harness.expectRefusal(4, "--onto", ["copy", "disk@now", file(3), "--since", "n3"])
        try harness.expectRefusal(4, "backing file of", ["copy", "disk@now", file(1), "--force"])
        try harness.expectRefusal(2, "--keep", ["copy", "disk@now", file(9), "--keep", "k"])
        // The whole chain counts: the lowest one changed.
        try Command.check("qemu-io", ["-c", "write -P 1 0 512", file(0)])
        try harness.expectRefusal(
            5, "changed since", ["copy", "disk@now", file(4), "--onto", file(3)])
        #expect(access(file(4), F_OK) != 0)
        let states = try harness.command("copies", file(3), "--json")
        #expect(states.contains("\"changed\""), "\(states)")
        // Everything anew, where the user leaves the choice.
        let anew = try harness.json(
            ["copy", "disk@now", file(4), "--onto", file(3), "--since", "auto"])
        #expect(anew["full"] as? Bool == true)
        #expect(try qcowContents(file(4), harness.byteCount) == harness.contents)
    }

    @Test(.enabled(if: Command.exists("qemu-nbd"), "it needs qemu-utils"))
    func `a qcow2 copy leaves no server behind, however it ends`() throws {
        var (harness, generator) = try harness("qcow2 servers")
        try harness.write(generator.bytes(8 * mebibyte), at: 0)
        try harness.take("b")
        let path = harness.files.path("killed.qcow2")
        for round in 0..<sized("killed qcow2 copies", soak: 40, otherwise: 6) {
            let process = try ChildProcess(
                TestService.binary,
                ["copy", "disk@b", path, "--control", harness.service.controlPath])
            // The instant is the test's subject, not a synchronisation.
            let end = monotonicSeconds() + Double.random(in: 0.03...0.25, using: &generator)
            while monotonicSeconds() < end { sched_yield() }
            process.send(signal: round % 2 == 0 ? SIGKILL : SIGINT)
            try process.wait(deadline: 60)
            try waitUntil("qemu-nbd has gone") {
                try !FileManager.default.contentsOfDirectory(atPath: "/proc").contains { id in
                    // A process that has ended meanwhile.
                    (try? kernelText("/proc/\(id)/cmdline"))?.contains(path) == true
                }
            }
        }
        try harness.command("copy", "disk@b", path)
        #expect(try qcowContents(path, harness.byteCount) == harness.contents)
        try Command.check("qemu-img", ["check", "-q", path])
    }

    @Test func `a qcow2 copy needs QEMU's tools, and says so`() throws {
        let (harness, _) = try harness("qcow2 without QEMU")
        let outcome = try Command.run(
            TestService.binary,
            [
                "copy", "disk@a", harness.files.path("c.qcow2"), "--control",
                harness.service.controlPath,
            ], environment: ["PATH": "/nowhere"])
        #expect(outcome.status == 1)
        #expect(outcome.diagnostics.contains("qemu-utils"), "\(outcome.diagnostics)")
        #expect(access(harness.files.path("c.qcow2"), F_OK) != 0)
    }

    // MARK: NBD

    @Test(.enabled(if: Command.exists("nbdkit"), "it needs nbdkit"))
    func `an export is brought forward, and read back`() throws {
        var (harness, generator) = try harness("an export")
        let server = try ServedTarget(
            harness.files.path("target"), harness.byteCount + mebibyte, withNBDKit: true)
        try harness.command("copy", "disk@a", server.uri)
        for _ in 0..<3 {
            try harness.change(5, &generator)
            let result = try harness.json(["copy", "disk", server.uri, "--since", "auto"])
            #expect(result["full"] as? Bool == false, "\(result)")
            #expect(try server.contents(harness.byteCount) == harness.contents)
        }
        let list = try harness.command("copies", server.uri, "--json")
        #expect(list.contains("\"complete\""), "\(list)")
        try harness.take("now")
        try harness.command("verify", server.uri, "disk@now")
        let changed = harness.contents
        try harness.change(5, &generator)
        harness.disconnect()
        let restored = try harness.json(["restore", server.uri, "disk", "--yes"])
        #expect(restored["quick"] as? Bool == true, "\(restored)")
        try harness.takeContents()
        #expect(harness.contents == changed)
    }

    @Test func `an export of the service itself is refused, the copied one even by force`() throws {
        let (harness, _) = try harness("own exports")
        try makeSparseFile(harness.files.path("second"), byteCount: harness.byteCount)
        try harness.command("device", "attach", "second", harness.files.path("second"))
        let before = harness.contents
        for uri in [
            "nbd+unix:///NAME?socket=\(harness.service.socketPath)",
            "nbd://localhost:\(harness.service.port)/NAME",
            "nbd://127.0.0.1:\(harness.service.port)/NAME",
        ] {
            let own = uri.replacing("NAME", with: "disk")
            let other = uri.replacing("NAME", with: "second")
            for arguments in [[own], [own, "--force"], [other]] {
                try harness.expectRefusal(4, "itself", ["copy", "disk@a"] + arguments)
            }
            try harness.command("copy", "disk@a", other, "--force")
        }
        #expect(try readFile(harness.files.path("disk"), 0..<harness.byteCount) == before)
        #expect(try readFile(harness.files.path("second"), 0..<harness.byteCount) == before)
    }

    @Test func `a name that is no export is told apart`() throws {
        let (harness, _) = try harness("wrong names")
        for name in [
            "nbd://", "nbd+unix:///x", "nbd://h:0/x", "nbds://h/x", "nbd://h/x?tls-psk-file=/f",
            "nbd://h/%zz", "nbd://h/x?what=1", "rbd:pool", "rbd:/x", "rbd:a/b/c/d", "rbd:p/i@",
        ] {
            let outcome = try harness.run(["copy", "disk@a", name])
            #expect(outcome.status == 1, "\(name)")
            #expect(outcome.diagnostics.contains("give "), "\(name): \(outcome.diagnostics)")
        }
        try harness.expectRefusal(
            1, "not reachable", ["copy", "disk@a", "nbd+unix:///x?socket=/nowhere"])
        try harness.expectRefusal(
            2, "raw bytes", ["restore", harness.copyPath, "nbd://localhost/x", "--yes"])
    }

    @Test(
        .enabled(if: Command.exists("qemu-nbd"), "it needs qemu-utils"),
        .enabled(if: Command.exists("openssl"), "it needs openssl"))
    func `an export with a certificate is reached over TLS, and no other takes its place`() throws {
        let (harness, _) = try harness("TLS")
        let keys = try TLSFiles()
        try makeSparseFile(harness.files.path("target"), byteCount: harness.byteCount)
        let port = try TestService.freePort()
        let server = try ChildProcess(
            "qemu-nbd",
            [
                "--persistent", "--shared=8", "-f", "raw", "--object",
                "tls-creds-x509,id=tls0,endpoint=server,dir=\(keys.root),verify-peer=on",
                "--tls-creds", "tls0", "-p", "\(port)", "-b", "localhost", "-x", "copy",
                harness.files.path("target"),
            ])
        try waitUntil("qemu-nbd listens") {
            try Command.run("bash", ["-c", ": < /dev/tcp/localhost/\(port)"]).status == 0
        }
        let uri = "nbds://localhost:\(port)/copy?tls-certificates="
        try harness.command("copy", "disk@a", uri + keys.root)
        #expect(
            try readFile(harness.files.path("target"), 0..<harness.byteCount) == harness.contents)
        // Another authority does not vouch for it, and plain text is not spoken.
        let others = try TLSFiles()
        let refused = try harness.run(["copy", "disk@a", uri + others.root, "--force"])
        #expect(refused.status == 1 || refused.status == 4, "\(refused)")
        #expect(refused.diagnostics.contains("TLS"), "\(refused.diagnostics)")
        let plain = try harness.run(["copy", "disk@a", "nbd://localhost:\(port)/copy", "--force"])
        #expect(plain.status == 1 || plain.status == 4)
        withExtendedLifetime(server) {}
    }

    // MARK: Rate and progress

    @Test func `a limited copy keeps to its rate, and tells how far it is`() throws {
        var (harness, generator) = try harness("limited")
        try harness.write(generator.bytes(4 * mebibyte), at: 0)
        try harness.take("b")
        let begun = monotonicSeconds()
        let outcome = try harness.run(
            ["copy", "disk@b", harness.copyPath, "--limit-rate", "2M", "--progress", "--json"])
        #expect(outcome.status == 0)
        // 4 MiB at 2 MiB/s, less what may come at once.
        #expect(monotonicSeconds() - begun > 1.5)
        let lines = outcome.diagnostics.split(separator: "\n").compactMap { line in
            // What is no JSON is no line of progress.
            (try? JSONSerialization.jsonObject(with: Data(line.utf8))) as? [String: Any]
        }
        #expect(lines.count >= 2, "\(outcome.diagnostics)")
        let done = lines.compactMap { $0["done_bytes"] as? Int }
        #expect(done == done.sorted() && done.last == harness.byteCount, "\(done)")
        try harness.expectCopyIsRight("a limited one")
        try harness.expectRefusal(
            2, "limit-rate", ["copy", "disk@b", harness.copyPath, "--limit-rate", "0"])
    }

    @Test func `Ctrl-C says how far it came and how to go on`() throws {
        var (harness, generator) = try harness("interrupted")
        try harness.write(generator.bytes(8 * mebibyte), at: 0)
        try harness.take("b")
        for (source, words) in [("disk@b", "to continue"), ("disk", "starts over")] {
            let target = harness.files.path("interrupted-\(source)")
            let log = harness.files.path("log-\(source)")
            let process = try ChildProcess(
                TestService.binary,
                [
                    "copy", source, target, "--limit-rate", "1M", "--progress", "--control",
                    harness.service.controlPath,
                ], diagnostics: log)
            try waitUntil("the copy is under way") {
                (try? String(contentsOfFile: log, encoding: .utf8).contains("/s")) == true
            }
            process.send(signal: SIGINT)
            #expect(try process.wait(deadline: 30) == .exited(1))
            let said = try String(contentsOfFile: log, encoding: .utf8)
            #expect(said.contains("interrupted after") && said.contains(words), "\(said)")
        }
        let result = try harness.json(["copy", "disk@b", harness.files.path("interrupted-disk@b")])
        #expect(result["transferred_bytes"] as? Int ?? .max < 8 * mebibyte, "\(result)")
    }
}

/// An authority, and a server and a client that it vouches for, in the files that QEMU and libnbd
/// look for.
private final class TLSFiles {
    private let directory: TemporaryDirectory
    var root: String { directory.root }

    init() throws {
        directory = try TemporaryDirectory()
        let script = """
            set -e; cd '\(directory.root)'; umask 077
            curve="-algorithm EC -pkeyopt ec_paramgen_curve:P-256"
            openssl genpkey $curve -out ca-key.pem
            openssl req -x509 -new -key ca-key.pem -days 2 -subj "/CN=authority of a test" \
                -addext basicConstraints=critical,CA:TRUE \
                -addext keyUsage=critical,keyCertSign,cRLSign -out ca-cert.pem
            for name in server client; do
                openssl genpkey $curve -out $name-key.pem
                openssl req -new -key $name-key.pem -subj "/CN=$name of a test" -out $name.csr
                printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\\nkeyUsage=digitalSignature\\n' >ext
                openssl x509 -req -in $name.csr -CA ca-cert.pem -CAkey ca-key.pem -days 2 \
                    -CAcreateserial -extfile ext -out $name-cert.pem
            done
            """
        try Command.check("bash", ["-c", script + " 2>&1"])
    }
}
