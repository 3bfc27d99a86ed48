internal import CLinux
internal import Glibc
internal import RingIO

/// A listening socket on its loop.
final class NBDListener: RingHandler {
    private let socket: Int32
    private let security: NBDSecurity
    private let acceptor: NBDAcceptor
    private var isClosing = false
    private var timer: TimerID?

    /// Pause after the process ran out of descriptors: nothing tells when there is one again.
    private static let pauseNanoseconds: UInt64 = 100_000_000

    init(_ socket: NBDListeningSocket, acceptor: NBDAcceptor) {
        self.socket = socket.descriptor
        security = socket.security
        self.acceptor = acceptor
        super.init()
    }

    func open() -> Bool {
        guard acceptor.loop.register(self) else { return false }
        accept()
        return true
    }

    private func accept() {
        acceptor.loop.accept(self, tag: 0, token: 0, descriptor: socket)
    }

    func close() {
        guard !isClosing else { return }
        isClosing = true
        if !isRegistered {
            Glibc.close(socket)
        } else if operationsInFlight > 0 {
            acceptor.loop.cancel(self, targetTag: 0, targetToken: 0, tag: 1, token: 0)
        } else {
            acceptor.loop.callAtEndOfTurn(self)
        }
    }

    override func completed(tag: UInt8, token: UInt32, result: Int32, flags: UInt32) {
        if tag == 0, result >= 0 { acceptor.accepted(result, security) }
        if isClosing {
            if operationsInFlight == 0 { acceptor.loop.callAtEndOfTurn(self) }
            return
        }
        guard tag == 0 else { return }
        if result == -EMFILE || result == -ENFILE || result == -ENOMEM || result == -ENOBUFS {
            timer = acceptor.loop.schedule(after: Self.pauseNanoseconds, self, token: 0)
        } else {
            accept()
        }
    }

    override func timerFired(token: UInt32) {
        timer = nil
        if !isClosing { accept() }
    }

    override func turnEnded() {
        if let timer { acceptor.loop.cancel(timer) }
        acceptor.loop.remove(self)
        Glibc.close(socket)
    }
}
