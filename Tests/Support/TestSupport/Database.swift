import Foundation
import Glibc

/// A PostgreSQL server on a data directory, stopped when the object goes.
package final class Database: Sendable {
    /// Where its programs are; nil without them.
    package static let programs: String? = {
        let root = "/usr/lib/postgresql"
        let versions = (try? FileManager.default.contentsOfDirectory(atPath: root)) ?? []
        return versions.sorted().last.map { "\(root)/\($0)/bin" }.flatMap { folder in
            access(folder + "/postgres", X_OK) == 0 && getpwnam("postgres") != nil ? folder : nil
        }
    }()

    private let data: String
    private let socketDirectory: TemporaryDirectory
    private let ticket: Int

    /// Starts a server on `data`, which belongs to the user postgres.
    package init(on data: String) throws {
        self.data = data
        socketDirectory = try TemporaryDirectory()
        try Command.check("chown", ["postgres", socketDirectory.root])
        ticket = ExitCleanup.shared.register("kill -9 $(head -n 1 \(data)/postmaster.pid)")
        try Self.asPostgres(
            "pg_ctl",
            [
                "start", "--wait", "--timeout=120", "--pgdata", data, "--log", data + "/log",
                "--options", "-c listen_addresses= -k \(socketDirectory.root)",
            ])
    }

    deinit {
        // Once it is stopped there is nothing left to stop.
        _ = try? stop()
        ExitCleanup.shared.withdraw(ticket)
    }

    /// Stops it, with all clients.
    package func stop() throws {
        try Self.asPostgres("pg_ctl", ["stop", "--wait", "--mode=fast", "--pgdata", data])
    }

    /// Makes an empty database cluster.
    package static func make(in data: String) throws {
        try asPostgres("initdb", ["--pgdata", data, "--auth=trust", "--no-locale"])
    }

    /// The user postgres must reach a filesystem that is mounted below a directory of root's.
    package static func letIn(to mount: String) throws {
        try Command.check("chmod", ["0755", (mount as NSString).deletingLastPathComponent])
        try Command.check("chown", ["postgres", mount])
    }

    /// Runs one of its programs as its user.
    @discardableResult
    package static func asPostgres(_ program: String, _ arguments: [String]) throws -> String {
        guard let programs else { throw TestFailure("there is no PostgreSQL") }
        return try Command.check(
            "setpriv",
            ["--reuid=postgres", "--regid=postgres", "--clear-groups", "\(programs)/\(program)"]
                + arguments, deadline: 300)
    }

    /// Runs a client program against it.
    @discardableResult
    package func client(_ program: String, _ arguments: String...) throws -> String {
        try Self.asPostgres(program, ["--host", socketDirectory.root] + arguments)
    }

    /// The answer to a query, a single value.
    package func value(_ query: String) throws -> String {
        try client("psql", "--no-psqlrc", "-qAt", "-c", query, "postgres")
            .trimmingCharacters(in: .newlines)
    }

    /// A client that stays connected.
    package func session() throws -> ChildProcess {
        guard let programs = Self.programs else { throw TestFailure("there is no PostgreSQL") }
        return try ChildProcess(
            "setpriv",
            [
                "--reuid=postgres", "--regid=postgres", "--clear-groups", "\(programs)/psql",
                "--host", socketDirectory.root, "--no-psqlrc", "-qAt", "postgres",
            ], withInput: true)
    }
}
