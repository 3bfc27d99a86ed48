/// TLS for the connections of a server.
package struct NBDEncryption: Sendable {
    /// What clients over TCP get without TLS.
    package enum Mode: Sendable {
        /// Everything, but they may ask for TLS.
        case offered
        /// Nothing.
        case required
    }

    package var mode: Mode
    package var gateway: any SocketEncryption

    package init(mode: Mode, gateway: any SocketEncryption) {
        self.mode = mode
        self.gateway = gateway
    }
}

/// Ends TLS for a connection: see `relay`.
package protocol SocketEncryption: AnyObject, Sendable {
    /// Takes over a connected `socket` on which a client is about to begin a TLS handshake, and
    /// `plain`, one end of a socket pair whose other end gets the plain text. `ended` is called
    /// once, when both are closed.
    func relay(socket: Int32, plain: Int32, ended: @escaping @Sendable () -> Void)
}

/// Whether a connection is encrypted, and whether it may and must be.
enum NBDSecurity {
    case unavailable
    case offered
    case required
    case established
}
