internal import NIOSSL

/// What an endpoint proves itself with, and how it knows its clients: certificates or pre-shared
/// keys, never both.
package enum TLSCredentials: Sendable, Equatable {
    /// PEM files. With an authority clients must show a certificate that it signed.
    case certificate(chain: String, key: String, authority: String?)
    /// A file of keys; see `PreSharedKeys`.
    case preSharedKeys(path: String)

    /// BoringSSL knows pre-shared keys in TLS 1.2 only; of the suites it has for them this is the
    /// one with forward secrecy and authenticated encryption.
    static let preSharedKeySuites = "ECDHE-PSK-CHACHA20-POLY1305"

    /// Loads the files.
    func context() throws(EncryptionError) -> NIOSSLContext {
        var configuration: TLSConfiguration
        switch self {
        case .certificate(let chain, let key, let authority):
            configuration = try Self.certified(chain, key, authority)
        case .preSharedKeys(let path):
            let keys = try PreSharedKeys(contentsOf: path)
            configuration = .makePreSharedKeyConfiguration()
            configuration.cipherSuites = Self.preSharedKeySuites
            configuration.maximumTLSVersion = .tlsv12
            configuration.pskServerProvider = { client in
                guard let key = keys.key(of: client.clientIdentity) else {
                    throw EncryptionError(kind: .invalid, message: "no client of that name")
                }
                var secret = NIOSSLSecureBytes()
                secret.append(key)
                return PSKServerIdentityResponse(key: secret)
            }
        }
        configuration.minimumTLSVersion = .tlsv12
        configuration.renegotiationSupport = .none
        do {
            return try NIOSSLContext(configuration: configuration)
        } catch NIOSSLError.failedToLoadPrivateKey {
            throw EncryptionError(
                kind: .invalid,
                message: "\(self) cannot be used: the certificate and the key do not match")
        } catch {
            throw EncryptionError(
                kind: .invalid, message: "\(self) cannot be used for TLS: \(error)")
        }
    }

    private static func certified(
        _ chainPath: String, _ keyPath: String, _ authority: String?
    ) throws(EncryptionError) -> TLSConfiguration {
        let key = try SecretFile.read(keyPath, for: .group)
        do {
            let chain = try NIOSSLCertificate.fromPEMFile(chainPath)
            guard !chain.isEmpty else {
                throw EncryptionError(kind: .invalid, message: "\(chainPath) holds no certificate")
            }
            let privateKey: NIOSSLPrivateKey
            do {
                // Without a callback BoringSSL would ask the terminal for a passphrase.
                privateKey = try NIOSSLPrivateKey(bytes: key, format: .pem) {
                    (_: ([UInt8]) -> Void) in
                    throw EncryptionError(kind: .invalid, message: "a passphrase is needed")
                }
            } catch {
                throw EncryptionError(
                    kind: .invalid,
                    message: "\(keyPath) holds no private key in PEM without a passphrase")
            }
            var configuration = TLSConfiguration.makeServerConfiguration(
                certificateChain: chain.map { .certificate($0) },
                privateKey: .privateKey(privateKey))
            if let authority {
                let roots = try NIOSSLCertificate.fromPEMFile(authority)
                guard !roots.isEmpty else {
                    throw EncryptionError(
                        kind: .invalid, message: "\(authority) holds no certificate")
                }
                configuration.trustRoots = .certificates(roots)
                configuration.certificateVerification = .noHostnameVerification
            }
            return configuration
        } catch let error as EncryptionError {
            throw error
        } catch {
            throw EncryptionError(
                kind: .invalid,
                message: "the certificate \(chainPath)"
                    + (authority.map { " or \($0)" } ?? "") + " cannot be read: \(error)")
        }
    }
}

extension TLSCredentials: CustomStringConvertible {
    package var description: String {
        switch self {
        case .certificate(let chain, let key, _): "the certificate \(chain) with the key \(key)"
        case .preSharedKeys(let path): "the keys in \(path)"
        }
    }
}
