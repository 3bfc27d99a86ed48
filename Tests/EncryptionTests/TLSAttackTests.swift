import Foundation
import Glibc
import TestSupport
import Testing

/// What those try who stand in between, or outside.
@Suite(
    .serialized,
    .enabled(if: canTestTLS, "needs stillpoint, openssl, libnbd-bin, qemu-utils, python3"))
struct `Attacks on TLS` {
    private let certificates: TestCertificates

    init() throws { certificates = try TestCertificates() }

    private func required() throws -> TLSService {
        try TLSService(certificates.arguments(askingClients: true))
    }

    private func expectUnharmed(_ tls: TLSService) throws {
        try Command.check("nbdinfo", [tls.uri(certificates: certificates.directory)])
    }

    @Test func `before TLS nothing is answered and no export is named`() throws {
        let tls = try required()
        let client = try tls.greeted()
        let disk = NBDClient.goData("disk")
        let options: [(UInt32, [UInt8])] = [
            (NBD.Option.list, []), (NBD.Option.info, disk), (NBD.Option.go, disk),
            (NBD.Option.go, NBDClient.goData("none")), (NBD.Option.structuredReply, []),
            (NBD.Option.extendedHeaders, []),
            (NBD.Option.setMetaContext, NBDClient.contextData("disk", ["base:allocation"])),
            (NBD.Option.listMetaContext, NBDClient.contextData("disk", [])), (4, []), (99, [1]),
        ]
        for (option, data) in options {
            let replies = try client.negotiate(option, data)
            #expect(replies.map(\.type) == [0x8000_0005], "option \(option)")
            let text = String(decoding: replies[0].data, as: UTF8.self)
            #expect(!text.contains("disk"), "\(text)")
        }
        #expect(try client.negotiate(NBD.Option.startTLS, [1]).map(\.type) == [0x8000_0003])
        #expect(
            try client.negotiate(NBD.Option.abort).map(\.type) == [NBD.OptionReply.acknowledged])
        try client.drainUntilClosed()
        let old = try tls.greeted()
        try old.sendOption(NBD.Option.exportName, Array("disk".utf8))
        #expect(throws: ConnectionEnded.self) { _ = try old.receive(1) }
        try expectUnharmed(tls)
    }

    @Test func `plain text sent along with STARTTLS ends the connection`() throws {
        let tls = try required()
        let client = try tls.greeted()
        var bytes: [UInt8] = []
        for option in [NBD.Option.startTLS, NBD.Option.list] {
            bytes.append(big: NBD.optionMagic)
            bytes.append(big: option)
            bytes.append(big: UInt32(0))
        }
        try client.send(bytes)
        #expect(throws: ConnectionEnded.self) { _ = try client.receive(1) }
        try expectUnharmed(tls)
    }

    @Test func `plain text sent after STARTTLS is not taken for an option`() throws {
        let tls = try required()
        let client = try tls.upgraded()
        try client.sendOption(NBD.Option.list)
        var answer: [UInt8] = []
        do { while answer.count < 100 { answer += try client.receive(1) } } catch is ConnectionEnded
        {}
        // At most an alert of TLS comes back.
        #expect(answer.count < 20)
        #expect(answer.isEmpty || answer[0] == 21)
        try expectUnharmed(tls)
    }

    @Test func `CVE-2021-3716: nothing agreed before STARTTLS holds after it`() throws {
        let tls = try TLSService(
            certificates.arguments(askingClients: true) + ["--tls", "allow"])
        let outcome = try tls.python(
            certificates: certificates,
            """
            raw.sendall(option(8))
            assert reply(raw)[0] == 1
            raw.sendall(option(10, struct.pack('>I', 4) + b'disk' + struct.pack('>II', 1, 15)
                               + b'base:allocation'))
            assert reply(raw)[0] == 4 and reply(raw)[0] == 1
            s = starttls()
            assert go(s) == 1
            s.sendall(struct.pack('>IHHQQI', 0x25609513, 0, 0, 77, 0, 16))
            print('%x' % struct.unpack('>I', receive(s, 4))[0])
            receive(s, 12 + 16)
            s.sendall(struct.pack('>IHHQQI', 0x25609513, 0, 7, 78, 0, 4096))
            print(struct.unpack('>II', receive(s, 8))[1])
            """)
        // Simple replies, and no block status: EINVAL.
        #expect(outcome.output == "67446698\n22\n", "\(outcome.diagnostics)")
    }

    @Test func `TLS within TLS is refused`() throws {
        let tls = try required()
        let outcome = try tls.python(
            certificates: certificates,
            """
            s = starttls()
            s.sendall(option(5))
            print('%x' % reply(s)[0], go(s))
            """)
        #expect(outcome.output == "80000003 1\n", "\(outcome.diagnostics)")
    }

    @Test(arguments: ["TLSv1", "TLSv1_1"])
    func `versions before TLS 1.2 are refused`(version: String) throws {
        let tls = try required()
        let script = """
            context.set_ciphers('ALL:@SECLEVEL=0')
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.%@
            try:
                print(starttls().version())
            except ssl.SSLError as error:
                print('refused', error.reason)
            """
        let refused = try tls.python(
            certificates: certificates, script.replacing("%@", with: version))
        #expect(
            refused.output.hasPrefix("refused TLSV1_ALERT_PROTOCOL_VERSION"),
            "\(refused.output)\(refused.diagnostics)")
        let accepted = try tls.python(
            certificates: certificates, script.replacing("%@", with: "TLSv1_2"))
        #expect(accepted.output == "TLSv1.2\n", "\(accepted.diagnostics)")
    }

    @Test func `200 half-open handshakes keep no real client out`() throws {
        let tls = try required()
        let before = try tls.service.openDescriptors()
        // The first bytes of a record that announces a handshake message and never goes on.
        let hello: [UInt8] = [22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]
        var halfOpen: [NBDClient] = []
        for index in 0..<200 {
            let client = try index % 4 == 0 ? tls.greeted() : tls.upgraded()
            if index % 4 > 1 { try client.send(index % 4 == 2 ? [22] : hello) }
            halfOpen.append(client)
        }
        let start = monotonicSeconds()
        for _ in 0..<5 { try expectUnharmed(tls) }
        #expect(monotonicSeconds() - start < 9, "clients waited until handshakes ran out of time")
        // The oldest made room for the newest, all in all within the time of a handshake.
        for client in halfOpen { try client.drainUntilClosed() }
        #expect(monotonicSeconds() - start < 40)
        let kept = try tls.service.descriptorsNotReturned(since: before)
        #expect(kept == [])
    }

    @Test func `a slow handshake is dropped at its limit, whatever it sends`() throws {
        let tls = try required()
        let client = try tls.upgraded()
        let start = monotonicSeconds()
        do {
            // One byte a second of a record that would take hours.
            try client.send([22, 3, 1, 0x3f, 0xff])
            while monotonicSeconds() - start < 60 {
                try client.send([0])
                var entry = pollfd(fd: client.descriptor, events: Int16(POLLIN), revents: 0)
                if poll(&entry, 1, 1000) > 0 { _ = try client.receive(1) }
            }
        } catch is ConnectionEnded {}
        let seconds = monotonicSeconds() - start
        print("a slow TLS handshake was dropped after \(seconds) s")
        #expect(seconds > 8 && seconds < 20)
        try expectUnharmed(tls)
    }

    @Test func `a client that takes no replies is dropped behind TLS too`() throws {
        let tls = try required()
        let descriptors = try tls.service.openDescriptors()
        try expectUnharmed(tls)
        let kept = try tls.service.descriptorsNotReturned(since: descriptors)
        #expect(kept == [])
        let before = try tls.service.statusKibibytes("VmHWM")
        let client = try tls.startPython(
            certificates: certificates,
            """
            s = starttls()
            assert go(s) == 1
            for cookie in range(64):
                s.sendall(struct.pack('>IHHQQI', 0x25609513, 0, 0, cookie, 0, 4 << 20))
            print('asked', flush=True)
            sys.stdin.readline()
            """)
        #expect(try client.readLine(deadline: 60) == "asked")
        #expect(try tls.service.openDescriptors().count > descriptors.count)
        let start = monotonicSeconds()
        let late = try tls.service.descriptorsNotReturned(since: descriptors)
        #expect(late == [])
        #expect(monotonicSeconds() - start > 5, "it was not dropped for taking nothing")
        try client.killAndWait()
        // 64 replies of 4 MiB were asked for; the pool of the loop and a window are what they got.
        #expect(try tls.service.statusKibibytes("VmHWM") - before < 128 * 1024)
        try expectUnharmed(tls)
    }

    @Test func `connections that end in any way give everything back`() throws {
        let tls = try required()
        let before = try tls.service.openDescriptors()
        try expectUnharmed(tls)
        for index in 0..<scaled(2000, "TLS connections that end in any way") {
            switch index % 4 {
            case 0: _ = try tls.upgraded()
            case 1:
                let client = try tls.upgraded()
                try client.send([UInt8](repeating: UInt8(index % 256), count: 600))
            case 2:
                let client = try tls.upgraded()
                try client.send([22, 3, 1, 0, 200])
                client.shutdownSending()
            default:
                let outcome = try tls.python(
                    certificates: certificates,
                    """
                    s = starttls()
                    assert go(s) == 1
                    s.sendall(struct.pack('>IHHQQI', 0x25609513, 0, 0, 1, 0, 65536))
                    """)
                #expect(outcome.status == 0, "\(outcome.diagnostics)")
            }
        }
        let kept = try tls.service.descriptorsNotReturned(since: before)
        #expect(kept == [])
        try expectUnharmed(tls)
        #expect(try tls.service.stop() == .exited(0))
    }

    @Test func `a stop waits for no TLS client that holds on`() throws {
        let tls = try required()
        let clients = try (0..<20).map { _ in try tls.upgraded() }
        #expect(try tls.service.stop() == .exited(0))
        withExtendedLifetime(clients) {}
    }
}
