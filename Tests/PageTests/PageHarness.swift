import Foundation
import Glibc
import TestSupport

/// A service of one test that serves the page.
final class PageHarness: Sendable {
    let service: TestService
    let port: UInt16

    /// `arguments`: besides `--http`. `host`: where it listens.
    convenience init(_ arguments: [String] = [], host: String = "127.0.0.1") throws {
        let port = try TestService.freePort()
        try self.init(port: port, ["--http", "tcp:\(host):\(port)"] + arguments)
    }

    /// `arguments` have it listen on that port.
    init(port: UInt16, _ arguments: [String]) throws {
        self.port = port
        service = try TestService(attaching: [:], loops: 2, extraArguments: arguments)
    }

    var address: String { "http://127.0.0.1:\(port)" }

    /// Runs a client command that must succeed; returns what it printed.
    @discardableResult
    func done(_ arguments: String...) throws -> String {
        try Command.check(
            TestService.binary, arguments + ["--control", service.controlPath], deadline: 300)
    }

    /// Attaches a sparse disk image under that name.
    func attach(_ name: String, byteCount: Int = 64 << 20) throws {
        let path = service.directory.path(name + ".img")
        try makeSparseFile(path, byteCount: byteCount)
        try done("device", "attach", name, path)
    }

    /// Writes blocks of 4 KiB to a device, each at the offset of a block.
    func write(_ device: String, blocks: [UInt64], seed: UInt64 = 1) throws {
        let client = try NBDClient(.unix(path: service.socketPath), export: device)
        var generator = SeededGenerator(seed: seed)
        for block in blocks { try client.write(block * 4096, generator.bytes(4096)) }
    }

    /// The metrics of this moment: on the page's listener they are given again for a while.
    func metrics() throws -> String {
        try Command.check(
            "curl",
            ["-sS", "--unix-socket", service.controlPath, "http://localhost/metrics"])
    }

    /// An answer as it came.
    struct Answer {
        let status: Int
        let head: String
        let body: String

        /// The value of a header, by its name in lower case.
        func header(_ name: String) -> String? {
            head.components(separatedBy: "\r\n").first { line in
                line.lowercased().hasPrefix(name + ":")
            }.map { String($0.dropFirst(name.count + 1)).trimmingCharacters(in: .whitespaces) }
        }

        var document: [String: Any]? {
            let object = try? JSONSerialization.jsonObject(with: Data(body.utf8))
            return object as? [String: Any]
        }
    }

    /// Sends a request with these headers and no others, and reads until the service closes.
    func ask(
        _ method: String, _ target: String, _ headers: [String: String] = [:], body: String = "",
        host: String? = nil
    ) throws -> Answer {
        let connection = try NBDClient(.tcp(port: port))
        var text = "\(method) \(target) HTTP/1.1\r\nConnection: close\r\n"
        let all = ["Host": host ?? "127.0.0.1:\(port)"].merging(headers) { $1 }
        for (name, value) in all.sorted(by: { $0.key < $1.key }) where !value.isEmpty {
            text += "\(name): \(value)\r\n"
        }
        if !body.isEmpty { text += "Content-Length: \(body.utf8.count)\r\n" }
        try connection.send(Array((text + "\r\n" + body).utf8))
        return try Self.answer(Self.readToEnd(connection))
    }

    static func answer(_ text: String) throws -> Answer {
        guard let end = text.range(of: "\r\n\r\n"),
            let status = text.split(separator: " ").dropFirst().first.flatMap({ Int($0) })
        else { throw TestFailure("no HTTP: \(text)") }
        let (head, body) = (String(text[..<end.lowerBound]), String(text[end.upperBound...]))
        let isChunked = head.lowercased().contains("transfer-encoding: chunked")
        return Answer(status: status, head: head, body: isChunked ? joined(body) : body)
    }

    /// The body that came in chunks.
    private static func joined(_ body: String) -> String {
        var rest = Array(body.utf8)[...]
        var whole: [UInt8] = []
        while let end = rest.firstIndex(of: 10) {
            let line = String(decoding: rest[..<end], as: UTF8.self)
            let length = Int(line.trimmingCharacters(in: .whitespacesAndNewlines), radix: 16) ?? 0
            rest = rest[(end + 1)...]
            whole += rest.prefix(length)
            rest = rest.dropFirst(length + 2)
        }
        return String(decoding: whole, as: UTF8.self)
    }

    private static func readToEnd(_ connection: NBDClient) throws -> String {
        var bytes: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = recv(connection.descriptor, &piece, piece.count, 0)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { return String(decoding: bytes, as: UTF8.self) }
            bytes += piece[..<count]
        }
    }
}
