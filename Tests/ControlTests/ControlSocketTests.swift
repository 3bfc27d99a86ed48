import Foundation
import TestSupport
import Testing

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `The control socket` {
    @Test func `answers every wrong request with a document that says why`() throws {
        let harness = try ControlHarness()
        let image = try harness.image("disk.img")
        let cases: [(method: String, target: String, body: String, status: Int, code: String)] = [
            ("GET", "/v1/nothing", "", 404, "not_found"),
            ("PUT", "/v1/devices", "", 405, "not_allowed"),
            ("GET", "/v1/devices/vm1", "", 404, "no_such_device"),
            ("GET", "/v1/devices/%2e%2e%2fx", "", 404, "no_such_device"),
            ("DELETE", "/v1/devices/vm1", "", 404, "no_such_device"),
            ("DELETE", "/v1/devices/vm1?force=perhaps", "", 400, "invalid"),
            ("GET", "/v1/status?colour=red", "", 400, "invalid"),
            ("GET", "/v1/events?follow=false&colour=red", "", 400, "invalid"),
            ("POST", "/v1/devices", "", 400, "invalid"),
            ("POST", "/v1/devices", "[]", 400, "invalid"),
            ("POST", "/v1/devices", "{}", 400, "invalid"),
            ("POST", "/v1/devices", #"{"name":"vm1","path":"disk.img"}"#, 400, "invalid"),
            ("POST", "/v1/devices", #"{"name":"","path":"/disk.img"}"#, 400, "invalid"),
            ("POST", "/v1/devices", #"{"name":1,"path":"/disk.img"}"#, 400, "invalid"),
            (
                "POST", "/v1/devices", #"{"name":"vm1","path":"\#(image)","colour":1}"#, 400,
                "invalid"
            ),
            (
                "POST", "/v1/devices", #"{"name":"vm1","path":"\#(image)","sector_size":-1}"#, 400,
                "invalid"
            ),
            (
                "POST", "/v1/devices", #"{"name":"vm1","path":"\#(image)x"}"#, 404,
                "no_such_file"
            ),
            ("POST", "/v1/devices", #"{"name":"vm1","path":"/dev/null"}"#, 422, "unsuitable"),
            ("POST", "/v1/devices", String(repeating: "x", count: 1 << 17), 413, "too_large"),
        ]
        for expected in cases {
            let answer = try harness.http(expected.method, expected.target, body: expected.body)
            let error = answer.document["error"] as? [String: Any]
            #expect(answer.status == expected.status, "\(expected): \(answer.document)")
            #expect(error?["code"] as? String == expected.code, "\(expected)")
            #expect((error?["message"] as? String)?.isEmpty == false)
            #expect(error?["details"] is [String: Any])
        }
        #expect(try harness.deviceNames().isEmpty)
    }

    @Test func `creates with 201, and with 200 what is there already`() throws {
        let harness = try ControlHarness()
        let image = try harness.image("disk.img")
        let body = #"{"name":"vm1","path":"\#(image)","sector_size":4096}"#
        #expect(try harness.http("POST", "/v1/devices", body: body).status == 201)
        let again = try harness.http("POST", "/v1/devices", body: body)
        #expect(again.status == 200)
        #expect(again.document["sector_size"] as? Int == 4096)
        let gone = try harness.http("DELETE", "/v1/devices/vm1?force=true")
        #expect(gone.status == 200)
        #expect(gone.document["name"] as? String == "vm1")
    }

    @Test func `ends clients that do not finish their request, and serves others meanwhile`()
        throws
    {
        let harness = try ControlHarness()
        let starts = [
            "", "GET /v1/status HTTP/1.1\r\nHost:",
            "POST /v1/devices HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        ]
        let slow = try starts.map { start in
            let client = try NBDClient(
                .unix(path: harness.service.controlPath), timeoutSeconds: 300)
            if !start.isEmpty { try client.send(Array(start.utf8)) }
            return client
        }
        #expect(try harness.command("status").status == 0)
        for client in slow { try client.drainUntilClosed() }
        #expect(try harness.command("status").status == 0)
    }

    @Test func `garbage ends its connection alone`() throws {
        let harness = try ControlHarness()
        var generator = SeededGenerator.announced("garbage on the control socket")
        for _ in 0..<20 {
            let connection = try NBDClient(.unix(path: harness.service.controlPath))
            do {
                try connection.send(generator.bytes(1000))
                connection.shutdownSending()
                try connection.drainUntilClosed()
            } catch is ConnectionEnded {}
        }
        #expect(try harness.command("status").status == 0)
    }

    @Test func `clients that stay connected do not keep the service from stopping`() throws {
        let harness = try ControlHarness()
        let idle = try NBDClient(.unix(path: harness.service.controlPath))
        #expect(try harness.command("status").status == 0)
        #expect(try harness.service.stop() == .exited(0))
        withExtendedLifetime(idle) {}
    }

    @Test func `those who wait for events leave room for others, and give their place back`() throws
    {
        let harness = try ControlHarness()
        let request = Array("GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n".utf8)
        let ok = "HTTP/1.1 200 OK"
        func follow() throws -> NBDClient {
            let client = try NBDClient(.unix(path: harness.service.controlPath))
            try client.send(request)
            return client
        }
        do {
            let followers = try (0..<64).map { _ in try follow() }
            for follower in followers {
                #expect(String(decoding: try follower.receive(ok.utf8.count), as: UTF8.self) == ok)
            }
            let refused = try follow()
            let text = String(decoding: try refused.receive(ok.utf8.count), as: UTF8.self)
            #expect(text.hasPrefix("HTTP/1.1 409"))
            #expect(try harness.command("status").status == 0)
        }
        // Gone when the service has seen their connections close, which it does by itself.
        let end = monotonicSeconds() + 60
        var answer = ""
        while monotonicSeconds() < end, answer != ok {
            answer = String(decoding: try follow().receive(ok.utf8.count), as: UTF8.self)
        }
        #expect(answer == ok)
    }
}
