import Foundation
import TestSupport

/// A service with TLS over one device, and what clients need to reach it.
struct TLSService {
    let service: TestService
    let origin: TestOrigin

    init(_ arguments: [String], byteCount: Int = 8 << 20) throws {
        origin = try TestOrigin(.sparseFile, byteCount: byteCount)
        service = try TestService(
            attaching: ["disk": origin.path], loops: 1, extraArguments: arguments)
    }

    /// A URI for libnbd with the certificates in `directory`.
    func uri(certificates directory: TemporaryDirectory) -> String {
        "nbds://localhost:\(service.port)/disk?tls-certificates=\(directory.root)"
    }

    /// A URI for libnbd with a pre-shared key.
    func uri(name: String = "alice", keys: TestKeys) -> String {
        "nbds://\(name)@localhost:\(service.port)/disk?tls-psk-file=\(keys.path)"
    }

    /// Arguments of qemu-img for TLS with the object given.
    func qemu(_ object: String) -> [String] {
        [
            "--object", "\(object),id=tls0,endpoint=client", "--image-opts",
            "driver=nbd,host=localhost,port=\(service.port),export=disk,tls-creds=tls0",
        ]
    }

    /// A connection in plain text that has greeted.
    func greeted() throws -> NBDClient {
        let client = try NBDClient(service.address(.tcp), timeoutSeconds: 60)
        try client.greet()
        return client
    }

    /// A connection on which the client may begin with TLS.
    func upgraded() throws -> NBDClient {
        let client = try greeted()
        guard try client.negotiate(NBD.Option.startTLS).last?.type == NBD.OptionReply.acknowledged
        else { throw TestFailure("STARTTLS is refused") }
        return client
    }

    /// Runs a TLS client in Python to its end: see `program`.
    func python(
        certificates: TestCertificates, _ script: String, deadline: Double = 90
    ) throws -> Command.Outcome {
        try Command.run(
            "python3", ["-c", program(certificates) + script], deadline: deadline)
    }

    /// Starts a TLS client in Python: see `program`.
    func startPython(
        certificates: TestCertificates, _ script: String
    ) throws -> ChildProcess {
        try ChildProcess("python3", ["-c", program(certificates) + script], withInput: true)
    }

    /// What the clients in Python begin with: `raw` is a socket past the greeting, `starttls`
    /// makes it one that speaks TLS as `context` says.
    private func program(_ certificates: TestCertificates) -> String {
        """
        import socket, ssl, struct, select, sys
        def receive(s, n):
            data = b''
            while len(data) < n:
                part = s.recv(n - len(data))
                if not part: raise EOFError
                data += part
            return data
        def option(number, data=b''):
            return struct.pack('>QII', 0x49484156454F5054, number, len(data)) + data
        def reply(s):
            magic, number, kind, size = struct.unpack('>QIII', receive(s, 20))
            return kind, receive(s, size)
        def go(s, number=7):
            s.sendall(option(number, struct.pack('>I', 4) + b'disk' + struct.pack('>H', 0)))
            while True:
                kind, data = reply(s)
                if kind != 3: return kind
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations('\(certificates.path("ca-cert.pem"))')
        context.load_cert_chain('\(certificates.path("client-cert.pem"))',
                                '\(certificates.path("client-key.pem"))')
        raw = socket.create_connection(('127.0.0.1', \(service.port)), 60)
        receive(raw, 18)
        raw.sendall(struct.pack('>I', 3))
        def starttls():
            raw.sendall(option(5))
            assert reply(raw)[0] == 1
            return context.wrap_socket(raw, server_hostname='localhost')

        """
    }
}

/// What the tests need beside the program.
let canTestTLS =
    TestService.isBuilt && Command.exists("openssl") && Command.exists("nbdinfo")
    && Command.exists("nbdcopy") && Command.exists("qemu-img") && Command.exists("python3")
