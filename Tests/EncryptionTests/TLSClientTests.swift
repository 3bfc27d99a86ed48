import Foundation
import Glibc
import TestSupport
import Testing

/// Clients of others that come encrypted.
@Suite(
    .serialized,
    .enabled(if: canTestTLS, "needs stillpoint, openssl, libnbd-bin, qemu-utils, python3"))
struct `Clients over TLS` {
    private let certificates: TestCertificates
    private let keys: TestKeys

    init() throws {
        certificates = try TestCertificates()
        keys = try TestKeys()
    }

    private func refuses(_ uri: String) throws -> String {
        let outcome = try Command.run("nbdinfo", [uri], deadline: 60)
        #expect(outcome.status != 0, "\(uri): \(outcome.output)")
        return outcome.diagnostics
    }

    @Test func `nbdinfo, nbdcopy and qemu-img connect with certificates`() throws {
        let tls = try TLSService(certificates.arguments(askingClients: true))
        let uri = tls.uri(certificates: certificates.directory)
        #expect(try Command.check("nbdinfo", [uri]).contains("newstyle-fixed with TLS"))
        let list = try Command.check(
            "nbdinfo", ["--list", uri.replacing("/disk?", with: "/?")])
        #expect(list.contains("export=\"disk\""))
        try roundTrip(
            tls, uri,
            qemu: tls.qemu("tls-creds-x509,dir=\(certificates.directory.root)"))
        #expect(try tls.service.stop() == .exited(0))
    }

    @Test func `nbdinfo, nbdcopy and qemu-img connect with a pre-shared key`() throws {
        let tls = try TLSService(["--tls-psk", keys.path])
        let uri = tls.uri(keys: keys)
        #expect(try Command.check("nbdinfo", [uri]).contains("newstyle-fixed with TLS"))
        try roundTrip(
            tls, uri,
            qemu: tls.qemu("tls-creds-psk,dir=\(keys.directory.root),username=alice"))
        #expect(try tls.service.stop() == .exited(0))
    }

    /// Data goes there and back unchanged, through both clients.
    private func roundTrip(_ tls: TLSService, _ uri: String, qemu: [String]) throws {
        var generator = SeededGenerator.announced("TLS round trip")
        let directory = try TemporaryDirectory()
        try makeRandomFile(
            directory.path("in"), byteCount: tls.origin.byteCount, generator: &generator)
        try Command.check("nbdcopy", [directory.path("in"), uri])
        let expected = try readFile(directory.path("in"), 0..<tls.origin.byteCount)
        #expect(try tls.origin.read(0..<tls.origin.byteCount) == expected)
        try Command.check("nbdcopy", [uri, directory.path("out")])
        #expect(try readFile(directory.path("out"), 0..<tls.origin.byteCount) == expected)
        // qemu-img takes options of the target's TLS on the command line too.
        try Command.check(
            "qemu-img", ["convert", "-O", "raw"] + qemu + [directory.path("qemu")])
        #expect(try readFile(directory.path("qemu"), 0..<tls.origin.byteCount) == expected)
    }

    @Test func `a certificate of another authority, or none, is refused`() throws {
        let tls = try TLSService(certificates.arguments(askingClients: true))
        let others = try TestCertificates()
        let wrong = try ClientDirectory([
            "ca-cert.pem": certificates.path("ca-cert.pem"),
            "client-cert.pem": others.path("client-cert.pem"),
            "client-key.pem": others.path("client-key.pem"),
        ])
        _ = try refuses(tls.uri(certificates: wrong.directory))
        let none = try ClientDirectory(["ca-cert.pem": certificates.path("ca-cert.pem")])
        _ = try refuses(tls.uri(certificates: none.directory))
        // And a client does not believe a service that its authority does not know.
        _ = try refuses(tls.uri(certificates: others.directory))
        #expect(tls.service.log.contains("TLS handshake failed"))
        #expect(try refuses(tls.service.uri("disk", .tcp)).isEmpty == false)
        try Command.check("nbdinfo", [tls.uri(certificates: certificates.directory)])
    }

    @Test func `without an authority clients need no certificate`() throws {
        let tls = try TLSService(certificates.arguments(askingClients: false))
        let none = try ClientDirectory(["ca-cert.pem": certificates.path("ca-cert.pem")])
        try Command.check("nbdinfo", [tls.uri(certificates: none.directory)])
    }

