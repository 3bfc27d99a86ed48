internal import Synchronization

/// An accepted connection, counted by its server until all who hold a socket of it have closed it:
/// the handshake or session and, under TLS, the relay.
final class NBDConnection: Sendable {
    private let server: NBDServer
    private let holderCount = Atomic<Int>(1)

    init(of server: NBDServer) { self.server = server }

    /// One more holds a socket.
    func held() { holderCount.add(1, ordering: .relaxed) }

    /// One who held a socket has closed it.
    func released() {
        let count = holderCount.subtract(1, ordering: .acquiringAndReleasing).newValue
        precondition(count >= 0, "a connection is released once by each who holds it")
        if count == 0 { server.connectionClosed() }
    }
}
