import Foundation
import TestSupport
import Testing

@Suite(
    .serialized,
    .enabled(if: canTestTLS, "needs stillpoint, openssl, libnbd-bin, qemu-utils, python3"))
struct `Options of TLS` {
    private let certificates: TestCertificates
    private let keys: TestKeys

    init() throws {
        certificates = try TestCertificates()
        keys = try TestKeys()
    }

    private func refusal(_ arguments: [String], _ status: Int32 = 2) throws -> String {
        let outcome = try TestService.refusal(attaching: [:], extraArguments: arguments)
        #expect(outcome.status == status, "\(arguments): \(outcome.diagnostics)")
        return outcome.diagnostics
    }

    @Test func `that contradict each other are wrong usage`() throws {
        let certificate = certificates.path("server-cert.pem")
        let key = certificates.path("server-key.pem")
        let cases: [([String], String)] = [
            (["--tls", "require"], "needs --tls-cert"),
            (["--tls", "allow"], "needs --tls-cert"),
            (["--tls", "maybe"], "use off, allow or require"),
            (["--tls", "off", "--tls-psk", keys.path], "contradicts"),
            (["--tls-cert", certificate], "--tls-cert needs --tls-key"),
            (["--tls-key", key], "--tls-key needs --tls-cert"),
            (["--tls-anyone"], "--tls-anyone goes with"),
            (["--tls-psk", keys.path, "--tls-anyone"], "--tls-anyone goes with"),
            (["--tls-ca", certificate], "--tls-cert and --tls-key"),
            (
                ["--tls-psk", keys.path, "--tls-cert", certificate, "--tls-key", key],
                "one or the other"
            ),
        ]
        for (arguments, reason) in cases {
            let message = try refusal(arguments)
            #expect(message.contains(reason), "\(message)")
        }
    }

    @Test func `with files that are not what they should be are refused`() throws {
        let certificate = certificates.path("server-cert.pem")
        let key = certificates.path("server-key.pem")
        let missing = certificates.path("missing.pem")
        #expect(
            try refusal(["--tls-cert", certificate, "--tls-key", missing], 1)
                .contains("No such file"))
        #expect(
            try refusal(["--tls-cert", missing, "--tls-key", key]).contains("cannot be read"))
        #expect(
            try refusal([
                "--tls-cert", certificate, "--tls-key", certificates.path("client-key.pem"),
            ]).contains("do not match"))
        #expect(
            try refusal(["--tls-cert", key, "--tls-key", key]).contains("\(key)"))
        #expect(
            try refusal([
                "--tls-cert", certificate, "--tls-key", key, "--tls-ca", keys.path,
            ]).contains(keys.path))
        let locked = certificates.path("locked.pem")
        try Command.check(
            "openssl",
            ["pkcs8", "-topk8", "-in", key, "-passout", "pass:secret", "-out", locked])
        #expect(
            try refusal(["--tls-cert", certificate, "--tls-key", locked]).contains("passphrase"))
    }

    @Test func `with secrets that others can read are refused`() throws {
        let open = try TestKeys(mode: 0o640)
        #expect(try refusal(["--tls-psk", open.path]).contains("chmod 600"))
        try FileManager.default.setAttributes(
            [.posixPermissions: 0o604], ofItemAtPath: certificates.path("server-key.pem"))
        #expect(
            try refusal(certificates.arguments(askingClients: false)).contains("chmod 640"))
        let garbled = try TestKeys("alice:xyz\n")
        #expect(try refusal(["--tls-psk", garbled.path]).contains("line 1"))
    }
}
