internal import NIOCore
internal import NIOSSL

// Between a client that speaks TLS and a connection that knows nothing of it:
//
//   client ──TCP──► NIOSSLServerHandler ──► secure side │ plain side ──socket pair──► connection
//
// A side reads only while the other one takes: what is not yet taken stays with the peer, in the
// kernel's buffers of the two sockets, so the connection's limits (requests unanswered, time
// without progress) hold for a client behind TLS as for any other.
//
// Invariants
// - Both sides live on one event loop.
// - A side holds at most `highWatermark` bytes beyond what one turn of reading brings.
// - When one side ends, so does the other; the secure one says good-bye first, for a limited time.

/// One side of a relay: hands on what it reads, and reads when that is taken.
final class TLSRelaySide: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    static let watermarks = ChannelOptions.Types.WriteBufferWaterMark(low: 65_536, high: 262_144)

    private var context: ChannelHandlerContext?
    private var other: TLSRelaySide?
    /// Nothing was asked of the channel since the last read ended.
    private var isResting = true
    private let failed: (any Error) -> Void

    init(failed: @escaping (any Error) -> Void) { self.failed = failed }

    /// Makes two sides, both on their channels, into a relay, and starts it.
    static func join(_ one: TLSRelaySide, _ two: TLSRelaySide) {
        one.other = two
        two.other = one
        one.readIfTaken()
        two.readIfTaken()
    }

    func handlerAdded(context: ChannelHandlerContext) { self.context = context }

    func handlerRemoved(context: ChannelHandlerContext) {
        self.context = nil
        other = nil
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        other?.write(unwrapInboundIn(data))
    }

    func channelReadComplete(context: ChannelHandlerContext) {
        isResting = true
        other?.context?.flush()
        readIfTaken()
    }

    func channelWritabilityChanged(context: ChannelHandlerContext) {
        if context.channel.isWritable { other?.readIfTaken() }
    }

    func channelInactive(context: ChannelHandlerContext) { other?.close() }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        failed(error)
        other?.close()
        close()
    }

    private func readIfTaken() {
        guard isResting, let context, let taker = other?.context, taker.channel.isWritable else {
            return
        }
        isResting = false
        context.read()
    }

    private func write(_ bytes: ByteBuffer) {
        // A failed write ends the channel, and that is how we hear of it.
        context?.write(wrapOutboundOut(bytes), promise: nil)
    }

    /// Ends the channel; TLS flushes what was written and says good-bye first.
    private func close() { context?.close(promise: nil) }
}
