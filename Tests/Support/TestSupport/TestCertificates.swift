import Foundation

/// An authority of the tests with a service and a client that it vouches for, in files of the names
/// that libnbd and QEMU look for.
package struct TestCertificates {
    package let directory: TemporaryDirectory

    /// Makes them with openssl.
    package init() throws {
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

    /// Path of one of the files.
    package func path(_ name: String) -> String { directory.path(name) }

    /// Arguments of `serve` for an endpoint with this certificate.
    package func arguments(askingClients: Bool) -> [String] {
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
