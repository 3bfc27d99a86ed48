import Foundation
import Glibc
import TestSupport
import Testing

@Suite(
    .serialized, .enabled(if: LiveSupport.reason == nil, LiveSupport.comment),
    .enabled(
        if: Command.exists("curl") && Command.exists("fsfreeze"), "curl or fsfreeze is missing")
)
struct `A cut that is held` {
    private let live: MountedLive
    private let harness: LiveHarness

    init() throws {
        live = try MountedLive(.ext4, mebibytes: 32)
        harness = try LiveHarness()
        try harness.object("device", "attach", "d", live.mount, "--live")
    }

    /// Asks the service; the status and the document that it answers.
    private func ask(
        _ method: String, _ path: String, _ body: String? = nil
    ) throws -> (status: Int, document: [String: Any]) {
        let text = try Command.check(
            "curl",
            [
                "--silent", "--unix-socket", harness.service.controlPath, "--request", method,
                "--write-out", "\n%{http_code}", "http://localhost/v1/checkpoints\(path)",
            ] + (body.map { ["--data", $0] } ?? []), deadline: 120)
        let split = text.lastIndex(of: "\n") ?? text.startIndex
        let document = try JSONSerialization.jsonObject(with: Data(text[..<split].utf8))
        return (
            Int(text[split...].dropFirst()) ?? 0, document as? [String: Any] ?? [:]
        )
    }

    private func hold(milliseconds: Int) throws -> (status: Int, document: [String: Any]) {
        try ask(
            "POST", "",
            "{\"name\":\"c\",\"devices\":[\"d\"],\"hold_milliseconds\":\(milliseconds)}")
    }

    @Test func `keeps the filesystem frozen until its release, and is remembered then`() throws {
        let held = try hold(milliseconds: 30_000)
        #expect(held.status == 202 && held.document["name"] as? String == "c")
        #expect(try harness.checkpoints() == [])
        // A second freeze is refused.
        #expect(try Command.run("fsfreeze", ["--freeze", live.mount]).status != 0)
        let writer = try ChildProcess(
            "/bin/sh", ["-c", "echo begun; echo x > \(live.mount)/x; echo done"])
        #expect(try writer.readLine(deadline: 30) == "begun")
        let released = try ask("POST", "/c/release")
        #expect(released.status == 201)
        #expect(released.document["consistency"] as? String == "filesystem")
        #expect(released.document["held_milliseconds"] is Int)
        #expect(try writer.readLine(deadline: 60) == "done")
        #expect(try harness.checkpoints() == ["c"])
        // What waited was written after the cut.
        try Command.check("sync", ["-f", live.mount])
        #expect(try !harness.changedBlocks("d", since: "c").isEmpty)
    }

    @Test func `ends by itself at its limit, and nothing is remembered`() throws {
        #expect(try hold(milliseconds: 1).status == 202)
        #expect(try live.isWritable())
        #expect([404, 409].contains(try ask("POST", "/c/release").status))
        #expect(try harness.checkpoints() == [])
        try harness.done("checkpoint", "create", "c", "--device", "d")
    }

    @Test func `is given up by who asked for it`() throws {
        #expect(try hold(milliseconds: 30_000).status == 202)
        #expect(try ask("DELETE", "/c/hold").status == 200)
        #expect(try live.isWritable())
        #expect(try ask("DELETE", "/c/hold").status == 404)
        #expect(try harness.checkpoints() == [])
    }

    @Test func `is not remembered when somebody wrote meanwhile`() throws {
        #expect(try hold(milliseconds: 30_000).status == 202)
        // A block that no file has.
        try live.disk.write(block: 5000, count: 2)
        let refused = try ask("POST", "/c/release")
        #expect(refused.status == 409)
        let error = refused.document["error"] as? [String: Any]
        #expect((error?["details"] as? [String: String]) == ["d": "8192"])
        #expect(try live.isWritable())
        #expect(try harness.checkpoints() == [])
    }

    @Test func `thaws when the service is killed`() throws {
        #expect(try hold(milliseconds: 30_000).status == 202)
        try harness.kill()
        #expect(try live.isWritable())
        try harness.service.restart()
        #expect(try harness.checkpoints() == [])
    }
}
