internal import Glibc

extension NBDServer {
    /// Why the server would refuse to listen there, before anything is opened; nil when it would
    /// try. Blocks: a host name is looked up.
    package static func whyNot(_ endpoint: NBDEndpoint, allowsPlaintext: Bool) -> String? {
        guard case .tcp(let host, let port) = endpoint else { return nil }
        var hints = addrinfo()
        hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var found: UnsafeMutablePointer<addrinfo>?
        let result = getaddrinfo(host, String(port), &hints, &found)
        guard result == 0, let first = found else {
            return "NBD address tcp:\(host):\(port): \(String(cString: gai_strerror(result)))"
        }
        defer { freeaddrinfo(found) }
        guard allowsPlaintext || NBDSocket.isLoopback(first.pointee.ai_addr) else {
            return "NBD address tcp:\(host):\(port) is not a loopback address; use "
                + "allow-plaintext if everyone on the network may read and write"
        }
        return nil
    }
}
