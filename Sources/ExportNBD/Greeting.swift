internal import BlockModel
internal import Glibc
internal import RingIO

/// A client in its handshake: carries bytes between the socket and `NBDNegotiation`, and hands the
/// connection on when an export is opened.
///
/// Invariants
/// - One operation is in the kernel at most.
/// - The descriptor is closed here, or handed on, once.
final class Greeting: RingHandler {
    private enum Tag {
        static let receive: UInt8 = 0
        static let send: UInt8 = 1
    }

    private unowned(unsafe) let loop: EventLoop
    private unowned(unsafe) let greeter: Greeter
    private let directory: any ExportDirectory
    let descriptor: Int32
    private var negotiation = NBDNegotiation()
    private var step = NBDNegotiation.Step.needMore
    private let message: UnsafeMutablePointer<msghdr>
    private let vector: UnsafeMutablePointer<iovec>
    private var sending: UnsafeMutableRawBufferPointer?
    private var sentByteCount = 0
    private var timer: TimerID?
    private var isEnding = false
    private var isWaitingForBuffer = false
    private var isFinished = false

    init(loop: EventLoop, greeter: Greeter, directory: any ExportDirectory, descriptor: Int32) {
        self.loop = loop
        self.greeter = greeter
        self.directory = directory
        self.descriptor = descriptor
        message = .allocate(capacity: 1)
        message.initialize(to: msghdr())
        vector = .allocate(capacity: 1)
        super.init()
    }

    deinit {
        message.deallocate()
        vector.deallocate()
        sending?.deallocate()
    }

    /// Begins; false when the loop is full.
    func start(limitNanoseconds: UInt64) -> Bool {
        guard loop.register(self) else { return false }
        timer = loop.schedule(after: limitNanoseconds, self, token: 0)
        proceed()
        return true
    }

    /// Ends the handshake at once.
    func breakOff() {
        guard !isEnding else { return }
        isEnding = true
        shutdown(descriptor, Int32(SHUT_RDWR))
        loop.callAtEndOfTurn(self)
    }

    override func completed(tag: UInt8, token: UInt32, result: Int32, flags: UInt32) {
        loop.callAtEndOfTurn(self)
        if tag == Tag.send { sent(result) } else { received(result, flags) }
    }

    override func timerFired(token: UInt32) {
        timer = nil
        breakOff()
    }

    override func roomMade() {
        guard !isFinished, isWaitingForBuffer else { return }
        isWaitingForBuffer = false
        loop.callAtEndOfTurn(self)
        if !isEnding { receive() }
    }

    override func turnEnded() {
        guard !isFinished, isEnding, operationsInFlight == 0 else { return }
        isFinished = true
        if let timer { loop.cancel(timer) }
        loop.remove(self)
        if case .opened(let session) = step, sending == nil {
            greeter.opened(self, session, rest: negotiation.rest)
        } else {
            close(descriptor)
            greeter.ended(self)
        }
    }

    private func proceed() {
        step = negotiation.advance(directory)
        guard negotiation.output.isEmpty else { return send() }
        act()
    }

    private func act() {
        switch step {
        case .needMore: receive()
        case .mustSend: proceed()
        case .opened, .closed:
            isEnding = true
            loop.callAtEndOfTurn(self)
        }
    }

    private func receive() {
        loop.receiveSelecting(self, tag: Tag.receive, token: 0, descriptor: descriptor)
    }

    private func received(_ result: Int32, _ flags: UInt32) {
        let buffer = ReceiveBuffers.buffer(in: flags)
        defer { if let buffer { loop.receiveBuffers.release(buffer) } }
        guard !isEnding else { return }
        switch result {
        case -ENOBUFS:
            isWaitingForBuffer = true
            loop.callWhenRoom(self)
        case -EINTR, -EAGAIN: receive()
        case 1...:
            guard let buffer else { return breakOff() }
            negotiation.append(
                UnsafeRawBufferPointer(
                    start: loop.receiveBuffers.address(of: buffer), count: Int(result)))
            proceed()
        default: breakOff()
        }
    }

    private func send() {
        let bytes = UnsafeMutableRawBufferPointer.allocate(
            byteCount: negotiation.output.count, alignment: 16)
        bytes.copyBytes(from: negotiation.output)
        negotiation.output.removeAll(keepingCapacity: false)
        sending = bytes
        sentByteCount = 0
        submitSend(bytes)
    }

    private func submitSend(_ bytes: UnsafeMutableRawBufferPointer) {
        guard let base = bytes.baseAddress else { return }
        vector.initialize(
            to: iovec(iov_base: base + sentByteCount, iov_len: bytes.count - sentByteCount))
        message.pointee.msg_iov = vector
        message.pointee.msg_iovlen = 1
        loop.send(
            self, tag: Tag.send, token: 0, descriptor: descriptor, message: message, waitAll: true)
    }

    private func sent(_ result: Int32) {
        guard let bytes = sending else { return }
        guard result > 0 || result == -EINTR || result == -EAGAIN else { return breakOff() }
        sentByteCount += Int(max(result, 0))
        guard !isEnding else { return }
        guard sentByteCount == bytes.count else { return submitSend(bytes) }
        bytes.deallocate()
        sending = nil
        act()
    }
}
