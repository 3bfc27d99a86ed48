import ControlDocuments
import Foundation
import Glibc
import TestSupport
import Testing

private let mebibyte = 1 << 20

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `The interface document` {
    /// Checks what a command prints with `--json`, and that it was worth checking.
    private func check(
        _ kind: String, _ document: Any, _ trees: [String: KeyTree], _ seen: inout Set<String>
    ) throws {
        let tree = try #require(trees[kind], "docs/interface.md tells no keys of \(kind)")
        let objects = (document as? [[String: Any]]) ?? [document as? [String: Any] ?? [:]]
        #expect(!objects.isEmpty, "an answer about a \(kind)")
        for object in objects {
            let missing = tree.missing(in: object)
            #expect(missing == [], "\(kind): \(object)")
        }
        seen.insert(kind)
    }

    @Test(.enabled(if: Command.exists("qemu-io"), "needs qemu-io (qemu-utils)"))
    func `names keys that all answers have`() throws {
        let trees = try KeyTree.documented()
        var seen: Set<String> = []
        let harness = try ControlHarness()
        try harness.attach("vm1", byteCount: 16 * mebibyte)
        for name in ["s1", "s2"] {
            try check(
                "snapshot",
                harness.object("snapshot", "create", "--device", "vm1", "--name", name), trees,
                &seen)
            try harness.fill("vm1", 7, offset: 0, length: 65536)
        }
        // What it preserved is the older one's now.
        try harness.done("snapshot", "destroy", "s2")
        try check("snapshot", harness.document("snapshot", "list"), trees, &seen)
        try check(
            "checkpoint",
            harness.object("checkpoint", "create", "monday", "--device", "vm1"), trees, &seen)
        try check("device", harness.object("device", "show", "vm1"), trees, &seen)
        try check("changes", harness.object("changes", "vm1", "--since", "s1"), trees, &seen)
        try check(
            "changes", harness.object("changes", "vm1", "--until", "s1"), trees, &seen)
        try check(
            "marked", harness.object("changes", "mark", "vm1", "--range", "0:4K"), trees, &seen)
        try check("event", harness.document("events"), trees, &seen)
        try check("status", harness.object("status"), trees, &seen)
        try check(
            "summary", harness.http("GET", "/v1/devices/vm1/changes/summary").document, trees,
            &seen)
        try check("activity", harness.http("GET", "/v1/activity").document, trees, &seen)
        try check("top", harness.object("top", "--interval", "1"), trees, &seen)
        let begun = #"{"device": "vm1", "snapshot": "s1", "target": "/x", "bytes": 1}"#
        try check(
            "copy under way", harness.http("POST", "/v1/copies", body: begun).document, trees,
            &seen)
        try check("about", harness.http("GET", "/v1").document, trees, &seen)
        try check("health", harness.http("GET", "/v1/health").document, trees, &seen)
        try check("error", harness.http("GET", "/v1/devices/no").document, trees, &seen)
        if canUseFUSE && canUseLoopDevices {
            try check("block", harness.object("block", "attach", "vm1"), trees, &seen)
            try check("block", harness.document("block", "list"), trees, &seen)
        } else {
            print("skipped: `block` needs root, FUSE and loop devices")
            seen.insert("block")
        }
        #expect(Set(trees.keys).subtracting(seen) == [], "kinds that no answer was checked for")
        #expect(try harness.service.stop() == .exited(0))
    }

    @Test func `names every error code, as the description of HTTP does`() throws {
        let codes =
            ControlError.Code.names + ControlError.Reason.allCases.map(\.rawValue)
            + ["not_reachable"]
        let repository = PythonTools.repository
        let description = try String(
            contentsOfFile: repository + "/docs/openapi.yaml", encoding: .utf8)
        let start = try #require(description.range(of: "    ErrorCode:\n"))
        let listed = description[start.upperBound...].split(separator: "\n")
            .drop { $0 != "      enum:" }.dropFirst()
            .prefix { $0.hasPrefix("        - ") }.map { String($0.dropFirst(10)) }
        #expect(listed.sorted() == codes.sorted())
        let interface = try String(
            contentsOfFile: repository + "/docs/interface.md", encoding: .utf8)
        for code in codes { #expect(interface.contains("`\(code)`"), "\(code)") }
        for name in codes where name != "not_reachable" {
            // What a service says is understood by the client of the same name.
            let document = ErrorDocument(code: name, message: "why")
            #expect(ErrorDocument(document.controlError) == document)
        }
    }

    @Test func `counts blocks that were marked and copied`() throws {
        let harness = try ControlHarness()
        let path = try harness.attach("vm1", byteCount: mebibyte + 512)
        #expect(path.hasSuffix(".img"))
        let client = try NBDClient(.unix(path: harness.service.socketPath), export: "vm1")
        func write(_ offset: UInt64, _ length: Int) throws {
            let payload = [UInt8](repeating: 1, count: length)
            let reply = try client.perform(
                NBDRequest(.write, offset: offset, length: UInt64(length), payload: payload))
            #expect(reply.error == nil)
        }
        func counters() throws -> [String: Int] {
            let device = try harness.object("device", "show", "vm1")
            return try #require(device["counters"] as? [String: Int])
        }
        try write(0, 4096)
        try write(4095, 2)
        #expect(try counters()["marked_blocks"] == 3)
        #expect(try counters()["copied_blocks"] == 0)
        try harness.done(
            "snapshot", "create", "--device", "vm1", "--storage", "memory:16M", "--name", "s")
        try write(0, 8192)
        try write(0, 8192)
        try write(UInt64(mebibyte), 512)
        let after = try counters()
        #expect(after["marked_blocks"] == 8)
        // Two that had data, and the last, which is shorter; the sparse rest needs no reading.
        #expect((2...3).contains(after["copied_blocks"] ?? 0))
        try harness.done("changes", "mark", "vm1", "--range", "4K:8K")
        #expect(try counters()["marked_blocks"] == 10)
    }

    @Test(.enabled(if: Command.exists("qemu-io"), "needs qemu-io (qemu-utils)"))
    func `tells storage that a snapshot inherited, and when its own is full`() throws {
        let harness = try ControlHarness()
        try harness.attach("vm1", byteCount: 16 * mebibyte)
        try harness.fill("vm1", 1, length: mebibyte)
        func storage() throws -> [String: Any] {
            let shown = try harness.object("snapshot", "show", "old")
            return try #require(shown["storage"] as? [String: Any])
        }
        let places = ["memory:16M", "memory:32M"]
        for (name, place) in zip(["old", "new"], places) {
            try harness.done(
                "snapshot", "create", "--device", "vm1", "--name", name, "--storage", place)
        }
        #expect(try storage()["estimated_seconds_to_full"] is NSNull)
        #expect((try storage()["inherited"] as? [Any])?.isEmpty == true)
        try harness.fill("vm1", 2, length: mebibyte)
        try harness.done("snapshot", "destroy", "new")
        let inherited = try #require(try storage()["inherited"] as? [[String: Any]])
        #expect(inherited.map { $0["limit"] as? Int } == [32 * mebibyte])
        #expect(try harness.holds("vm1@old", 1, length: mebibyte))
        try harness.fill("vm1", 3, offset: mebibyte, length: mebibyte)
        try harness.fill("vm1", 4, offset: mebibyte, length: mebibyte)
        #expect((try storage()["estimated_seconds_to_full"] as? Double) ?? 0 > 0)
    }
}

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `The root of the HTTP interface` {
    @Test func `says which service answers`() throws {
        let harness = try ControlHarness()
        try harness.attach("vm1")
        let about = try harness.http("GET", "/v1")
        #expect(about.status == 200)
        #expect(about.document["service"] as? String == "stillpoint")
        #expect(about.document["last_event"] as? Int == 1)
        let events = try #require(try harness.document("events") as? [[String: Any]])
        #expect(events.first?["instance"] as? String == about.document["instance"] as? String)
    }

    @Test func `tells what is wrong in its health`() throws {
        let harness = try ControlHarness()
        let path = try harness.attach("vm1")
        let well = try harness.http("GET", "/v1/health")
        #expect(well.status == 200 && well.document["status"] as? String == "ok")
        #expect(try harness.service.stop() == .exited(0))
        #expect(rename(path, path + ".away") == 0)
        try harness.service.restart()
        let ill = try harness.http("GET", "/v1/health")
        #expect(ill.status == 200 && ill.document["status"] as? String == "degraded")
        let problems = try #require(ill.document["problems"] as? [[String: String]])
        #expect(problems.map { $0["code"] } == ["device_missing"])
        #expect(problems.first?["name"] == "vm1")
        let missing = try harness.command("device", "show", "vm1", "--json")
        #expect(missing.status == 3 && missing.errorCode == "device_missing")
    }

    @Test(arguments: [
        "/v1", "/v1/health", "/v1/status", "/v1/devices", "/v1/devices/vm1", "/metrics",
        "/v1/events?follow=false", "/v1/devices/vm1/changes",
    ])
    func `answers HEAD as it answers GET, without a body`(target: String) throws {
        let harness = try ControlHarness()
        try harness.attach("vm1")
        func answer(_ method: String, _ target: String) throws -> (head: String, body: String) {
            let text = try harness.exchange(
                "\(method) \(target) HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            let parts = text.components(separatedBy: "\r\n\r\n")
            return (parts[0], parts.dropFirst().joined())
        }
        let head = try answer("HEAD", target)
        #expect(head.head.hasPrefix("HTTP/1.1 200 "), "\(head.head)")
        #expect(head.body == "")
        let get = try answer("GET", target)
        func type(_ head: String) -> String? {
            head.lowercased().components(separatedBy: "\r\n")
                .first { $0.hasPrefix("content-type:") }
        }
        #expect(type(head.head) == type(get.head))
        #expect(try answer("HEAD", "/v1/devices/none").head.hasPrefix("HTTP/1.1 404 "))
        #expect(try answer("PUT", "/v1/status").head.lowercased().contains("allow: get, head"))
    }
}

@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: PythonTools.areThere, "the Python packages cannot be had"))
struct `A client that is generated from the description` {
    @Test func `takes a snapshot`() throws {
        let harness = try ControlHarness()
        try harness.attach("vm1")
        let outcome = try PythonTools.run(
            "generated.py",
            [
                harness.service.controlPath, PythonTools.repository + "/docs/openapi.yaml",
                "vm1",
            ])
        #expect(outcome.status == 0, "\(outcome.diagnostics)")
        #expect(outcome.output == "generated\n")
        #expect(try harness.snapshotNames() == ["generated"])
    }
}
