internal import Glibc
package import Hummingbird
internal import HummingbirdCore
internal import Logging
internal import NIOCore
internal import NIOExtras
internal import NIOPosix
internal import ServiceLifecycle

// HTTP on a socket that listens already, our own or a passed one. Hummingbird's `Application` binds
// an address by itself and takes no socket, so its channel and its router meet here instead.
//
// Invariants
// - The descriptor belongs to the listener from `run` on, which closes it; its name is not touched.
// - At a graceful stop no connection is accepted any more, idle ones close, requests under way are
//   answered; then `run` returns.

/// What keeps the clients of a listener in bounds.
struct ListenerBounds: Sendable {
    /// Of the listening channel: admits connections.
    let admission: @Sendable () -> any ChannelHandler
    /// The first of each connection's pipeline, TLS, if there is any.
    var security: (@Sendable () -> any ChannelHandler)?
    /// Behind the HTTP codec of each connection.
    var timeoutHandlers: @Sendable () -> [any RemovableChannelHandler] = { [] }

    /// Those of the control socket: connections that are too many wait.
    static func control(logger: Logger) -> ListenerBounds {
        ListenerBounds(admission: {
            AvailableConnectionsChannelHandler(
                delegate: MaximumAvailableConnections(
                    ControlLimits.connectionsMax, logger: logger))
        })
    }
}

/// Leads the connections of one socket to the routes.
package struct ControlListener<Responder: HTTPResponder>: Sendable
where Responder.Context == ControlContext {
    /// What it is called in messages.
    let name: String
    let responder: Responder
    let logger: Logger
    let bounds: ListenerBounds

    /// Serves until a graceful stop. `whenRunning` is called when connections are accepted, unless
    /// the stop has come first.
    package func run(on socket: Int32, whenRunning: @Sendable () async -> Void) async throws {
        let http = channel()
        let group = MultiThreadedEventLoopGroup.singleton
        let quiescing = ServerQuiescingHelper(group: group)
        let (name, logger, bounds) = (name, logger, bounds)
        let server = try await ServerBootstrap(group: group)
            .serverChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    let handlers = channel.pipeline.syncOperations
                    try handlers.addHandler(bounds.admission())
                    try handlers.addHandler(quiescing.makeServerChannelHandler(channel: channel))
                }
            }
            // A client that has sent all it wants to send still reads its answer.
            .childChannelOption(.allowRemoteHalfClosure, value: true)
            .bind(socket) { channel in
                guard let security = bounds.security else {
                    return http.setup(channel: channel, logger: logger)
                }
                return channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(security())
                }.flatMap { http.setup(channel: channel, logger: logger) }
            }
        await withGracefulShutdownHandler {
            if !Task.isShuttingDownGracefully { await whenRunning() }
            await withDiscardingTaskGroup { group in
                do {
                    try await server.executeThenClose { connections in
                        for try await connection in connections {
                            group.addTask { await http.handle(value: connection, logger: logger) }
                        }
                    }
                } catch {
                    // The end of the task, when something else has failed, ends it like this too.
                    if !Task.isCancelled {
                        logger.error("\(name) accepts no connections: \(error)")
                    }
                }
            }
        } onGracefulShutdown: {
            quiescing.initiateShutdown(promise: nil)
        }
    }

    private func channel() -> HTTP1Channel {
        let limits = HTTP1Channel.Configuration.DecoderConfiguration(
            maxHeaderFieldSize: ControlLimits.headByteCountMax,
            maxHeaderListSize: ControlLimits.headByteCountMax, maxHeaderFieldCount: 100)
        return HTTP1Channel(
            responder: { request, writer, channel in
                try await respond(to: request, writer, channel)
            },
            configuration: .init(
                additionalChannelHandlers: bounds.timeoutHandlers(),
                idleTimeout: .seconds(ControlLimits.idleSeconds),
                httpDecoderConfiguration: limits))
    }

    /// Errors of requests are documents already (`ErrorDocuments`); what is thrown here ends the
    /// connection.
    private func respond(
        to request: Request, _ writer: consuming ResponseWriter, _ channel: any Channel
    ) async throws {
        let source = ApplicationRequestContextSource(channel: channel, logger: logger)
        var response = try await responder.respond(
            to: request, context: ControlContext(source: source))
        response.headers[.date] = Self.date()
        try await writer.write(response: response.head, body: response.body)
    }

    /// The time of day as HTTP writes it.
    private static func date() -> String {
        var now = Glibc.time(nil)
        var parts = tm()
        gmtime_r(&now, &parts)
        var text = [UInt8](repeating: 0, count: 32)
        // The names are English: the program never leaves the C locale.
        let count = text.withUnsafeMutableBytes { bytes in
            // SAFETY: bytes and characters of C have the same layout.
            strftime(
                bytes.baseAddress?.assumingMemoryBound(to: CChar.self), bytes.count,
                "%a, %d %b %Y %H:%M:%S GMT", &parts)
        }
        return String(decoding: text[..<count], as: UTF8.self)
    }
}
