internal import CLinux
internal import Glibc
internal import RingIO

/// A connection that negotiates.
final class NBDHandshake: RingHandler {
    private enum Step: UInt8 {
        case receive
        case send
    }

    private enum Phase {
        case negotiating
        /// The last bytes in plain text go out, then the negotiation starts over under TLS.
        case securing
        /// The last bytes go out, then the export serves the socket.
        case opening(NBDNegotiation.Opening)
        /// The last bytes go out, then the socket is closed.
        case closing
        case ended
    }

    private let connection: NBDConnection
    /// The client's, or under TLS the one where its plain text is.
    private var socket: Int32
    private let acceptor: NBDAcceptor
    private var negotiation: NBDNegotiation
    private var phase = Phase.negotiating
    private var timer: TimerID?
    private let vector: UnsafeMutablePointer<iovec>
    private let message: UnsafeMutablePointer<msghdr>
    private var outputCapacity = 4096
    private var outputBuffer: UnsafeMutableRawPointer

    init(socket: Int32, security: NBDSecurity, acceptor: NBDAcceptor) {
        connection = NBDConnection(of: acceptor.server)
        self.socket = socket
        self.acceptor = acceptor
        negotiation = NBDNegotiation(directory: acceptor.server.directory, security: security)
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
        guard acceptor.loop.register(self) else { return false }
        timer = acceptor.loop.schedule(
            after: acceptor.server.configuration.handshakeNanoseconds, self, token: 0)
        sendOutput()
        return true
    }

    /// Ends the handshake without another word.
    func end() {
        switch phase {
        case .ended: return
        case .negotiating, .securing, .opening, .closing: break
        }
        phase = .ended
        shutdown(socket, Int32(SHUT_RDWR))
        if operationsInFlight == 0 { acceptor.loop.callAtEndOfTurn(self) }
    }

    override func timerFired(token: UInt32) {
        timer = nil
        end()
    }

    override func completed(tag: UInt8, token: UInt32, result: Int32, flags: UInt32) {
        let buffer = ReceiveBuffers.buffer(in: flags)
        defer { if let buffer { acceptor.loop.receiveBuffers.release(buffer) } }
        if case .ended = phase {
            if operationsInFlight == 0 { acceptor.loop.callAtEndOfTurn(self) }
            return
        }
        switch Step(rawValue: tag) {
        case .receive:
            if result > 0, let buffer {
                let address = acceptor.loop.receiveBuffers.address(of: buffer)
                advance(UnsafeRawBufferPointer(start: address, count: Int(result)))
            } else if result == -ENOBUFS {
                acceptor.loop.callWhenRoom(self)
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
        acceptor.loop.receiveSelecting(
            self, tag: Step.receive.rawValue, token: 0, descriptor: socket)
    }

    private func advance(_ bytes: UnsafeRawBufferPointer) {
        switch negotiation.received(bytes) {
        case .more: break
        case .opened(let opening): phase = .opening(opening)
        case .secured: phase = .securing
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
        acceptor.loop.send(
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
        case .securing: secure()
        case .opening, .closing: acceptor.loop.callAtEndOfTurn(self)
        case .ended: break
        }
    }

    /// Continues under TLS, with the time that is left.
    private func secure() {
        guard let plain = acceptor.server.encrypt(socket, of: connection) else { return end() }
        socket = plain
        negotiation = NBDNegotiation(under: negotiation)
        phase = .negotiating
        receive()
    }

    override func turnEnded() {
        if let timer { acceptor.loop.cancel(timer) }
        acceptor.loop.remove(self)
        acceptor.ended(self)
        if case .opening(let opening) = phase {
            acceptor.server.handOver(
                opening, socket: socket, input: negotiation.remainingInput, of: connection)
        } else {
            close(socket)
            connection.released()
        }
        phase = .ended
    }
}
