import Foundation
import Glibc
import TestSupport

/// A socket that a test opens, as a service manager does.
final class TestSocket {
    let descriptor: Int32
    /// Of a Unix socket; empty for TCP.
    let path: String

    /// A Unix socket at `path`; removed by its directory.
    init(unix path: String, kind: __socket_type = SOCK_STREAM, listens: Bool = true) throws {
        self.path = path
        descriptor = socket(AF_UNIX, Int32(kind.rawValue | SOCK_CLOEXEC.rawValue), 0)
        var name = sockaddr_un()
        name.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: path.utf8) }
        try take(&name, listens: listens)
    }

    /// A TCP socket of the IPv4 `address`.
    init(tcp address: UInt32, port: UInt16) throws {
        path = ""
        descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        var name = sockaddr_in()
        name.sin_family = sa_family_t(AF_INET)
        name.sin_port = port.bigEndian
        name.sin_addr.s_addr = address.bigEndian
        try take(&name, listens: true)
    }

    deinit { close(descriptor) }

    /// What the file of the socket is: who owns it, and which one it is.
    var facts: (inode: UInt64, owner: uid_t)? {
        var facts = stat()
        guard lstat(path, &facts) == 0, facts.st_mode & S_IFMT == S_IFSOCK else { return nil }
        return (UInt64(facts.st_ino), facts.st_uid)
    }

    private func take<Address>(_ name: inout Address, listens: Bool) throws {
        let result = withUnsafeBytes(of: &name) {
            bind(
                descriptor, $0.baseAddress!.assumingMemoryBound(to: sockaddr.self),
                socklen_t($0.count))
        }
        guard result == 0, !listens || listen(descriptor, 64) == 0 else {
            throw TestFailure("\(path): \(String(cString: strerror(errno)))")
        }
    }
}

/// Starts services as a service manager does: with sockets it has opened, and one on which it is
/// told that they are ready.
final class TestManager {
    let directory: TemporaryDirectory
    let control: TestSocket
    let nbd: TestSocket
    private let notifications: TestSocket
    private let log: String

    init() throws {
        directory = try TemporaryDirectory()
        // Others may enter, for a service that gives up root.
        chmod(directory.root, 0o755)
        control = try TestSocket(unix: directory.path("c.sock"))
        nbd = try TestSocket(unix: directory.path("n.sock"))
        notifications = try TestSocket(
            unix: directory.path("notify.sock"), kind: SOCK_DGRAM, listens: false)
        log = directory.path("log")
    }

    /// Its own directories, and a path for a control socket that is not passed.
    var arguments: [String] {
        [
            "serve", "--control", directory.path("own.sock"), "--state-dir",
            directory.path("state"), "--runtime-dir", directory.path("run"), "--loops", "2",
        ]
    }

    /// Starts a program with sockets; `names` and `process` are what it is told of them.
    func spawn(
        _ arguments: [String], passing sockets: [TestSocket], names: String?,
        count: String? = nil, process: String = "$$"
    ) throws -> ChildProcess {
        var environment = [
            "LISTEN_FDS": count ?? "\(sockets.count)", "NOTIFY_SOCKET": notifications.path,
        ]
        environment["LISTEN_FDNAMES"] = names
        // The shell becomes the program, which keeps its number.
        return try ChildProcess(
            "/bin/sh",
            ["-c", "export LISTEN_PID=\(process); exec \"$@\"", "sh", TestService.binary]
                + arguments,
            environment: environment, diagnostics: log, passing: sockets.map(\.descriptor))
    }

    /// Starts a service with the control and the NBD socket and waits until it is ready.
    func start(_ more: [String] = []) throws -> ChildProcess {
        let service = try spawn(
            arguments + more, passing: [control, nbd], names: "control:nbd")
        try waitUntilReady(service)
        return service
    }

    func waitUntilReady(_ service: ChildProcess) throws {
        guard try service.readLine(deadline: 120) == "ready" else {
            throw TestFailure("not ready: \(logged)")
        }
    }

    /// What the service manager was told since it was asked last.
    func notification() -> String? {
        var bytes = [UInt8](repeating: 0, count: 64)
        let count = recv(notifications.descriptor, &bytes, bytes.count, Int32(MSG_DONTWAIT))
        return count > 0 ? String(decoding: bytes[..<count], as: UTF8.self) : nil
    }

    /// Stops a service as an operator does.
    func stop(_ service: ChildProcess) throws -> ChildProcess.Ending {
        service.send(signal: SIGTERM)
        return try service.wait(deadline: 120)
    }

    /// Runs a client command against the passed control socket.
    func client(_ arguments: String...) throws -> Command.Outcome {
        try Command.run(TestService.binary, arguments + ["--control", control.path])
    }

    var logged: String {
        // A log that is not there yet is empty.
        (try? String(contentsOfFile: log, encoding: .utf8)) ?? ""
    }
}
