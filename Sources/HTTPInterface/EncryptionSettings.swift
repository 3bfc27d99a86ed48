package import ControlDocuments
package import Encryption
package import ExportNBD
package import Logging
internal import Synchronization

/// What `--tls` and the options that go with it ask for, checked against each other.
package struct EncryptionSettings: Sendable, Equatable {
    /// Clients over TCP get nothing without TLS; else they may ask for it.
    package let isRequired: Bool
    package let credentials: TLSCredentials
    /// Clients that no certificate or key is asked of are served beyond loopback too.
    package let allowsAnyone: Bool

    /// What was given on the command line.
    package struct Options: Sendable {
        /// `off`, `allow` or `require`.
        /// Whether NBD over TCP offers TLS or demands it.
        package var mode: String?
        package var certificate: String?
        package var key: String?
        package var authority: String?
        package var preSharedKeys: String?
        package var allowsAnyone: Bool

        package init(
            mode: String? = nil, certificate: String? = nil, key: String? = nil,
            authority: String? = nil, preSharedKeys: String? = nil, allowsAnyone: Bool = false
        ) {
            self.mode = mode
            self.certificate = certificate
            self.key = key
            self.authority = authority
            self.preSharedKeys = preSharedKeys
            self.allowsAnyone = allowsAnyone
        }
    }

    /// Nil when TLS is off.
    package init?(checking options: Options) throws(ControlError) {
        let credentials = try Self.credentials(options)
        allowsAnyone = options.allowsAnyone
        if allowsAnyone, credentials.map(Self.identifiesClients) ?? true {
            throw ControlError(
                .invalid,
                "--tls-anyone goes with --tls-cert and --tls-key alone: without TLS it means "
                    + "nothing, and with --tls-ca or --tls-psk clients have to prove who they are")
        }
        switch (options.mode, credentials) {
        case (nil, nil), ("off", nil): return nil
        case (nil, let credentials?), ("require", let credentials?):
            isRequired = true
            self.credentials = credentials
        case ("allow", let credentials?):
            isRequired = false
            self.credentials = credentials
        case ("off", _?):
            throw ControlError(
                .invalid, "--tls off contradicts the certificate or keys that are given with it")
        case ("allow", nil), ("require", nil):
            throw ControlError(
                .invalid,
                "TLS needs --tls-cert with --tls-key, or --tls-psk")
        case (let mode?, _):
            throw ControlError(.invalid, "--tls \"\(mode)\": use off, allow or require")
        }
    }

    private static func credentials(_ options: Options) throws(ControlError) -> TLSCredentials? {
        if let path = options.preSharedKeys {
            guard options.certificate == nil, options.key == nil, options.authority == nil else {
                throw ControlError(
                    .invalid,
                    "--tls-psk cannot be combined with certificates: give one or the other")
            }
            return .preSharedKeys(path: path)
        }
        switch (options.certificate, options.key) {
        case (let certificate?, let key?):
            return .certificate(chain: certificate, key: key, authority: options.authority)
        case (nil, nil):
            guard options.authority == nil else {
                throw ControlError(
                    .invalid,
                    "--tls-ca is for clients' certificates; the service's own is missing,"
                        + " give --tls-cert and --tls-key")
            }
            return nil
        case (_?, nil): throw ControlError(.invalid, "--tls-cert needs --tls-key")
        case (nil, _?): throw ControlError(.invalid, "--tls-key needs --tls-cert")
        }
    }

    /// Clients have to prove who they are.
    package var identifiesClients: Bool { Self.identifiesClients(credentials) }

    private static func identifiesClients(_ credentials: TLSCredentials) -> Bool {
        switch credentials {
        case .preSharedKeys: true
        case .certificate(_, _, let authority): authority != nil
        }
    }

    /// Whether NBD over TCP offers TLS or demands it.
    package var mode: NBDEncryption.Mode { isRequired ? .required : .offered }

    /// Loads the credentials and starts what ends TLS.
    package func gateway(threadCount: Int, logger: Logger) throws(ControlError) -> TLSGateway {
        let limit = LogLimit()
        do throws(EncryptionError) {
            return try TLSGateway(credentials, threadCount: threadCount) { reason in
                guard let suppressedCount = limit.admit() else { return }
                let more = suppressedCount == 0 ? "" : " (and \(suppressedCount) more before)"
                logger.notice("NBD: \(reason)\(more)")
            }
        } catch {
            switch error.kind {
            case .invalid: throw ControlError(.invalid, "TLS: \(error)")
            case .failed: throw ControlError(.failed, "TLS: \(error)")
            }
        }
    }
}

extension TLSGateway: SocketEncryption {}

/// Lets one message a second through, so that nobody fills the log from outside.
private final class LogLimit: Sendable {
    private struct State {
        var last: ContinuousClock.Instant?
        var suppressedCount = 0
    }

    private let state = Mutex(State())

    /// How many messages were not let through since the last one; nil when this one is not either.
    func admit() -> Int? {
        state.withLock { state in
            let now = ContinuousClock.now
            if let last = state.last, now - last < .seconds(1) {
                state.suppressedCount += 1
                return nil
            }
            defer { state = State(last: now) }
            return state.suppressedCount
        }
    }
}
