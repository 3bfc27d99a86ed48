import Foundation
import Glibc
import TestSupport
import Testing

/// A Ceph cluster of one monitor and one OSD for all tests of this process, on 127.0.0.1; see
/// Tests/Tools/ceph-local.sh. It ends with the process.
final class TestCeph: Sendable {
    /// Why there is none; nil when there can be one.
    static let obstacle: String? = {
        for program in ["ceph-mon", "ceph-osd", "rbd", "rados"] where !Command.exists(program) {
            return "there is no Ceph here (\(program) is missing; Debian: ceph-mon ceph-osd)"
        }
        guard access(script, X_OK) == 0 else { return "\(script) is missing" }
        return nil
    }()

    static let shared = Result { try TestCeph() }

    private static let script = URL(filePath: #filePath).deletingLastPathComponent()
        .deletingLastPathComponent().appending(path: "Tools/ceph-local.sh").path()

    private let directory: String
    /// Its configuration file.
    var configuration: String { directory + "/ceph.conf" }

    private init() throws {
        var template = Array("/tmp/sp-ceph-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw TestFailure("mkdtemp: \(errno)") }
        directory = String(decoding: template.dropLast().map(UInt8.init), as: UTF8.self)
        // Its daemons are sessions of their own: who takes care of them outlives this process.
        _ = ExitCleanup.shared.register(
            "\(Self.script) stop \(directory); rm -rf \(directory)")
        try Command.check(
            Self.script, ["start", directory],
            environment: ["SIZE": "8G", "POOL": "rbd"], deadline: 300)
    }

    /// What programs need in their environment to find it.
    var environment: [String: String] { ["CEPH_CONF": configuration] }

    /// Runs `rbd`.
    @discardableResult
    func rbd(_ arguments: String...) throws -> String {
        try Command.check("rbd", arguments, environment: environment, deadline: 120)
    }
}

final class RBDTarget: MatrixTarget {
    let image: String

    init(_ image: String) { self.image = image }

    private func rbd(_ arguments: String...) throws {
        try Command.check(
            "rbd", arguments, environment: try TestCeph.shared.get().environment, deadline: 120)
    }

    var name: String { "rbd:rbd/\(image)" }

    func full(_ snapshot: String) -> [String] { ["copy", "disk@\(snapshot)", name] }
    func increment(_ snapshot: String, since: String) -> [String] {
        full(snapshot) + ["--since", since]
    }
    func finished() {}
    func contents(_ byteCount: Int) throws -> [UInt8] { try contents(byteCount, at: nil) }

    /// What a version holds, or the image itself.
    func contents(_ byteCount: Int, at snapshot: String?) throws -> [UInt8] {
        let directory = try TemporaryDirectory()
        let raw = directory.path("raw")
        try rbd("export", "--no-progress", "rbd/\(image)" + (snapshot.map { "@\($0)" } ?? ""), raw)
        return try readFile(raw, 0..<byteCount)
    }

    func write(at offset: Int) throws {
        try rbd(
            "bench", "--io-type", "write", "--io-size", "512", "--io-total", "512", "--io-pattern",
            "seq", "rbd/\(image)")
    }

    func replace() throws {
        let text = try Command.check(
            "rbd", ["info", "--format", "json", "rbd/\(image)"],
            environment: try TestCeph.shared.get().environment)
        let facts = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any]
        try rbd("rename", "rbd/\(image)", "rbd/\(image)-former")
        try rbd("create", "--size", "\(facts?["size"] as? Int ?? 0)B", "rbd/\(image)")
    }

    func isUntouched() throws -> Bool {
        let text = try Command.check(
            "rbd", ["diff", "--format", "json", "rbd/\(image)"],
            environment: try TestCeph.shared.get().environment)
        return (try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [Any])?.isEmpty == true
    }
}
