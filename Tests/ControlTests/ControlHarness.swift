import Foundation
import Glibc
import TestSupport

/// A service of one test with its command line, without the need of an NBD client.
final class ControlHarness {
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
        do {
            while true { bytes += try connection.receive(1) }
        } catch is ConnectionEnded {}
        return String(decoding: bytes, as: UTF8.self)
    }
}
