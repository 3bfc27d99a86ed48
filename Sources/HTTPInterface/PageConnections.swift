internal import NIOCore
internal import NIOHTTPTypes

// Bounds of connections to the page: how many there are, and how long they may take.
//
// Invariants
// - One that is too many is closed at once, before anything is read from it: those who hold
//   connections and say nothing block other clients no longer than a request may take.
// - A connection without a request under way ends at the idle limit (HTTP1Channel), one whose
//   request does not arrive, or whose client does not take its answer, at the limits here.

/// Admits so many connections, and so many of one address. On the listening channel.
final class PageAdmission: ChannelInboundHandler {
    typealias InboundIn = any Channel
    typealias InboundOut = any Channel

    private var count = 0
    private var countByAddress: [String: Int] = [:]

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        let connection = unwrapInboundIn(data)
        let address = connection.remoteAddress?.ipAddress ?? ""
        guard count < PageLimits.connectionsMax,
            countByAddress[address, default: 0] < PageLimits.connectionsPerAddressMax
        else {
            connection.close(promise: nil)
            return
        }
        count += 1
        countByAddress[address, default: 0] += 1
        let admission = NIOLoopBound(self, eventLoop: context.eventLoop)
        connection.closeFuture.hop(to: context.eventLoop).whenComplete { _ in
            admission.value.ended(address)
        }
        context.fireChannelRead(data)
    }

    private func ended(_ address: String) {
        count -= 1
        let left = countByAddress[address, default: 1] - 1
        countByAddress[address] = left > 0 ? left : nil
    }
}

/// Closes a connection whose client is too slow; see the head of this file.
final class PageTimeouts: ChannelInboundHandler, RemovableChannelHandler {
    typealias InboundIn = HTTPRequestPart
    typealias InboundOut = HTTPRequestPart

    private var requestLimit: Scheduled<Void>?
    private var takingLimit: Scheduled<Void>?

    func handlerAdded(context: ChannelHandlerContext) { expectRequest(context) }

    func handlerRemoved(context: ChannelHandlerContext) {
        requestLimit?.cancel()
        takingLimit?.cancel()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        switch unwrapInboundIn(data) {
        case .head: if requestLimit == nil { expectRequest(context) }
        case .body: break
        case .end:
            requestLimit?.cancel()
            requestLimit = nil
        }
        context.fireChannelRead(data)
    }

    func channelWritabilityChanged(context: ChannelHandlerContext) {
        takingLimit?.cancel()
        takingLimit =
            context.channel.isWritable ? nil : close(context, in: PageLimits.takingSeconds)
        context.fireChannelWritabilityChanged()
    }

    private func expectRequest(_ context: ChannelHandlerContext) {
        requestLimit = close(context, in: PageLimits.requestSeconds)
    }

    private func close(_ context: ChannelHandlerContext, in seconds: Int64) -> Scheduled<Void> {
        let channel = context.channel
        return context.eventLoop.scheduleTask(in: .seconds(seconds)) {
            channel.close(promise: nil)
        }
    }
}
