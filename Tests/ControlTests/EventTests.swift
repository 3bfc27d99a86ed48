import Foundation
import TestSupport
import Testing

private let mebibyte = 1 << 20

@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: Command.exists("qemu-io"), "needs qemu-io (qemu-utils)"))
struct `Events` {
    private func events(_ harness: ControlHarness, _ arguments: String...) throws -> [[String: Any]]
    {
        let outcome = try Command.run(
            TestService.binary,
            ["events", "--json", "--control", harness.service.controlPath] + arguments)
        guard outcome.status == 0 else { throw TestFailure(outcome.diagnostics) }
        let list = try JSONSerialization.jsonObject(with: Data(outcome.output.utf8))
        return list as? [[String: Any]] ?? []
    }

    private func follower(_ harness: ControlHarness, _ arguments: String...) throws -> ChildProcess
    {
        try ChildProcess(
            TestService.binary,
            ["events", "--follow", "--json", "--control", harness.service.controlPath] + arguments)
    }

    private func event(_ follower: ChildProcess) throws -> [String: Any] {
        guard let line = try follower.readLine(deadline: 300) else {
            throw TestFailure("the events ended")
        }
        let object = try JSONSerialization.jsonObject(with: Data(line.utf8))
        return object as? [String: Any] ?? [:]
    }

