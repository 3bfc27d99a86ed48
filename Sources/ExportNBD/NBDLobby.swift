internal import CLinux
internal import Glibc
internal import RingIO

// Listeners and handshakes, on the first loop. Nothing here is fast; everything is bounded.

/// Accepts connections and leads them to their export.
final class NBDLobby {
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
    func open(_ sockets: [Int32]) -> Bool {
        for socket in sockets {
            let listener = NBDListener(socket: socket, lobby: self)
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

    func accepted(_ socket: Int32) {
        guard !isClosed, server.connectionOpened() else {
            Glibc.close(socket)
            return
        }
        NBDSocket.tune(socket)
        let handshake = NBDHandshake(socket: socket, lobby: self)
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

/// A listening socket on its loop.
final class NBDListener: RingHandler {
    private let socket: Int32
    private let lobby: NBDLobby
    private var isClosing = false
    private var timer: TimerID?

    /// Pause after the process ran out of descriptors: nothing tells when there is one again.
    private static let pauseNanoseconds: UInt64 = 100_000_000

    init(socket: Int32, lobby: NBDLobby) {
        self.socket = socket
        self.lobby = lobby
        super.init()
    }

    func open() -> Bool {
        guard lobby.loop.register(self) else { return false }
        accept()
        return true
    }

    private func accept() {
        lobby.loop.accept(self, tag: 0, token: 0, descriptor: socket)
    }

    func close() {
        guard !isClosing else { return }
        isClosing = true
        if !isRegistered {
            Glibc.close(socket)
        } else if operationsInFlight > 0 {
            lobby.loop.cancel(self, targetTag: 0, targetToken: 0, tag: 1, token: 0)
        } else {
            lobby.loop.callAtEndOfTurn(self)
        }
    }

    override func completed(tag: UInt8, token: UInt32, result: Int32, flags: UInt32) {
        if tag == 0, result >= 0 { lobby.accepted(result) }
        if isClosing {
            if operationsInFlight == 0 { lobby.loop.callAtEndOfTurn(self) }
            return
        }
        guard tag == 0 else { return }
        if result == -EMFILE || result == -ENFILE || result == -ENOMEM || result == -ENOBUFS {
            timer = lobby.loop.schedule(after: Self.pauseNanoseconds, self, token: 0)
        } else {
            accept()
        }
    }

    override func timerFired(token: UInt32) {
        timer = nil
        if !isClosing { accept() }
    }

    override func turnEnded() {
        if let timer { lobby.loop.cancel(timer) }
        lobby.loop.remove(self)
        Glibc.close(socket)
    }
}

/// A connection that negotiates.
final class NBDHandshake: RingHandler {
    private enum Step: UInt8 {
        case receive
        case send
    }

    private enum Phase {
        case negotiating
        /// The last bytes go out, then the export serves the socket.
        case opening(NBDNegotiation.Opening)
        /// The last bytes go out, then the socket is closed.
        case closing
        case ended
    }

    private let socket: Int32
    private let lobby: NBDLobby
    private var negotiation: NBDNegotiation
    private var phase = Phase.negotiating
    private var timer: TimerID?
    private let vector: UnsafeMutablePointer<iovec>
    private let message: UnsafeMutablePointer<msghdr>
    private var outputCapacity = 4096
    private var outputBuffer: UnsafeMutableRawPointer

    init(socket: Int32, lobby: NBDLobby) {
        self.socket = socket
        self.lobby = lobby
        negotiation = NBDNegotiation(directory: lobby.server.directory)
        outputBuffer = .allocate(byteCount: outputCapacity, alignment: 16)
        vector = .allocate(capacity: 1)
        vector.initialize(to: iovec())
        message = .allocate(capacity: 1)
        message.initialize(to: msghdr())
        super.init()
    }

    deinit {
        outputBuffer.deallocate()
        vector.deallocate()
        message.deallocate()
    }

    func open() -> Bool {
        guard lobby.loop.register(self) else { return false }
        timer = lobby.loop.schedule(
            after: lobby.server.configuration.handshakeNanoseconds, self, token: 0)
        sendOutput()
        return true
    }

    /// Ends the handshake without another word.
    func end() {
        switch phase {
        case .ended: return
        case .negotiating, .opening, .closing: break
        }
        phase = .ended
        shutdown(socket, Int32(SHUT_RDWR))
        if operationsInFlight == 0 { lobby.loop.callAtEndOfTurn(self) }
    }

    override func timerFired(token: UInt32) {
        timer = nil
        end()
    }

    override func completed(tag: UInt8, token: UInt32, result: Int32, flags: UInt32) {
        let buffer = ReceiveBuffers.buffer(in: flags)
        defer { if let buffer { lobby.loop.receiveBuffers.release(buffer) } }
        if case .ended = phase {
            if operationsInFlight == 0 { lobby.loop.callAtEndOfTurn(self) }
            return
        }
        switch Step(rawValue: tag) {
        case .receive:
            if result > 0, let buffer {
                let address = lobby.loop.receiveBuffers.address(of: buffer)
                advance(UnsafeRawBufferPointer(start: address, count: Int(result)))
            } else if result == -ENOBUFS {
                lobby.loop.callWhenRoom(self)
            } else if result == -EINTR || result == -EAGAIN {
                receive()
            } else {
                end()
            }
        case .send: sent(result)
        case nil: preconditionFailure("a completion of an unknown step")
        }
    }

    override func roomMade() {
        if case .negotiating = phase { receive() }
    }

    private func receive() {
        lobby.loop.receiveSelecting(
            self, tag: Step.receive.rawValue, token: 0, descriptor: socket)
    }

    private func advance(_ bytes: UnsafeRawBufferPointer) {
        switch negotiation.received(bytes) {
        case .more: break
        case .opened(let opening): phase = .opening(opening)
        case .closed: phase = .closing
        }
        sendOutput()
    }

    private func sendOutput() {
        let bytes = negotiation.takeOutput()
        guard !bytes.isEmpty else { return allSent() }
        if bytes.count > outputCapacity {
            outputBuffer.deallocate()
            outputCapacity = bytes.count
            outputBuffer = .allocate(byteCount: outputCapacity, alignment: 16)
        }
        outputBuffer.copyMemory(from: bytes, byteCount: bytes.count)
        vector.pointee = iovec(iov_base: outputBuffer, iov_len: bytes.count)
        sendRest()
    }

    private func sendRest() {
        message.pointee.msg_iov = vector
        message.pointee.msg_iovlen = 1
        lobby.loop.send(
            self, tag: Step.send.rawValue, token: 0, descriptor: socket, message: message,
            waitAll: false)
    }

    private func sent(_ result: Int32) {
        if result < 0, result != -EINTR, result != -EAGAIN { return end() }
        let count = Int(max(result, 0))
        vector.pointee.iov_base += count
        vector.pointee.iov_len -= count
        if vector.pointee.iov_len > 0 { return sendRest() }
        if case .negotiating = phase {
            // What came in together with the last option waits in the state machine.
            return advance(UnsafeRawBufferPointer(start: nil, count: 0))
        }
        allSent()
    }

    private func allSent() {
        switch phase {
        case .negotiating: receive()
        case .opening, .closing: lobby.loop.callAtEndOfTurn(self)
        case .ended: break
        }
    }

    override func turnEnded() {
        if let timer { lobby.loop.cancel(timer) }
        lobby.loop.remove(self)
        lobby.ended(self)
        if case .opening(let opening) = phase {
            lobby.server.handOver(opening, socket: socket, input: negotiation.remainingInput)
        } else {
            close(socket)
            lobby.server.connectionClosed()
        }
        phase = .ended
    }
}
