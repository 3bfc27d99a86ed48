import Foundation
import Glibc
import TestSupport
import Testing

/// The units of `systemd/`. systemd does not run where the tests do, so what it would do with them
/// is done by hand.
@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `The systemd units` {
    private let units: TemporaryDirectory

    init() throws {
        units = try TemporaryDirectory()
        let program = (TestService.binary as NSString).deletingLastPathComponent
        try Command.check(
            PythonTools.repository + "/Scripts/install-units", [program, units.root])
    }

    /// The values that a unit gives to a key, with the specifiers of directories filled in.
    private func values(
        _ unit: String, _ key: String, in place: TemporaryDirectory
    ) throws -> [String] {
        try String(contentsOfFile: units.path(unit), encoding: .utf8).split(separator: "\n")
            .filter { $0.hasPrefix(key + "=") }.map { line in
                line.dropFirst(key.count + 1).replacingOccurrences(of: "%t", with: place.root)
                    .replacingOccurrences(of: "%S", with: place.path("lib"))
            }
    }

    @Test(.enabled(if: Command.exists("systemd-analyze"), "systemd is not installed"))
    func `are ones in which systemd finds no fault`() throws {
        let names = ["stillpoint.service", "stillpoint.socket", "stillpoint-nbd.socket"]
        let outcome = try Command.run(
            "systemd-analyze", ["verify", "--man=no"] + names.map { units.path($0) })
        #expect(outcome.status == 0)
        #expect(outcome.output + outcome.diagnostics == "")
    }

    @Test func `start a service with their sockets, and thaw after it`() throws {
        let manager = try TestManager()
        let place = manager.directory
        for name in ["stillpoint", "lib", "lib/stillpoint"] {
            #expect(mkdir(place.path(name), 0o700) == 0)
        }
        var sockets: [TestSocket] = []
        var names: [String] = []
        let wanted = try #require(try values("stillpoint.service", "Sockets", in: place).first)
        for unit in wanted.split(separator: " ").map(String.init) {
            for path in try values(unit, "ListenStream", in: place) {
                sockets.append(try TestSocket(unix: path))
                names += try values(unit, "FileDescriptorName", in: place)
            }
        }
        #expect(names == ["control", "nbd"])
        func words(_ key: String) throws -> [String] {
            let line = try #require(try values("stillpoint.service", key, in: place).first)
            // An option that is not set is no word.
            return line.split(separator: " ").map(String.init).filter { $0 != "$SERVE_OPTIONS" }
        }
        let start = try words("ExecStart")
        let stopPost = try words("ExecStopPost")
        #expect(start.first == TestService.binary && stopPost.first == TestService.binary)
        for isKilled in [true, false] {
            let service = try manager.spawn(
                Array(start.dropFirst()), passing: sockets,
                names: names.joined(separator: ":"))
            try manager.waitUntilReady(service)
            #expect(manager.notification() == "READY=1")
            #expect(!manager.logged.contains("is not bound"))
            let status = try Command.run(
                TestService.binary, ["status", "--control", sockets[0].path])
            #expect(status.status == 0)
            #expect(try Command.run(stopPost[0], Array(stopPost.dropFirst())).status == 4)
            if isKilled { try service.killAndWait() } else { _ = try manager.stop(service) }
            let thaw = try Command.run(stopPost[0], Array(stopPost.dropFirst()))
            #expect(thaw.status == 0, "\(thaw.diagnostics)")
            #expect(thaw.output == "nothing was frozen\n")
            #expect(sockets.allSatisfy { $0.facts != nil })
        }
    }
}
