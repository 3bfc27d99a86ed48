import Foundation
import Glibc
import TestSupport
import Testing

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Sockets that a service manager passes` {
    private let manager: TestManager

    init() throws { manager = try TestManager() }

    /// A client that has asked on the control socket, whether or not anybody listens yet.
    private func asking() throws -> NBDClient {
        let client = try NBDClient(.unix(path: manager.control.path))
        try client.send(
            Array("GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".utf8))
        return client
    }

    private func expectAnswer(to client: NBDClient) throws {
        let answer = String(decoding: try client.receive(15), as: UTF8.self)
        #expect(answer == "HTTP/1.1 200 OK")
    }

    @Test func `serve clients that connected before the service was there`() throws {
        try makeSparseFile(manager.directory.path("disk.img"), byteCount: 1 << 20)
        // Some managers hand sockets over like this; to wait for clients is then forbidden.
        #expect(fcntl(manager.nbd.descriptor, F_SETFL, O_NONBLOCK) == 0)
        let early = try asking()
        let reader = try NBDClient(.unix(path: manager.nbd.path))
        let service = try manager.start(["--attach", "a=\(manager.directory.path("disk.img"))"])
        // It was sent before `ready` was printed, so it is there.
        #expect(manager.notification() == "READY=1")
        try expectAnswer(to: early)
        try reader.greet()
        try reader.open("a", headers: .simple)
        #expect(try reader.read(0, 4096) == [UInt8](repeating: 0, count: 4096))
        #expect(fcntl(manager.nbd.descriptor, F_GETFL) & O_NONBLOCK == 0)

        let status = try manager.client("status", "--json")
        let document = try #require(
            try JSONSerialization.jsonObject(with: Data(status.output.utf8)) as? [String: Any])
        #expect(document["control"] as? String == manager.control.path)
        #expect(document["nbd"] as? [String] == ["unix:" + manager.nbd.path])
        #expect(access(manager.directory.path("own.sock"), F_OK) != 0, "--control is not bound")
        #expect(manager.logged.contains("own.sock is not bound"))
        #expect(try manager.stop(service) == .exited(0), "\(manager.logged)")
    }

    @Test func `stay where they are after a stop and a kill, for the next service`() throws {
        try makeSparseFile(manager.directory.path("disk.img"), byteCount: 1 << 20)
        let before = try #require(manager.control.facts)
        var service = try manager.start(["--attach", "a=\(manager.directory.path("disk.img"))"])
        for isKilled in [false, true] {
            if isKilled {
                try service.killAndWait()
            } else {
                #expect(try manager.stop(service) == .exited(0), "\(manager.logged)")
            }
            #expect(try #require(manager.control.facts) == before)
            #expect(manager.nbd.facts != nil)
            let waiting = try asking()
            service = try manager.start()
            try expectAnswer(to: waiting)
            let reader = try NBDClient(.unix(path: manager.nbd.path), export: "a")
            #expect(reader.byteCount == 1 << 20)
        }
        #expect(try manager.stop(service) == .exited(0), "\(manager.logged)")
    }

    @Test func `are not looked at when they are for another process`() throws {
        let service = try manager.spawn(
            manager.arguments + ["--nbd", "unix:" + manager.directory.path("own-nbd.sock")],
            passing: [manager.control, manager.nbd], names: "control:nbd", process: "1")
        try manager.waitUntilReady(service)
        let own = try Command.run(
            TestService.binary, ["status", "--control", manager.directory.path("own.sock")])
        #expect(own.status == 0)
        #expect(own.output.contains("own-nbd.sock"))
        #expect(!own.output.contains(manager.nbd.path))
        #expect(try manager.stop(service) == .exited(0))
        #expect(access(manager.directory.path("own.sock"), F_OK) != 0)
        #expect(manager.control.facts != nil)
    }

    @Test func `of one kind alone leave the other to the options`() throws {
        // NBD alone: the control socket is bound, and NBD's default is not.
        let service = try manager.spawn(manager.arguments, passing: [manager.nbd], names: "nbd")
        try manager.waitUntilReady(service)
        let status = try Command.run(
            TestService.binary,
            ["status", "--json", "--control", manager.directory.path("own.sock")])
        let document = try #require(
            try JSONSerialization.jsonObject(with: Data(status.output.utf8)) as? [String: Any])
        #expect(document["nbd"] as? [String] == ["unix:" + manager.nbd.path])
        #expect(access(manager.directory.path("nbd.sock"), F_OK) != 0)
        #expect(try manager.stop(service) == .exited(0))
    }

    @Test func `are served once when an option names them too`() throws {
        let other = manager.directory.path("other.sock")
        let service = try manager.start([
            "--nbd", "unix:" + manager.nbd.path, "--nbd", "unix:" + other,
        ])
        _ = try NBDClient(.unix(path: other)).greet()
        _ = try NBDClient(.unix(path: manager.nbd.path)).greet()
        #expect(try manager.stop(service) == .exited(0))
        #expect(access(other, F_OK) != 0, "its own socket is removed")
        #expect(manager.nbd.facts != nil)
    }

    @Test func `are nothing that the service's programs see`() throws {
        try makeSparseFile(manager.directory.path("disk.img"), byteCount: 1 << 20)
        let hook = manager.directory.path("hook")
        let record = manager.directory.path("record")
        try makeScript(
            hook,
            """
            env | grep -E '^(LISTEN|NOTIFY)_' > \(record)
            ls -l /proc/self/fd | grep socket: >> \(record)
            echo end >> \(record)
            """)
        let service = try manager.start(["--attach", "a=\(manager.directory.path("disk.img"))"])
        let taken = try manager.client(
            "snapshot", "create", "--device", "a", "--name", "s", "--pre", hook)
        #expect(taken.status == 0, "\(taken.diagnostics)")
        #expect(try String(contentsOfFile: record, encoding: .utf8) == "end\n")
        for descriptor in [3, 4] {
            let facts = try String(
                contentsOfFile: "/proc/\(service.processID)/fdinfo/\(descriptor)", encoding: .utf8)
            let flags = facts.firstMatch(of: /flags:\t([0-7]+)/).flatMap { Int($0.1, radix: 8) }
            #expect(try #require(flags) & Int(O_CLOEXEC) != 0, "\(facts)")
        }
        let guardian = try #require(try guardians(of: service.processID).first)
        let environment = try Data(contentsOf: URL(filePath: "/proc/\(guardian)/environ"))
        let text = String(decoding: environment, as: UTF8.self)
        #expect(!text.contains("LISTEN_") && !text.contains("NOTIFY_SOCKET"))
        #expect(try manager.stop(service) == .exited(0))
    }

    @Test(.enabled(if: isRoot, "needs root to give up"))
    func `stay their maker's when the service gives up root`() throws {
        let service = try manager.start(["--user", "nobody"])
        let status = try manager.client("status")
        #expect(status.status == 0, "\(status.diagnostics)")
        #expect(manager.control.facts?.owner == 0 && manager.nbd.facts?.owner == 0)
        #expect(try manager.stop(service) == .exited(0), "\(manager.logged)")
    }

    // MARK: TCP

    @Test func `of TCP are served on loopback addresses, and beyond them when that is meant`()
        throws
    {
        let port = try TestService.freePort()
        let local = try TestSocket(tcp: 0x7f00_0001, port: port)
        let everywhere = try TestSocket(tcp: 0, port: try TestService.freePort())
        func spawn(_ socket: TestSocket, _ more: [String] = []) throws -> ChildProcess {
            try manager.spawn(
                manager.arguments + more, passing: [manager.control, socket],
                names: "control:nbd")
        }
        var service = try spawn(local)
        try manager.waitUntilReady(service)
        _ = try NBDClient(.tcp(port: port)).greet()
        #expect(try manager.client("status").output.contains("tcp:127.0.0.1:\(port)"))
        #expect(try manager.stop(service) == .exited(0))

        service = try spawn(everywhere)
        #expect(try service.readLine(deadline: 120) == nil)
        #expect(try service.wait(deadline: 60) == .exited(2))
        #expect(manager.logged.contains("is not a loopback address"))

        service = try spawn(everywhere, ["--allow-plaintext"])
        try manager.waitUntilReady(service)
        #expect(try manager.stop(service) == .exited(0))
    }

    // MARK: Refusals

    private func expectRefusal(
        _ sockets: [TestSocket], _ names: String?, count: String? = nil, says words: String,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let service = try manager.spawn(
            manager.arguments, passing: sockets, names: names, count: count)
        #expect(try service.readToEnd(deadline: 120) == "", sourceLocation: sourceLocation)
        #expect(try service.wait(deadline: 60) == .exited(2), sourceLocation: sourceLocation)
        #expect(
            manager.logged.contains(words), "\(manager.logged)", sourceLocation: sourceLocation)
        #expect(access(manager.directory.path("state"), F_OK) != 0, "nothing was begun")
    }

    @Test func `are refused with 2 when they serve nothing here or are no such sockets`() throws {
        let (control, nbd) = (manager.control, manager.nbd)
        try expectRefusal(
            [control, nbd], "control:web",
            says: "passed socket \"web\" (descriptor 4) serves nothing here; name it control or nbd"
        )
        try expectRefusal([control], nil, says: "LISTEN_FDNAMES names 0 of 1 passed sockets")
        try expectRefusal([control, nbd], "control", says: "names 1 of 2 passed sockets")
        try expectRefusal([control, nbd], "control:control", says: "second control socket")
        try expectRefusal([control], "control", count: "65", says: "takes 0 to 64 sockets")
        try expectRefusal([control], "control", count: "some", says: "LISTEN_FDS is \"some\"")
        // The program itself may have opened the first ones after those that were passed.
        try expectRefusal([control], "control", count: "60", says: "is not open")
        let silent = try TestSocket(unix: manager.directory.path("silent.sock"), listens: false)
        try expectRefusal([silent], "nbd", says: "not a listening stream socket")
        let datagrams = try TestSocket(
            unix: manager.directory.path("datagrams.sock"), kind: SOCK_DGRAM, listens: false)
        try expectRefusal([datagrams], "control", says: "not a listening stream socket")
        let tcp = try TestSocket(tcp: 0x7f00_0001, port: try TestService.freePort())
        try expectRefusal([tcp], "control", says: "the control socket is a Unix socket")
        let abstract = try TestSocket(unix: "\0stillpoint-\(getpid())")
        try expectRefusal([abstract], "nbd", says: "neither a Unix socket with a path nor TCP")
    }
}

/// The children of a service: its guardian.
func guardians(of service: pid_t) throws -> [pid_t] {
    let folder = "/proc/\(service)/task"
    return try FileManager.default.contentsOfDirectory(atPath: folder).flatMap { task in
        // A thread that has ended meanwhile has no children.
        let text = try? String(contentsOfFile: "\(folder)/\(task)/children", encoding: .utf8)
        return (text ?? "").split(separator: " ").compactMap { pid_t($0) }
    }
}
