internal import NIOCore
internal import NIOPosix
internal import NIOSSL
internal import Synchronization

/// Ends TLS for connections that are served elsewhere, on event loops of its own: what comes in
/// encrypted on one socket continues in plain text on another, and back.
package final class TLSGateway: Sendable {
    private let context: NIOSSLContext
    private let group: MultiThreadedEventLoopGroup
    private let report: @Sendable (String) -> Void

    /// Time for a client to answer our good-bye before its connection is cut.
    private static let goodbye = TimeAmount.seconds(5)

    /// Loads the credentials and starts `threadCount` event loops. `report` is told why
    /// connections failed, without text from the client.
    package init(
        _ credentials: TLSCredentials, threadCount: Int,
        report: @escaping @Sendable (String) -> Void
    ) throws(EncryptionError) {
        context = try credentials.context()
        group = MultiThreadedEventLoopGroup(numberOfThreads: threadCount)
        self.report = report
    }

    /// Ends the event loops; all connections must have ended.
    package func close() async {
        // It fails only when done twice.
        try? await group.shutdownGracefully()
    }

    /// Takes over a connected `socket` on which a client is about to begin a TLS handshake, and
    /// `plain`, one end of a socket pair whose other end gets the plain text. `ended` is called
    /// once, when both are closed.
    package func relay(
        socket: Int32, plain: Int32, ended: @escaping @Sendable () -> Void
    ) {
        let loop = group.next()
        let context = context
        let report = report
        loop.execute {
            Self.relay(
                socket, plain, on: loop, report, ended
            ) { channel in
                try channel.pipeline.syncOperations.addHandler(
                    NIOSSLServerHandler(context: context))
            }
        }
    }

    /// Makes a relay of the two sockets; `addTLS` adds what speaks TLS to the first one. Called on
    /// the loop.
    static func relay(
        _ socket: Int32, _ plain: Int32, on loop: any EventLoop,
        _ report: @escaping @Sendable (String) -> Void,
        _ ended: @escaping @Sendable () -> Void,
        _ addTLS: @escaping @Sendable (any Channel) throws -> Void
    ) {
        let secureSide = TLSRelaySide { error in
            if let reason = reason(of: error) { report(reason) }
        }
        let plainSide = TLSRelaySide { _ in }
        let sides = NIOLoopBound((secureSide, plainSide), eventLoop: loop)
        let secured = adopt(socket, on: loop) { channel in
            try addTLS(channel)
            try channel.pipeline.syncOperations.addHandler(sides.value.0)
        }
        let plained = adopt(plain, on: loop) { channel in
            try channel.pipeline.syncOperations.addHandler(sides.value.1)
        }
        secured.and(plained).whenComplete { result in
            switch result {
            case .success(let (secure, plain)):
                secure.closeFuture.and(plain.closeFuture).whenComplete { _ in ended() }
                TLSRelaySide.join(sides.value.0, sides.value.1)
            case .failure:
                // One of the two was gone before it was looked at; the other follows.
                let closings = [secured, plained].map { opened in
                    opened.flatMap { $0.close() }.flatMapError { _ in loop.makeSucceededVoidFuture()
                    }
                }
                EventLoopFuture.andAllComplete(closings, on: loop).whenComplete { _ in ended() }
            }
        }
    }

    private static func adopt(
        _ socket: Int32, on loop: any EventLoop,
        _ prepare: @escaping @Sendable (any Channel) throws -> Void
    ) -> EventLoopFuture<any Channel> {
        ClientBootstrap(group: loop)
            .channelOption(.autoRead, value: false)
            .channelOption(.writeBufferWaterMark, value: TLSRelaySide.watermarks)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture { try prepare(channel) }
            }
            .withConnectedSocket(socket)
    }

    /// Why a connection failed; nil when it only ended.
    private static func reason(of error: any Error) -> String? {
        switch error {
        case NIOSSLError.handshakeFailed(let cause): "TLS handshake failed: \(cause)"
        case NIOSSLError.uncleanShutdown, is ChannelError, is IOError: nil
        default: "TLS connection failed: \(error)"
        }
    }
}
