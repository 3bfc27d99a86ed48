/// Why addresses beyond loopback are refused: any host that reaches them could read and write.
package enum NBDExposureRefusal: Sendable {
    /// Nothing is encrypted, and no client is asked who it is.
    case withoutTLS
    /// A certificate proves the service to its clients, and no client is asked for one.
    case anyClient

    /// For people.
    func message(of address: String) -> String {
        let reason =
            switch self {
            case .withoutTLS:
                "without TLS everyone on the network can read and write; give --tls-cert, "
                    + "--tls-key and --tls-ca, or --tls-psk, or --allow-plaintext if everyone may"
            case .anyClient:
                "--tls-cert alone proves the service to its clients and lets every client read and "
                    + "write; give --tls-ca to ask clients for certificates, use --tls-psk instead, "
                    + "or give --tls-anyone if everyone may"
            }
        return "NBD address \(address) is not a loopback address, and \(reason)"
    }
}

extension NBDServer {
    /// Why the server would refuse to listen there, before anything is opened; nil when it would
    /// try. Blocks: a host name is looked up.
    package static func listenProblem(_ endpoint: NBDEndpoint, _ refusal: NBDExposureRefusal?)
        -> String?
    {
        guard case .tcp(let host, let port) = endpoint else { return nil }
        do throws(TCPListenError) {
            let isPrivate = try TCPSocket.resolving(host, port) {
                TCPSocket.isLoopback($0.pointee.ai_addr)
            }
            return isPrivate ? nil : refusal?.message(of: "tcp:\(host):\(port)")
        } catch { return "NBD address \(error)" }
    }
}
