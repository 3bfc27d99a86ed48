internal import Glibc
internal import RingIO

// Listeners and handshakes, on the first loop. Nothing here is fast; everything is bounded.

/// Accepts connections and leads them to their export.
final class NBDAcceptor {
    let server: NBDServer
    let loop: EventLoop
    private var listeners: [NBDListener] = []
    /// Handshakes, the oldest first.
    private var handshakes: [NBDHandshake] = []
    private var isClosed = false

    init(server: NBDServer, loop: EventLoop) {
        self.server = server
        self.loop = loop
    }

    /// Listens on open sockets; false, with all of them closed, when the loop is full.
    func open(_ sockets: [NBDListeningSocket]) -> Bool {
        for socket in sockets {
            let listener = NBDListener(socket, acceptor: self)
            listeners.append(listener)
        }
        for listener in listeners where !listener.open() {
            close()
            return false
        }
        return true
    }

    /// Closes the listeners and all handshakes.
    func close() {
        isClosed = true
        for listener in listeners { listener.close() }
        listeners = []
        for handshake in handshakes { handshake.end() }
    }

    func accepted(_ socket: Int32, _ security: NBDSecurity) {
        guard !isClosed, server.connectionOpened() else {
            Glibc.close(socket)
            return
        }
        NBDSocket.tune(socket)
        let handshake = NBDHandshake(socket: socket, security: security, acceptor: self)
        guard handshake.open() else {
            Glibc.close(socket)
            server.connectionClosed()
            return
        }
        handshakes.append(handshake)
        if handshakes.count > server.configuration.handshakeCountMax { handshakes[0].end() }
    }

    func ended(_ handshake: NBDHandshake) { handshakes.removeAll { $0 === handshake } }
}
