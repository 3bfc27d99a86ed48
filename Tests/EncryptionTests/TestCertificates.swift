import Foundation
import TestSupport

/// An authority of the tests with a service and a client that it vouches for, in files of the names
/// that libnbd and QEMU look for.
struct TestCertificates {
    let directory: TemporaryDirectory

    init() throws {
        directory = try TemporaryDirectory()
        try makeKey("ca")
        try Command.check(
            "openssl",
            [
                "req", "-x509", "-new", "-key", path("ca-key.pem"), "-days", "2", "-subj",
                "/CN=authority of the tests", "-out", path("ca-cert.pem"), "-addext",
                "basicConstraints=critical,CA:TRUE", "-addext",
                "keyUsage=critical,keyCertSign,cRLSign",
            ])
        for name in ["server", "client"] { try certify(name) }
    }

    func path(_ name: String) -> String { directory.path(name) }

    /// Arguments of `serve` for an endpoint with this certificate.
    func arguments(askingClients: Bool) -> [String] {
        ["--tls-cert", path("server-cert.pem"), "--tls-key", path("server-key.pem")]
            + (askingClients ? ["--tls-ca", path("ca-cert.pem")] : [])
    }

    private func makeKey(_ name: String) throws {
        try Command.check(
            "openssl",
            [
                "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out",
                path("\(name)-key.pem"),
            ])
        try FileManager.default.setAttributes(
            [.posixPermissions: 0o600], ofItemAtPath: path("\(name)-key.pem"))
    }

    private func certify(_ name: String) throws {
        try makeKey(name)
        try Command.check(
            "openssl",
            [
                "req", "-new", "-key", path("\(name)-key.pem"), "-subj", "/CN=\(name)", "-out",
                path("\(name).csr"),
            ])
        try """
        subjectAltName=DNS:localhost,IP:127.0.0.1
        basicConstraints=CA:FALSE
        keyUsage=critical,digitalSignature
        extendedKeyUsage=serverAuth,clientAuth
        """.write(toFile: path("\(name).ext"), atomically: true, encoding: .utf8)
        try Command.check(
            "openssl",
            [
                "x509", "-req", "-in", path("\(name).csr"), "-CA", path("ca-cert.pem"), "-CAkey",
                path("ca-key.pem"), "-CAcreateserial", "-days", "2", "-extfile",
                path("\(name).ext"), "-out", path("\(name)-cert.pem"),
            ])
    }
}

/// A directory with some files of others, as clients want them.
struct ClientDirectory {
    let directory = try! TemporaryDirectory()

    init(_ files: [String: String]) throws {
        for (name, source) in files {
            try FileManager.default.copyItem(atPath: source, toPath: directory.path(name))
        }
    }
}

/// A file of pre-shared keys.
struct TestKeys {
    static let key = String(repeating: "0123456789abcdef", count: 4)

    let directory: TemporaryDirectory

    init(_ text: String = "alice:\(TestKeys.key)\n", mode: Int = 0o600) throws {
        directory = try TemporaryDirectory()
        try text.write(toFile: path, atomically: true, encoding: .utf8)
        try FileManager.default.setAttributes([.posixPermissions: mode], ofItemAtPath: path)
    }

    /// The name that QEMU looks for.
    var path: String { directory.path("keys.psk") }
}
