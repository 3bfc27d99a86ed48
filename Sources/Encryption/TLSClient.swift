internal import Glibc
internal import NIOCore
internal import NIOPosix
internal import NIOSSL

/// How a client knows a server, and proves itself to it.
package enum TLSServerProof: Sendable {
    /// A directory with ca-cert.pem, and client-cert.pem with client-key.pem where the server asks
    /// for them. `host`: the name that the server's certificate must have; nil where a path names
    /// the server.
    case certificates(directory: String, host: String?)
    /// A file of keys (see `PreSharedKeys`), and whose of them is used.
    case preSharedKey(file: String, user: String)

    func context() throws(EncryptionError) -> NIOSSLContext {
        var configuration = TLSConfiguration.makeClientConfiguration()
        switch self {
        case .certificates(let directory, let host):
            let authority = directory + "/ca-cert.pem"
            let chain = directory + "/client-cert.pem"
            let key = directory + "/client-key.pem"
            do {
                configuration.trustRoots = .certificates(
                    try NIOSSLCertificate.fromPEMFile(authority))
                if access(chain, F_OK) == 0 {
                    configuration.certificateChain =
                        try NIOSSLCertificate.fromPEMFile(chain).map { .certificate($0) }
                    let bytes = try SecretFile.read(key, for: .group)
                    configuration.privateKey = .privateKey(
                        try NIOSSLPrivateKey(bytes: bytes, format: .pem))
                }
            } catch let error as EncryptionError {
                throw error
            } catch {
                throw EncryptionError(
                    kind: .invalid,
                    message: "the certificates in \(directory) cannot be read: \(error)")
            }
            configuration.certificateVerification =
                host == nil ? .noHostnameVerification : .fullVerification
        case .preSharedKey(let file, let user):
            let keys = try PreSharedKeys(contentsOf: file)
            guard let key = keys.key(of: user) else {
                throw EncryptionError(kind: .invalid, message: "\(file) has no key of \(user)")
            }
            configuration = .makePreSharedKeyConfiguration()
            configuration.cipherSuites = TLSCredentials.preSharedKeySuites
            configuration.maximumTLSVersion = .tlsv12
            configuration.pskClientProvider = { _ in
                var secret = NIOSSLSecureBytes()
                secret.append(key)
                return PSKClientIdentityResponse(key: secret, identity: user)
            }
        }
        configuration.minimumTLSVersion = .tlsv12
        configuration.renegotiationSupport = .none
        do {
            return try NIOSSLContext(configuration: configuration)
        } catch {
            throw EncryptionError(kind: .invalid, message: "TLS cannot be begun: \(error)")
        }
    }

    /// The host name to send to the server; nil for an address.
    fileprivate var serverName: String? {
        guard case .certificates(_, let host?) = self else { return nil }
        var address = in6_addr()
        let isAddress =
            inet_pton(AF_INET, host, &address) == 1 || inet_pton(AF_INET6, host, &address) == 1
        return isAddress ? nil : host
    }
}

/// Speaks TLS for connections of this program, on an event loop that lives as long as it.
package enum TLSClient {
    private static let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)

    /// Takes over a connected `socket` whose server awaits a TLS handshake, and `plain`, one end of
    /// a socket pair: the other end is for the plain text, and closes when the handshake fails,
    /// after `report` was told why.
    package static func relay(
        socket: Int32, plain: Int32, _ proof: TLSServerProof,
        report: @escaping @Sendable (String) -> Void
    ) throws(EncryptionError) {
        let context: NIOSSLContext
        do throws(EncryptionError) {
            context = try proof.context()
        } catch {
            close(socket)
            close(plain)
            throw error
        }
        let name = proof.serverName
        let loop = group.next()
        loop.execute {
            TLSGateway.relay(
                socket, plain, on: loop, report, {}
            ) { channel in
                try channel.pipeline.syncOperations.addHandler(
                    NIOSSLClientHandler(context: context, serverHostname: name))
            }
        }
    }
}