    @Test func `are numbered without gaps and can be replayed from any number on`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        try harness.done("snapshot", "create", "--device", "a", "--name", "s")
        try harness.done("snapshot", "destroy", "s")
        try harness.done("device", "detach", "a")
        let all = try events(harness)
        #expect(
            all.map { $0["type"] as? String } == [
                "device-attached", "taken", "destroyed", "device-detached",
            ])
        #expect(all.map { $0["number"] as? Int } == [1, 2, 3, 4])
        #expect(
            all.allSatisfy {
                Set($0.keys) == [
                    "number", "instance", "time", "type", "snapshot", "snapshot_name", "device",
                    "errno",
                    "message",
                ]
            })
        #expect(try events(harness, "--after", "2").map { $0["number"] as? Int } == [3, 4])
        // The snapshot is gone, its events are not.
        #expect(try events(harness, "--snapshot", "s").map { $0["number"] as? Int } == [2, 3])
        #expect(try harness.command("events", "--snapshot", "none").status == 3)
    }

    @Test func `that nobody caused end the waiting with 0 when the time runs out`() throws {
        let harness = try ControlHarness()
        for arguments in [
            ["--timeout", "0"], ["--timeout", "1"], ["--follow", "--timeout", "1"],
        ] {
            let outcome = try Command.run(
                TestService.binary,
                ["events", "--control", harness.service.controlPath] + arguments)
            #expect(outcome.status == 0)
            #expect(outcome.hasNoAnswer)
        }
        #expect(try harness.command("events").output == "")
        let late = try harness.command("events", "--after", "1000", "--timeout", "1")
        // No event had that number yet.
        #expect(late.status == 4)
        #expect(late.output == "")
    }

    @Test func `wake the one that waits for the first`() throws {
        let harness = try ControlHarness()
        let waiting = try ChildProcess(
            TestService.binary,
            ["events", "--timeout", "600", "--control", harness.service.controlPath])
        try harness.attach("a")
        #expect(try waiting.wait(deadline: 300) == .exited(0))
        #expect(try waiting.readToEnd(deadline: 60).contains("device-attached"))
    }

    @Test func `tell of low space and of the image that was given up, once, with the errno`() throws
    {
        let harness = try ControlHarness()
        for name in ["a", "b"] { try harness.attach(name) }
        try harness.fill("a", 1, length: 16 * mebibyte)
        try harness.done(
            "snapshot", "create", "--device", "a", "--device", "b", "--name", "s", "--storage",
            "memory:8M")
        let follower = try follower(harness, "--snapshot", "s")
        try harness.fill("a", 2, length: 16 * mebibyte)
        var types: [String] = []
        while types.last != "corrupted" {
            let event = try event(follower)
            types.append(event["type"] as? String ?? "")
            guard types.last == "corrupted" else { continue }
            #expect(event["errno"] as? Int == 28)
            #expect(event["device"] as? String == "a")
            #expect(event["snapshot_name"] as? String == "s")
        }
        #expect(types.contains("low-space"))
        #expect(try !harness.holds("a@s", 1, length: 4096))
        #expect(try harness.holds("b@s", 0, length: 16 * mebibyte))
        #expect(try harness.holds("a", 2, length: 16 * mebibyte))
        let shown = try harness.object("snapshot", "show", "s")
        #expect(shown["state"] as? String == "corrupted")
        let devices = try #require(shown["devices"] as? [[String: Any]])
        #expect(
            devices[0]["error"] as? String
                == "difference storage is full: memory:8388608 is used up (8 MiB)")
        #expect(devices[0]["corrupted_at"] is String)
        #expect(devices[1]["error"] is NSNull)
        try harness.done("snapshot", "destroy", "s")
        // The end of the snapshot is the end of its events, at once.
        #expect(try event(follower)["type"] as? String == "destroyed")
        #expect(try follower.wait(deadline: 60) == .exited(0))
        #expect(try follower.readLine(deadline: 60) == nil)
        // Who reads only the log learns it too.
        #expect(try harness.service.stop() == .exited(0))
        let log = harness.service.log.split(separator: "\n")
        for (level, sentence) in [
            ("warning", "storage memory:8388608 has "),
            ("error", "the image of device a was given up and fails from now on: difference"),
        ] {
            let lines = log.filter { $0.contains(sentence) }
            #expect(lines.count == 1)
            #expect(lines.allSatisfy { $0.contains(level) })
        }
    }

    @Test func `end when the service stops`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let follower = try follower(harness)
        #expect(try event(follower)["type"] as? String == "device-attached")
        #expect(try harness.service.stop() == .exited(0))
        #expect(try follower.wait(deadline: 60) == .exited(0))
    }

    @Test(arguments: [true, false])
    func `are numbered on after a restart, so that a follower misses none`(
        isKilled: Bool
    ) throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let first = try #require(try events(harness).last)
        let number = try #require(first["number"] as? Int)
        if isKilled {
            try harness.service.process.killAndWait()
        } else {
            #expect(try harness.service.stop() == .exited(0))
        }
        try harness.service.restart()
        let after = try events(harness, "--after", "\(number)")
        #expect(after.first?["type"] as? String == "device-attached")
        #expect(after.compactMap { $0["number"] as? Int }.allSatisfy { $0 > number })
        // The detach at the clean stop is the only one between.
        if !isKilled { #expect(after.first?["number"] as? Int ?? 0 <= number + 4) }
        #expect(after.first?["instance"] as? String != first["instance"] as? String)
        let all = try events(harness).compactMap { $0["number"] as? Int }
        #expect(all == Array((all.first ?? 0)..<(all.first ?? 0) + all.count))
        let late = try harness.command("events", "--after", "\((all.last ?? 0) + 1)")
        #expect(late.status == 4 && late.diagnostics.contains("has not happened"))
    }

    @Test func `go on from 1 when their numbers are damaged, and followers are told`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        #expect(try harness.service.stop() == .exited(0))
        let file = harness.service.directory.path("state/events.json")
        try "{".write(toFile: file, atomically: true, encoding: .utf8)
        try harness.service.restart()
        #expect(harness.service.log.contains("events.json is damaged"))
        #expect(try events(harness).first?["number"] as? Int == 1)
        #expect(try harness.command("events", "--after", "1000").status == 4)
    }

    @Test(arguments: [[], ["--json"]])
    func `end at once when nobody reads them any more`(options: [String]) throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        // `head` has gone after one line; nothing happens after that.
        let outcome = try Command.run(
            "bash",
            [
                "-c",
                """
                "$0" events --follow "$@" --control \(harness.service.controlPath) | head -n 1
                echo ${PIPESTATUS[0]}
                """, TestService.binary,
            ] + options, deadline: 60)
        let lines = outcome.output.split(separator: "\n")
        #expect(lines.count == 2 && lines[0].contains("device-attached"))
        #expect(lines.last == "141", "it ended by SIGPIPE")
    }

    @Test func `break off with 7 when the service is killed`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let follower = try follower(harness)
        _ = try event(follower)
        try harness.service.process.killAndWait()
        #expect(try follower.wait(deadline: 60) == .exited(7))
    }

    @Test func `come over HTTP as server-sent events, and wrong queries are refused`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let answer = try harness.exchange(
            "GET /v1/events?follow=false HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        #expect(answer.lowercased().contains("content-type: text/event-stream"))
        #expect(answer.contains("id: 1\nevent: device-attached\ndata: {"))
        let again = try harness.exchange(
            "GET /v1/events?follow=false HTTP/1.1\r\nHost: x\r\nLast-Event-ID: 1\r\n"
                + "Connection: close\r\n\r\n")
        #expect(!again.contains("device-attached"))
        // A number from the future is of another service.
        let future = try harness.http("GET", "/v1/events?after=2")
        #expect(future.status == 410)
        let error = try #require(future.document["error"] as? [String: Any])
        #expect(error["code"] as? String == "events_restarted")
        #expect((error["details"] as? [String: String])?["last"] == "1")
        for query in ["after=x", "after=-1", "timeout=soon", "follow=maybe"] {
            #expect(try harness.http("GET", "/v1/events?\(query)").status == 400)
        }
        #expect(try harness.http("GET", "/v1/events?snapshot=none").status == 404)
    }
}

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `The routes of snapshots` {
    @Test func `answer with fitting statuses and refuse bodies that they do not understand`() throws
    {
        let harness = try ControlHarness()
        try harness.attach("a")
        let bad = [
            "", "[]", "{}", "{\"devices\":[]}", "{\"devices\":\"a\"}",
            "{\"devices\":[\"a\"],\"freeze\":[\"relative\"]}", "{\"devices\":[\"a\"],\"limit\":-1}",
            "{\"devices\":[\"a\"],\"limit\":1}", "{\"devices\":[\"a\"],\"limit\":1e30}",
            "{\"devices\":[\"a\"],\"storage\":[\"relative\"]}",
            "{\"devices\":[\"a\"],\"on_overflow\":\"throttle:0\"}",
            "{\"devices\":[\"a\"],\"name\":\"a b\"}",
        ]
        for body in bad {
            #expect(try harness.http("POST", "/v1/snapshots", body: body).status == 400, "\(body)")
        }
        #expect(
            try harness.http("POST", "/v1/snapshots", body: "{\"devices\":[\"b\"]}").status == 404)
        let made = try harness.http(
            "POST", "/v1/snapshots", body: "{\"devices\":[\"a\"],\"name\":\"s\",\"prepare\":true}")
        #expect(made.status == 201)
        #expect(made.document["state"] as? String == "prepared")
        #expect(try harness.http("GET", "/v1/snapshots/s").status == 200)
        #expect(try harness.http("POST", "/v1/snapshots/s/take").status == 200)
        #expect(try harness.http("POST", "/v1/snapshots/s/take").status == 409)
        for body in ["{}", "{\"storage\":[]}", "{\"storage\":[\"memory:1\"]}"] {
            #expect(
                try harness.http("POST", "/v1/snapshots/s/storage", body: body).status == 400)
        }
        #expect(
            try harness.http(
                "POST", "/v1/snapshots/s/storage", body: "{\"storage\":[\"memory:8M\"]}"
            ).status == 200)
        #expect(try harness.http("DELETE", "/v1/devices/a").status == 409)
        #expect(try harness.http("DELETE", "/v1/snapshots/s").status == 200)
        #expect(try harness.http("DELETE", "/v1/snapshots/s").status == 404)
        #expect(try harness.http("GET", "/v1/snapshots/s").status == 404)
    }
}
