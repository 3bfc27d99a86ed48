import Foundation
import Glibc
import TestSupport
import Testing

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Those who only hold connections to the page` {
    /// Connected, and bytes may have been said.
    private final class Connection: Sendable {
        let client: NBDClient

        init(_ port: UInt16, saying text: String = "") throws {
            client = try NBDClient(.tcp(port: port), timeoutSeconds: 60)
            if !text.isEmpty { try client.send(Array(text.utf8)) }
        }

        /// Waits until the service has closed it; what came before.
        func end() -> Int {
            var count = 0
            var piece = [UInt8](repeating: 0, count: 65536)
            while true {
                let got = recv(client.descriptor, &piece, piece.count, 0)
                if got < 0, errno == EINTR { continue }
                if got <= 0 { return got < 0 && errno == EAGAIN ? -1 : count }
                count += got
            }
        }
    }

    @Test func `are so many and no more, and are let go after a while`() throws {
        let harness = try PageHarness()
        try harness.attach("vm1")
        let before = try harness.service.openDescriptors().count
        // Some that begin to speak, or to listen, and one that says a byte now and then.
        let half = "GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
        let body = "GET /v1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc"
        let slow = try [half, "G", body].map { try Connection(harness.port, saying: $0) }
        let dribbling = try Connection(harness.port, saying: half)
        let isClosed = Background { () -> Bool in
            let begin = monotonicSeconds()
            var byte: UInt8 = 0
            while monotonicSeconds() - begin < 60 {
                let flags = Int32(MSG_DONTWAIT)
                if recv(dribbling.client.descriptor, &byte, 1, flags) == 0 { return true }
                guard (try? dribbling.client.send([65])) != nil else { return true }
                _ = poll(nil, 0, 500)
            }
            return false
        }
        let count = isSoak ? 10_000 : 300
        var held: [Connection] = []
        var refused = 0
        for index in 0..<count {
            // A full backlog is a refusal, too.
            guard let connection = try? Connection(harness.port) else {
                refused += 1
                continue
            }
            if index < 200 { held.append(connection) }
        }
        // As many as one address may have, and the descriptors of what is just being closed.
        #expect(try harness.service.openDescriptors().count < before + 64 + 64)
        // NBD is not concerned, nor is the control socket.
        try harness.write("vm1", blocks: Array(0..<64))
        #expect(try harness.done("device", "list").contains("vm1"))
        let begin = monotonicSeconds()
        for connection in held { #expect(connection.end() == 0) }
        for connection in slow { #expect(connection.end() >= 0) }
        #expect(try isClosed.value())
        print(
            "held connections ended after \(Int(monotonicSeconds() - begin)) s; \(refused) of "
                + "\(count) were refused")
        #expect(try harness.ask("GET", "/v1").status == 200)
    }

    @Test func `send heads and bodies of bounded size`() throws {
        let harness = try PageHarness()
        let long = String(repeating: "x", count: 20_000)
        #expect(try harness.ask("GET", "/v1", ["X-Long": long]).status >= 400)
        let token = try harness.ask("POST", "/login", body: "token=" + long)
        #expect(token.status == 405 || token.status == 404)
        // Followers are as many as there may be, and the next one is told so.
        let follow = "GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
        var followers: [Connection] = []
        for _ in 0..<48 {
            let follower = try Connection(harness.port, saying: follow)
            // The head of the answer has come: the place is taken.
            var byte: UInt8 = 0
            #expect(recv(follower.client.descriptor, &byte, 1, 0) == 1)
            followers.append(follower)
        }
        let late = try harness.ask("GET", "/v1/events")
        #expect(late.status == 409 && late.body.contains("limit_reached"))
        // Those of the control socket have places of their own.
        #expect(try harness.done("events", "--timeout", "1") == "")
        withExtendedLifetime(followers) {}
    }

    @Test func `take their answers in time, or are let go`() throws {
        let harness = try PageHarness()
        try harness.attach("vm1")
        let before = try harness.service.openDescriptors().count
        let connection = try Connection(harness.port)
        // More than the kernel keeps for a client that reads nothing.
        let request =
            "GET /v1/devices/vm1/changes/summary?cells=4096 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for _ in 0..<200 { try connection.client.send(Array(request.utf8)) }
        var first: UInt8 = 0
        #expect(recv(connection.client.descriptor, &first, 1, 0) == 1)
        #expect(try harness.service.openDescriptors().count > before)
        let begin = monotonicSeconds()
        while try harness.service.openDescriptors().count > before {
            guard monotonicSeconds() - begin < 90 else {
                throw TestFailure("a client that reads nothing is served still")
            }
            _ = poll(nil, 0, 200)
        }
        withExtendedLifetime(connection) {}
    }

    @Test func `finish their TLS handshake in time, or are let go`() throws {
        let certificates = try TestCertificates()
        let harness = try PageHarness(certificates.arguments(askingClients: false))
        let silent = try Connection(harness.port)
        // The header of a ClientHello of 512 bytes, of which one comes.
        let slow = try Connection(harness.port)
        try slow.client.send([22, 3, 1, 2, 0, 1])
        #expect(silent.end() == 0)
        #expect(slow.end() >= 0)
    }
}
