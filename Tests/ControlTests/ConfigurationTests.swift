import Foundation
import TestSupport
import Testing

/// Lists of lists, and the longest of them as a key.
private let laughs =
    "user: &a [x]\nloops: &b [*a,*a,*a,*a]\ntls: &c [*b,*b,*b,*b]\n? [*c]\n: 1\n"

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `The configuration file` {
    private let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private func check(_ text: String, _ arguments: String...) throws -> Command.Outcome {
        let file = directory.path("stillpoint.yaml")
        try text.write(toFile: file, atomically: true, encoding: .utf8)
        return try Command.run(
            TestService.binary, ["serve", "--config", file, "--check"] + arguments,
            environment: ["STILLPOINT_CONTROL": directory.path("c.sock")])
    }

    private var good: String {
        """
        control: \(directory.path("c.sock"))
        state-dir: \(directory.path("state"))
        runtime-dir: \(directory.path("run"))
        nbd: [unix:\(directory.path("n.sock")), tcp:127.0.0.1:10809]
        loops: 2
        allow-plaintext: false
        log-level: debug
        attach:
          vm1: \(directory.path("vm1.img"))
          vm2:
            path: \(directory.path("vm2.img"))
            read-only: true
            sector-size: 4096

        """
    }

    @Test func `has every option of the command line`() throws {
        let dump = try Command.check(TestService.binary, ["serve", "--experimental-dump-help"])
        let tree = try #require(
            try JSONSerialization.jsonObject(with: Data(dump.utf8)) as? [String: Any])
        let command = try #require(tree["command"] as? [String: Any])
        let arguments = try #require(command["arguments"] as? [[String: Any]])
        let options = arguments.compactMap { argument -> String? in
            let names = argument["names"] as? [[String: Any]]
            return names?.first { $0["kind"] as? String == "long" }?["name"] as? String
        }
        let known = try check("nothing: here\n").diagnostics
        #expect(options.count > 8)
        for option in options where !["config", "check", "help", "version"].contains(option) {
            #expect(known.contains(option), "\(option) cannot be configured")
        }
    }

    @Test func `is served as it says, and the command line overrides it`() throws {
        for name in ["vm1", "vm2", "vm3"] {
            try makeSparseFile(directory.path(name + ".img"), byteCount: 1 << 20)
        }
        let outcome = try check(good)
        #expect(outcome.status == 0, "\(outcome.diagnostics)")
        #expect(access(directory.path("state"), F_OK) != 0, "a check makes nothing")
        let file = directory.path("stillpoint.yaml")
        let service = try ChildProcess(
            TestService.binary,
            [
                "serve", "--config", file, "--nbd", "unix:" + directory.path("other.sock"),
                "--loops", "1",
            ], diagnostics: directory.path("log"))
        #expect(try service.readLine(deadline: 120) == "ready")
        let text = try Command.check(
            TestService.binary, ["status", "--json", "--control", directory.path("c.sock")])
        let status = try #require(
            try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
        let devices = try #require(status["devices"] as? [[String: Any]])
        #expect(devices.compactMap { $0["name"] as? String } == ["vm1", "vm2"])
        #expect(devices.compactMap { $0["read_only"] as? Bool } == [false, true])
        #expect(devices.compactMap { $0["sector_size"] as? Int } == [512, 4096])
        #expect((status["loops"] as? [Any])?.count == 1)
        #expect(status["nbd"] as? [String] == ["unix:" + directory.path("other.sock")])
        // A check says nothing against the service that runs.
        #expect(try check(good).status == 0)
        service.send(signal: SIGTERM)
        #expect(try service.wait(deadline: 120) == .exited(0))
    }

    @Test(arguments: [
        ("loops: 2\nbogus: 1\n", 2, "bogus"), ("loops: many\n", 1, "from 1 to 64"),
        ("loops: 65\n", 1, "from 1 to 64"), ("loops: [1]\n", 1, "whole number"),
        ("\n\nallow-plaintext: perhaps\n", 3, "true or false"),
        ("nbd: nowhere\n", 1, "nowhere"), ("http: nowhere\n", 1, "nowhere"),
        ("http-token-file: token\n", 1, "absolute"),
        ("http-hide-paths: perhaps\n", 1, "true or false"), ("control: c.sock\n", 1, "absolute"),
        ("log-level: loud\n", 1, "loud"), ("attach:\n  vm1: disk.img\n", 2, "absolute"),
        ("attach:\n  a b: /disk.img\n", 2, "a b"), ("attach:\n  - vm1\n", 2, "NAME=PATH"),
        ("attach:\n  vm1:\n    path: /x\n    color: red\n", 4, "color"),
        ("attach:\n  vm1:\n    read-only: true\n", 3, "path is missing"),
        ("attach:\n  vm1:\n    path: /x\n    sector-size: 513\n", 4, "512 or 4096"),
        ("attach:\n  vm1:\n    path: /x\n    sector-size: -512\n", 4, "512 or 4096"),
        ("loops: 989999999999999999:9\n", 1, "whole number"), ("loops: 1:30\n", 1, "whole number"),
        ("loops: 1\nloops: 2\n", 2, "loops"), ("- loops\n", 1, "keys and values"),
        ("loops: 1\n  state-dir: [\n", 2, "mapping"), ("state-dir: ~\n", 1, "one value"),
        // Found by fuzzing: ever longer lists as a key took for ever to compare.
        (laughs, 4, "aliases"),
    ])
    func `is refused with 2 and the line where it is wrong`(
        text: String, line: Int, words: String
    ) throws {
        let outcome = try check(text)
        #expect(outcome.status == 2)
        #expect(outcome.output == "")
        let place = "stillpoint.yaml:\(line):"
        #expect(outcome.diagnostics.contains(place), "\(outcome.diagnostics)")
        #expect(outcome.diagnostics.contains(words), "\(outcome.diagnostics)")
    }

    @Test func `tells all that is wrong at once`() throws {
        let outcome = try check("loops: many\nbogus: 1\ncontrol: c.sock\n")
        #expect(outcome.status == 2)
        for line in 1...3 { #expect(outcome.diagnostics.contains("stillpoint.yaml:\(line):")) }
    }

    @Test func `is checked against what is there`() throws {
        try makeSparseFile(directory.path("vm1.img"), byteCount: 1 << 20)
        let outcome = try check(
            good.replacingOccurrences(of: "tcp:127.0.0.1", with: "tcp:192.0.2.1"))
        #expect(outcome.status == 2)
        #expect(outcome.diagnostics.contains("vm2.img: No such file or directory"))
        #expect(outcome.diagnostics.contains("192.0.2.1"))
        #expect(!outcome.diagnostics.contains("vm1.img"))
        let socket = try check(good, "--control", directory.path("vm1.img"))
        #expect(socket.status == 2)
        #expect(socket.diagnostics.contains("is not a socket"))
        let missing = try Command.run(
            TestService.binary, ["serve", "--check", "--config", directory.path("none.yaml")])
        #expect(missing.status == 2)
        #expect(missing.diagnostics.contains("none.yaml: No such file or directory"))
    }
}
