package import ControlDocuments
internal import Encryption
internal import ExportNBD
internal import Glibc

/// What `--http` and the options that go with it ask for.
package struct PageSettings: Sendable, Equatable {
    /// Where the page is served: TCP.
    package let addresses: [ListenAddress]
    /// Who knows the token in it may look; nil: who reaches the address may.
    package let tokenFile: String?
    /// Paths of the machine are left out of all answers.
    package let hidesPaths: Bool
    /// Further names by which browsers reach the page.
    package let hosts: [String]

    /// What was given on the command line.
    package struct Options: Sendable {
        package var addresses: [ListenAddress]
        package var tokenFile: String?
        package var hidesPaths: Bool
        package var hosts: [String]

        package init(
            addresses: [ListenAddress], tokenFile: String?, hidesPaths: Bool, hosts: [String]
        ) {
            self.addresses = addresses
            self.tokenFile = tokenFile
            self.hidesPaths = hidesPaths
            self.hosts = hosts
        }
    }

    /// Nil when the page is not served.
    package init?(checking options: Options) throws(ControlError) {
        if options.addresses.isEmpty {
            guard options.tokenFile == nil, !options.hidesPaths, options.hosts.isEmpty else {
                throw ControlError(
                    .invalid,
                    "--http-token-file, --http-hide-paths and --http-host go with --http, which says "
                        + "where the page is served")
            }
            return nil
        }
        for address in options.addresses {
            guard case .tcp = address else {
                throw ControlError(
                    .invalid,
                    "--http \(address): the page is served on tcp:HOST:PORT; on a Unix socket the "
                        + "control socket answers already")
            }
        }
        for host in options.hosts {
            guard !host.isEmpty, !host.contains(where: { "/:@ ".contains($0) }) else {
                throw ControlError(
                    .invalid, "--http-host \"\(host)\": give the name of a host, without a port")
            }
        }
        addresses = options.addresses
        tokenFile = options.tokenFile
        hidesPaths = options.hidesPaths
        hosts = options.hosts.map { $0.lowercased() }
    }

    /// Why the page is not served beyond loopback; nil: it is.
    func exposureRefusal(
        _ encryption: EncryptionSettings?
    ) -> @Sendable (String) -> String? {
        let missing: String?
        switch encryption?.credentials {
        case .certificate: missing = tokenFile == nil ? "a token, --http-token-file" : nil
        case nil, .preSharedKeys:
            missing =
                "a certificate, --tls-cert and --tls-key"
                + (tokenFile == nil ? ", and a token, --http-token-file" : "")
        }
        return { address in
            missing.map {
                "HTTP address \(address) is not a loopback address; served there, the page needs \($0)"
            }
        }
    }

    /// What would keep the page from being served, one sentence each. Blocks.
    package func problems(_ encryption: EncryptionSettings?) -> [String] {
        let refusal = exposureRefusal(encryption)
        var problems = addresses.compactMap { address -> String? in
            guard case .tcp(let host, let port) = address else { return nil }
            do throws(TCPListenError) {
                let isPrivate = try TCPSocket.resolving(host, port) {
                    TCPSocket.isLoopback($0.pointee.ai_addr)
                }
                return isPrivate ? nil : refusal("\(address)")
            } catch { return "HTTP address \(error)" }
        }
        do throws(ControlError) { _ = try token() } catch { problems.append(error.message) }
        return problems
    }

    /// Reads the token. Blocks.
    func token() throws(ControlError) -> AccessToken? {
        guard let tokenFile else { return nil }
        do throws(EncryptionError) {
            return try AccessToken(contentsOf: tokenFile)
        } catch {
            throw ControlError(
                error.kind == .invalid ? .invalid : .failed, "--http-token-file: \(error)")
        }
    }

    /// Opens the listening sockets. Blocks: host names are looked up.
    func listen(_ encryption: EncryptionSettings?) throws(ControlError) -> [Int32] {
        let refusal = exposureRefusal(encryption)
        var descriptors: [Int32] = []
        for address in addresses {
            guard case .tcp(let host, let port) = address else { continue }
            do throws(TCPListenError) {
                descriptors.append(
                    try TCPSocket.listen(host, port, backlog: PageLimits.backlog, refusal: refusal))
            } catch {
                for descriptor in descriptors { close(descriptor) }
                switch error {
                case .busy: throw ControlError(.busy, "HTTP address \(error)")
                case .refused(let message): throw ControlError(.invalid, message)
                case .unknown: throw ControlError(.invalid, "HTTP address \(error)")
                case .failed: throw ControlError(.failed, "HTTP address \(error)")
                }
            }
        }
        return descriptors
    }
}

/// Bounds of the page's listeners. Those of requests are as on the control socket.
package enum PageLimits {
    static let backlog: Int32 = 64
    /// Connections at once, and of these from one address; others are closed at once, so that
    /// clients that hold connections do not block others for long.
    static let connectionsMax = 128
    static let connectionsPerAddressMax = 64
    /// Of these, those that wait for events.
    package static let followersMax = 48
    /// Time for a request to arrive as a whole, TLS included, and for a client to take what it
    /// asked for.
    static let requestSeconds: Int64 = 10
    static let takingSeconds: Int64 = 20
    /// Time for a request on average, and how much of it idle clients can save up: 200 requests a
    /// second, and as many at once.
    static let turn = Duration.milliseconds(5)
    static let burst = Duration.seconds(1)
    /// Most questions that wait to walk a change map, and how long the next one waits after an answer,
    /// as a multiple of the time that the answer took.
    static let walksMax = 32
    static let restPerWalk = 30
    /// Browsers that are logged in, and for how long.
    static let sessionsMax = 256
    static let sessionTime = Duration.seconds(12 * 3600)
    /// Wait after a wrong token, and how many may wait.
    static let wrongTokenDelay = Duration.seconds(1)
    static let wrongTokensMax = 8
}
