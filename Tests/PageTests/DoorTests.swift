import Foundation
import Glibc
import TestSupport
import Testing

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `The page's listener` {
    private static let token = "0123456789abcdef0123456789abcdef"

    private func tokenFile(_ harness: TemporaryDirectory, _ text: String = token) throws -> String {
        let path = harness.path("token")
        try (text + "\n").write(toFile: path, atomically: true, encoding: .utf8)
        #expect(chmod(path, 0o600) == 0)
        return path
    }

    @Test(.enabled(if: PythonTools.areThere, "the Python packages cannot be had"))
    func `reaches nothing that changes anything`() throws {
        let harness = try PageHarness()
        try harness.attach("vm1")
        try harness.done(
            "snapshot", "create", "--device", "vm1", "--name", "s1", "--storage", "memory:8M")
        let outcome = try PythonTools.run(
            "routes.py", [PythonTools.repository + "/docs/openapi.yaml"])
        #expect(outcome.status == 0, "\(outcome.diagnostics)")
        let routes = outcome.output.split(separator: "\n").map { $0.split(separator: " ") }
        #expect(routes.count > 25)
        func state() throws -> [String] {
            let status = try harness.ask("GET", "/v1/status").document ?? [:]
            let devices = status["devices"] as? [[String: Any]] ?? []
            let snapshots = status["snapshots"] as? [[String: Any]] ?? []
            return try [
                harness.ask("GET", "/v1/checkpoints").body, harness.ask("GET", "/v1/copies").body,
                harness.ask("GET", "/v1/events?follow=false").body,
                "\(devices.map { "\($0["name"] ?? "") \($0["epoch"] ?? "") \($0["size"] ?? "")" })",
                "\(snapshots.map { "\($0["id"] ?? "") \($0["state"] ?? "")" })",
            ]
        }
        let before = try state()
        let names = ["name": "vm1", "id": "s1"]
        let body = #"{"name": "vm2", "devices": ["vm1"], "target": "vm1", "path": "/tmp/x"}"#
        for route in routes {
            let (method, template) = (String(route[0]), String(route[1]))
            var path = template
            for (name, value) in names { path = path.replacing("{\(name)}", with: value) }
            let own = path == "/v1/events" ? path + "?follow=false" : path
            let answer = try harness.ask(method, own, body: method == "GET" ? "" : body)
            if method == "GET" {
                #expect(answer.status == 200, "GET \(path): \(answer.body)")
            } else {
                // There is no such path, or it takes GET only.
                #expect([404, 405].contains(answer.status), "\(method) \(path): \(answer.body)")
                #expect(
                    !(answer.header("allow") ?? "").contains("POST"), "\(path): \(answer.head)")
            }
            // Whatever else there is.
            for other in ["POST", "PUT", "DELETE", "PATCH", "QUERY", "BREW"] {
                let status = try harness.ask(other, path, body: body).status
                #expect([400, 404, 405, 501].contains(status), "\(other) \(path): \(status)")
            }
        }
        #expect(try state() == before)
        // A path of the machine is none of its business.
        #expect(try harness.ask("GET", "/v1/probe?path=/etc/passwd").status == 403)
    }

    @Test func `answers only to its own names, and to no page of others`() throws {
        let harness = try PageHarness(["--http-host", "Watch.example"])
        let port = harness.port
        for host in [
            "127.0.0.1:\(port)", "localhost:\(port)", "localhost", "[::1]:\(port)", "10.1.2.3",
            "watch.example", "watch.example:443",
        ] {
            #expect(try harness.ask("GET", "/v1", host: host).status == 200, "\(host)")
        }
        for host in [
            "evil.example", "evil.example:\(port)", "localhost.evil.example",
            "127.0.0.1.evil.example",
            "watch.example.evil.example", "1.2.3", "a@127.0.0.1",
        ] {
            let answer = try harness.ask("GET", "/v1/status", host: host)
            #expect(answer.status == 403, "\(host)")
            #expect(!answer.body.contains("vm1"))
        }
        #expect(try harness.ask("GET", "/v1", host: "").status == 400)
        // Behind the right one, and in other letters.
        for name in ["host", "hOST"] {
            #expect(try harness.ask("GET", "/v1", [name: "evil.example"]).status == 400)
        }
        let own = "http://127.0.0.1:\(port)"
        for (origin, status) in [
            (own, 200), ("https://watch.example", 200), ("http://evil.example", 403), ("null", 403),
            ("http://127.0.0.1:1", 403), ("file://", 403), ("ftp://127.0.0.1:\(port)", 403),
        ] {
            let answer = try harness.ask("GET", "/v1", ["Origin": origin])
            #expect(answer.status == status, "\(origin): \(answer.body)")
        }
        let foreign = ["Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"]
        #expect(try harness.ask("GET", "/v1/events", foreign).status == 403)
        let link = ["Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"]
        #expect(try harness.ask("GET", "/", link).status == 200)
    }

    @Test func `tells browsers to run nothing but its own files`() throws {
        let harness = try PageHarness()
        for (target, host) in [("/", nil), ("/main.js", nil), ("/no", nil), ("/", "evil.example")] {
            let answer = try harness.ask("GET", target, host: host)
            let policy = answer.header("content-security-policy") ?? ""
            #expect(policy.hasPrefix("default-src 'none'; script-src 'self';"), "\(target)")
            #expect(!policy.contains("unsafe") && !policy.contains("*"))
            #expect(answer.header("x-content-type-options") == "nosniff")
            #expect(answer.header("access-control-allow-origin") == nil)
        }
        let page = try harness.ask("GET", "/")
        #expect(page.header("content-type") == "text/html; charset=utf-8")
        #expect(!page.body.contains("style=") && !page.body.contains("onclick"))
        // Nothing from elsewhere.
        for file in ["/", "/page.css", "/main.js", "/service.js", "/picture.js", "/devices.js"] {
            let body = try harness.ask("GET", file).body
            #expect(body.count > 100, "\(file)")
            #expect(!body.replacing("http://www.w3.org/2000/svg", with: "").contains("://"))
        }
        let tag = try #require(page.header("etag"))
        #expect(try harness.ask("GET", "/", ["If-None-Match": tag]).status == 304)
        #expect(try harness.ask("HEAD", "/").body == "")
    }

    @Test func `asks for the token, and forgets who logs out`() throws {
        let directory = try TemporaryDirectory()
        let harness = try PageHarness(["--http-token-file", try tokenFile(directory)])
        for target in ["/", "/v1", "/v1/status", "/metrics", "/main.js", "/v1/events", "/no"] {
            #expect(try harness.ask("GET", target).status == 401, "\(target)")
        }
        let browser = try harness.ask("GET", "/", ["Accept": "text/html,*/*"])
        #expect(browser.status == 303 && browser.header("location") == "/login")
        #expect(try harness.ask("GET", "/login").body.contains("type=\"password\""))
        let bearer = ["Authorization": "Bearer \(Self.token)"]
        #expect(try harness.ask("GET", "/v1/status", bearer).status == 200)
        #expect(try harness.ask("GET", "/metrics", bearer).status == 200)
        for wrong in ["Bearer x", "Bearer \(Self.token)x", "Basic \(Self.token)", "Bearer "] {
            let answer = try harness.ask("GET", "/v1/status", ["Authorization": wrong])
            #expect(answer.status == 401, "\(wrong)")
            let error = answer.document?["error"] as? [String: Any]
            #expect(error?["code"] as? String == "unauthorized")
        }
        let wrong = try harness.ask("POST", "/login", body: "token=wrong")
        #expect(wrong.header("location") == "/login#wrong" && wrong.header("set-cookie") == nil)
        let foreign = try harness.ask(
            "POST", "/login", ["Origin": "http://evil.example"], body: "token=\(Self.token)")
        #expect(foreign.status == 403)
        let login = try harness.ask("POST", "/login", body: "token=\(Self.token)")
        #expect(login.status == 303 && login.header("location") == "/")
        let cookie = try #require(login.header("set-cookie"))
        #expect(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"))
        #expect(!cookie.contains(Self.token))
        let session = ["Cookie": "other=1; " + (cookie.components(separatedBy: ";").first ?? "")]
        #expect(try harness.ask("GET", "/v1/status", session).status == 200)
        #expect(try harness.ask("GET", "/", session).status == 200)
        let logout = try harness.ask("POST", "/logout", session)
        #expect(logout.header("set-cookie")?.contains("Max-Age=0") == true)
        #expect(try harness.ask("GET", "/v1/status", session).status == 401)
        #expect(try harness.ask("GET", "/v1/status", ["Cookie": "stillpoint="]).status == 401)
    }

    @Test(.enabled(if: Command.exists("curl"), "needs curl"))
    func `speaks TLS to whoever checks its certificate`() throws {
        let certificates = try TestCertificates()
        let harness = try PageHarness(
            certificates.arguments(askingClients: false)
                + ["--http-token-file", try tokenFile(certificates.directory)], host: "0.0.0.0")
        let fetch = { (extra: [String]) in
            try Command.run(
                "curl",
                ["-sS", "--max-time", "60", "--cacert", certificates.path("ca-cert.pem")] + extra
                    + ["https://localhost:\(harness.port)/v1/health"])
        }
        let answer = try fetch(["-H", "Authorization: Bearer \(Self.token)"])
        #expect(answer.output.contains("\"status\":\"ok\""), "\(answer.diagnostics)")
        #expect(try fetch([]).output.contains("unauthorized"))
        let login = try Command.run(
            "curl",
            [
                "-sS", "-i", "--max-time", "60", "--cacert", certificates.path("ca-cert.pem"),
                "--data", "token=\(Self.token)", "https://localhost:\(harness.port)/login",
            ])
        #expect(login.output.contains("__Host-stillpoint="), "\(login.output)")
        #expect(login.output.contains("; Secure"))
        // Without TLS nothing is said.
        let plain = try NBDClient(.tcp(port: harness.port))
        try plain.send(Array("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".utf8))
        var byte: UInt8 = 0
        #expect(recv(plain.descriptor, &byte, 1, 0) <= 0)
    }

    @Test func `is not opened beyond loopback without TLS and a token`() throws {
        let directory = try TemporaryDirectory()
        let certificates = try TestCertificates()
        let token = ["--http-token-file", try tokenFile(directory)]
        let certificate = certificates.arguments(askingClients: false)
        let everywhere = ["--http", "tcp:0.0.0.0:\(try TestService.freePort())"]
        for (arguments, words) in [
            (everywhere, "a certificate, --tls-cert and --tls-key, and a token"),
            (everywhere + token, "a certificate, --tls-cert and --tls-key"),
            (everywhere + certificate, "a token, --http-token-file"),
            (["--http", "unix:/tmp/x"], "tcp:HOST:PORT"),
            (["--http", "tcp:127.0.0.1:0"], "is not an address"),
            (token, "go with --http"), (["--http-hide-paths"], "go with --http"),
            (["--http", "tcp:127.0.0.1:1", "--http-token-file", "/nowhere"], "/nowhere"),
            (["--http", "tcp:127.0.0.1:1", "--http-host", "a:1"], "without a port"),
        ] {
            let outcome = try Command.run(
                TestService.binary,
                ["serve", "--control", directory.path("c.sock")]
                    + ["--state-dir", directory.path("state"), "--check"] + arguments)
            #expect(outcome.status == 2, "\(arguments): \(outcome.output)")
            #expect(outcome.diagnostics.contains(words), "\(arguments): \(outcome.diagnostics)")
        }
        #expect(chmod(directory.path("token"), 0o644) == 0)
        let open = try TestService.refusal(
            attaching: [:], extraArguments: everywhere + token + certificate)
        #expect(open.status == 2 && open.diagnostics.contains("chmod 600"), "\(open.diagnostics)")
    }

    @Test func `is asked for in the configuration file, too`() throws {
        let directory = try TemporaryDirectory()
        let file = directory.path("stillpoint.yaml")
        let (one, other) = (try TestService.freePort(), try TestService.freePort())
        try """
        http: [tcp:127.0.0.1:\(one), tcp:127.0.0.1:\(other)]
        http-token-file: \(try tokenFile(directory))
        http-hide-paths: true
        http-host: watch.example
        """.write(toFile: file, atomically: true, encoding: .utf8)
        let harness = try PageHarness(port: other, ["--config", file])
        let bearer = ["Authorization": "Bearer \(Self.token)"]
        let answer = try harness.ask("GET", "/v1/status", bearer, host: "watch.example")
        #expect(answer.status == 200)
        #expect(
            answer.document?["http"] as? [String] == [
                "tcp:127.0.0.1:\(one)", "tcp:127.0.0.1:\(other)",
            ])
        #expect(answer.document?["state_directory"] as? String == "(hidden)")
        #expect(try harness.ask("GET", "/v1/status").status == 401)
        #expect(try harness.done("status").contains("tcp:127.0.0.1:\(one)"))
    }

    @Test func `can leave paths out of everything`() throws {
        let harness = try PageHarness(["--http-hide-paths"])
        try harness.attach("vm1")
        let storage = harness.service.directory.path("secret-storage")
        try harness.done(
            "snapshot", "create", "--device", "vm1", "--name", "s1", "--storage", storage,
            "--limit", "1M")
        try harness.write("vm1", blocks: Array(0..<1024))
        try harness.write("vm1", blocks: Array(0..<1024), seed: 2)
        let place = harness.service.directory.path("")
        for target in [
            "/v1/status", "/v1/devices", "/v1/devices/vm1", "/v1/snapshots", "/v1/snapshots/s1",
            "/v1/events?follow=false", "/v1/health", "/v1/probe", "/v1/checkpoints", "/metrics",
            "/v1/activity", "/v1/copies", "/v1/devices/vm1/changes",
        ] {
            let answer = try harness.ask("GET", target)
            #expect(answer.status == 200, "\(target)")
            #expect(!answer.body.contains(place), "\(target): \(answer.body)")
            #expect(!answer.body.contains("secret-storage"), "\(target)")
        }
        let device = try harness.ask("GET", "/v1/devices/vm1").document
        #expect(device?["path"] as? String == "(hidden)")
        #expect(device?["name"] as? String == "vm1")
        let events = try harness.ask("GET", "/v1/events?follow=false").body
        #expect(events.contains("device vm1 attached, origin (hidden)"))
    }
}
