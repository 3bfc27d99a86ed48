import Foundation
import Glibc
import TestSupport

/// A service of one test with its command line, without the need of an NBD client.
final class ControlHarness: Sendable {
    let service: TestService

    init(
        attaching origins: [String: String] = [:], environment: [String: String] = [:],
        extraArguments: [String] = []
    ) throws {
        service = try TestService(
            attaching: origins, loops: 2, extraArguments: extraArguments,
            environment: environment)
    }

    /// Makes a sparse disk image in the service's directory and returns its path.
    func image(_ name: String, byteCount: Int = 1 << 20) throws -> String {
        let path = service.directory.path(name)
        try makeSparseFile(path, byteCount: byteCount)
        return path
    }

    /// Runs a client command.
    func command(_ arguments: String...) throws -> Command.Outcome {
        try Command.run(
            TestService.binary, arguments + ["--control", service.controlPath], deadline: 300)
    }

    /// Runs a client command with `--json` and returns its one document.
    func document(_ arguments: String...) throws -> Any {
        let outcome = try Command.run(
            TestService.binary, arguments + ["--json", "--control", service.controlPath],
            deadline: 300)
        guard outcome.status == 0 else {
            throw TestFailure("\(arguments) ended with \(outcome.status): \(outcome.diagnostics)")
        }
        return try JSONSerialization.jsonObject(with: Data(outcome.output.utf8))
    }

    /// Runs a client command that must succeed.
    func done(_ arguments: String...) throws {
        try Command.check(
            TestService.binary, arguments + ["--control", service.controlPath], deadline: 300)
    }

    /// Attaches a disk image of that name and returns its path.
    @discardableResult
    func attach(_ name: String, byteCount: Int = 16 << 20) throws -> String {
        let path = try image(name + ".img", byteCount: byteCount)
        try done("device", "attach", name, path)
        return path
    }

    /// Runs a client command with `--json` and returns its one object.
    func object(_ arguments: String...) throws -> [String: Any] {
        let outcome = try Command.run(
            TestService.binary, arguments + ["--json", "--control", service.controlPath],
            deadline: 300)
        guard outcome.status == 0 else {
            throw TestFailure("\(arguments) ended with \(outcome.status): \(outcome.diagnostics)")
        }
        let document = try JSONSerialization.jsonObject(with: Data(outcome.output.utf8))
        guard let object = document as? [String: Any] else {
            throw TestFailure("\(arguments) printed no object: \(outcome.output)")
        }
        return object
    }

    /// The snapshots, as `snapshot list` has them: names, or ids.
    func snapshotNames() throws -> [String] {
        guard let list = try document("snapshot", "list") as? [[String: Any]] else {
            throw TestFailure("snapshot list is no list")
        }
        return list.compactMap { $0["name"] as? String ?? $0["id"] as? String }
    }

    /// The names of all exports.
    func exportNames() throws -> [String] {
        let client = try NBDClient(.unix(path: service.socketPath))
        try client.greet()
        // LIST; the last reply acknowledges, each of the others is a length, a name, and a text.
        return try client.negotiate(3).dropLast().map { reply in
            let length: UInt32 = reply.data.big(at: 0)
            return String(decoding: reply.data[4..<4 + Int(length)], as: UTF8.self)
        }.sorted()
    }

    /// Writes `length` bytes of `pattern` from `offset` on to an export, as another program.
    func fill(_ export: String, _ pattern: UInt8, offset: Int = 0, length: Int) throws {
        try Command.check(
            "qemu-io",
            ["-f", "raw", service.uri(export), "-c", "write -P \(pattern) \(offset) \(length)"])
    }

    /// Whether `length` bytes of an export from `offset` on are `pattern`, read by another program.
    func holds(_ export: String, _ pattern: UInt8, offset: Int = 0, length: Int) throws -> Bool {
        try Command.run(
            "qemu-io",
            [
                "-r", "-f", "raw", service.uri(export), "-c",
                "read -P \(pattern) \(offset) \(length)",
            ]
        ).status == 0
    }

    /// Unnamed files that the service has open.
    func unnamedFileCount() throws -> Int {
        let folder = "/proc/\(service.process.processID)/fd"
        return try FileManager.default.contentsOfDirectory(atPath: folder).count { name in
            // A descriptor that was closed meanwhile is none.
            let target = try? FileManager.default.destinationOfSymbolicLink(
                atPath: folder + "/" + name)
            return target?.hasSuffix("(deleted)") ?? false
        }
    }

    /// Names of the devices, as `device list` has them.
    func deviceNames() throws -> [String] {
        guard let list = try document("device", "list") as? [[String: Any]] else {
            throw TestFailure("device list is no list")
        }
        return list.compactMap { $0["name"] as? String }
    }

    /// Sends the bytes of an HTTP request and returns all that comes until the service closes.
    func exchange(_ request: String) throws -> String {
        let connection = try NBDClient(.unix(path: service.controlPath))
        try connection.send(Array(request.utf8))
        return try Self.readToEnd(connection)
    }

    /// Sends a request with a body and returns the status and the answer's document.
    func http(
        _ method: String, _ target: String, body: String = ""
    ) throws -> (status: Int, document: [String: Any]) {
        let answer = try exchange(
            "\(method) \(target) HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                + "Content-Length: \(body.utf8.count)\r\n\r\n\(body)")
        let parts = answer.split(separator: "\r\n\r\n", maxSplits: 1)
        guard let status = answer.split(separator: " ").dropFirst().first.flatMap({ Int($0) }),
            parts.count == 2
        else { throw TestFailure("no HTTP: \(answer)") }
        let object = try JSONSerialization.jsonObject(with: Data(parts[1].utf8))
        return (status, object as? [String: Any] ?? [:])
    }

    private static func readToEnd(_ connection: NBDClient) throws -> String {
        var bytes: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = recv(connection.descriptor, &piece, piece.count, 0)
            if count < 0, errno == EINTR { continue }
            // What the service resets was answered before, or not at all.
            guard count > 0 else { return String(decoding: bytes, as: UTF8.self) }
            bytes += piece[..<count]
        }
    }
}