    @Test func `a wrong key, an unknown name and the wrong kind of proof are refused`() throws {
        let tls = try TLSService(["--tls-psk", keys.path])
        let wrong = try TestKeys("alice:\(String(TestKeys.key.reversed()))\n")
        _ = try refuses(tls.uri(keys: wrong))
        let stranger = try TestKeys("mallory:\(TestKeys.key)\n")
        _ = try refuses(tls.uri(name: "mallory", keys: stranger))
        _ = try refuses(tls.uri(certificates: certificates.directory))
        let other = try TLSService(certificates.arguments(askingClients: true))
        _ = try refuses(other.uri(keys: keys))
        try Command.check("nbdinfo", [tls.uri(keys: keys)])
    }

    @Test func `with --tls allow clients may do without`() throws {
        let tls = try TLSService(
            certificates.arguments(askingClients: true) + ["--tls", "allow"])
        try Command.check("nbdinfo", [tls.uri(certificates: certificates.directory)])
        #expect(
            try Command.check("nbdinfo", [tls.service.uri("disk", .tcp)]).contains("without TLS"))
    }

    @Test func `local clients may use TLS and need not`() throws {
        let tls = try TLSService(certificates.arguments(askingClients: true))
        try Command.check("nbdinfo", [tls.service.uri("disk")])
        let uri =
            "nbds+unix:///disk?socket=\(tls.service.socketPath)&tls-hostname=localhost"
            + "&tls-certificates=\(certificates.directory.root)"
        #expect(try Command.check("nbdinfo", [uri]).contains("with TLS"))
    }

    @Test func `beyond loopback --tls require replaces --allow-plaintext`() throws {
        let port = try TestService.freePort()
        let beyond = ["--nbd", "tcp:0.0.0.0:\(port)"]
        let allow = certificates.arguments(askingClients: false) + ["--tls", "allow"]
        for arguments in [beyond, beyond + allow] {
            let refusal = try TestService.refusal(attaching: [:], extraArguments: arguments)
            #expect(refusal.status == 2)
            #expect(refusal.diagnostics.contains("--tls-ca, or --tls-psk"))
        }
        let tls = try TLSService(certificates.arguments(askingClients: true) + beyond)
        #expect(try tls.service.stop() == .exited(0))
    }

    @Test func `beyond loopback clients have to prove who they are, unless anyone is wanted`()
        throws
    {
        let port = try TestService.freePort()
        let beyond = ["--nbd", "tcp:0.0.0.0:\(port)"]
        let anonymous = certificates.arguments(askingClients: false)
        let refusal = try TestService.refusal(
            attaching: [:], extraArguments: anonymous + beyond)
        #expect(refusal.status == 2)
        #expect(refusal.diagnostics.contains("lets every client read and write"))
        #expect(refusal.diagnostics.contains("--tls-anyone"))
        let check = try TestService.refusal(
            attaching: [:], extraArguments: anonymous + beyond + ["--check"])
        #expect(check.status == 2 && check.diagnostics.contains("--tls-anyone"))
        let tls = try TLSService(anonymous + beyond + ["--tls-anyone"])
        #expect(try tls.service.stop() == .exited(0))
        // On loopback everyone is of this machine.
        let local = try TLSService(anonymous)
        #expect(try local.service.stop() == .exited(0))
    }

    @Test func `certificates speak TLS 1.3, pre-shared keys TLS 1.2`() throws {
        let tls = try TLSService(certificates.arguments(askingClients: true))
        let outcome = try tls.python(
            certificates: certificates,
            """
            s = starttls()
            print(s.version(), go(s))
            """)
        #expect(outcome.output == "TLSv1.3 1\n", "\(outcome.diagnostics)")
        // BoringSSL has no external pre-shared keys in TLS 1.3: a client that insists is refused.
        let shared = try TLSService(["--tls-psk", keys.path])
        for (option, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "none")] {
            let outcome = try shared.python(
                certificates: certificates,
                """
                import re, subprocess, threading
                raw.sendall(option(5))
                assert reply(raw)[0] == 1
                listener = socket.create_server(('127.0.0.1', 0))
                client = subprocess.Popen(
                    ['openssl', 's_client', '-connect', '127.0.0.1:%d' % listener.getsockname()[1],
                     '-psk', '\(TestKeys.key)', '-psk_identity', 'alice', '\(option)'],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                inner = listener.accept()[0]
                def copy(a, b):
                    try:
                        while data := a.recv(65536): b.sendall(data)
                        b.shutdown(socket.SHUT_WR)
                    except OSError: pass
                threading.Thread(target=copy, args=(raw, inner), daemon=True).start()
                threading.Thread(target=copy, args=(inner, raw), daemon=True).start()
                output = client.communicate(b'Q')[0].decode()
                found = re.search(r'New, (\\S+), Cipher is (ECDHE-PSK\\S+)', output)
                print(found.group(1) if found else 'none')
                """)
            #expect(outcome.output == version + "\n", "\(outcome.diagnostics)")
        }
    }
}
