import BlockModel
import RingIO
import TestSupport
import Testing

@testable import ExportNBD

@Suite struct `A handshake with TLS` {
    let directory = TestDirectory()

    init() async throws {
        let thread = try LoopThread(index: 0, configuration: LoopConfiguration())
        let target = try #require(
            await thread.mailbox.run { loop in
                LoopConfined<BlockTarget>(BlockTarget(size: 1 << 20, alignment: 1), on: loop)
            })
        directory.exports.withLock {
            $0.append(
                ExportDescription(
                    name: "disk", summary: "a disk", size: 1 << 20, isReadOnly: false,
                    isRotational: false, canDiscard: true, loop: thread,
                    target: target))
        }
        thread.stopAndJoin()
    }

    @Test func `offers nothing but TLS and the end where TLS is required`() throws {
        var client = Handshake(directory, security: .required)
        for option in [UInt32(3), 6, 7, 8, 9, 10, 11, 4, 0, .max] {
            #expect(try client.ask(option, []).map(\.type) == [0x8000_0005])
        }
        #expect(client.outcome == .waiting)
        client.feed(Handshake.option(1, Array("disk".utf8)))
        #expect(client.outcome == .closed)
        var other = Handshake(directory, security: .required)
        #expect(try other.ask(2).map(\.type) == [1])
        #expect(other.outcome == .closed)
    }

    @Test(arguments: [NBDSecurity.offered, .required])
    func `begins anew under TLS`(security: NBDSecurity) throws {
        var client = Handshake(directory, security: security)
        if security == .offered {
            _ = try client.ask(11)
            _ = try client.ask(10, NBDClient.contextData("disk", ["base:allocation"]))
        }
        #expect(try client.ask(5).map(\.type) == [1])
        #expect(client.outcome == .secured)
        client.negotiation = NBDNegotiation(under: client.negotiation)
        client.outcome = .waiting
        #expect(client.negotiation.output.isEmpty, "there is no second greeting")
        #expect(try client.ask(5).map(\.type) == [0x8000_0003])
        _ = try client.ask(7, NBDClient.goData("disk"))
        #expect(client.outcome == .open)
        #expect(client.opening?.mode == .simple && client.opening?.contexts.isEmpty == true)
    }

    @Test func `ends when bytes came in behind STARTTLS`() {
        for extra in [[UInt8(0)], Handshake.option(3)] {
            var client = Handshake(directory, security: .required)
            client.feed(Handshake.option(5) + extra)
            #expect(client.outcome == .closed)
            #expect(client.output.isEmpty)
        }
    }

    @Test func `refuses STARTTLS with data, and where there is no TLS`() throws {
        var client = Handshake(directory, security: .required)
        #expect(try client.ask(5, [0]).map(\.type) == [0x8000_0003])
        #expect(client.outcome == .waiting)
        var plain = Handshake(directory)
        #expect(try plain.ask(5).map(\.type) == [0x8000_0001])
    }
}
