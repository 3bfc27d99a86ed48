internal import NIOCore
internal import NIOHTTP1
internal import NIOPosix
internal import Synchronization

/// An HTTP/1.1 exchange with the service over its control socket: one request on a connection of
/// its own, and the answer as it comes.
enum ControlConnection {
    /// Why an exchange ended without a complete answer.
    enum Failure: Error {
        /// The time limit passed.
        case deadlineExceeded
        /// The service closed the connection before its answer was complete.
        case ended
        /// The answer is larger than the caller takes.
        case tooLarge
    }

    private typealias Channel = NIOAsyncChannel<HTTPClientResponsePart, HTTPClientRequestPart>

    private final class Deadline: Sendable {
        let hasPassed = Atomic(false)
    }

    /// Sends a request to the socket at `path` and calls `take` with the head of the answer and
    /// what follows. `timeLimit` bounds the whole exchange; nil: no limit.
    static func exchange<Value>(
        _ path: String, _ request: ControlRequest, timeLimit: TimeAmount?,
        _ take: (HTTPResponseHead, inout ControlAnswer) async throws -> Value
    ) async throws -> Value {
        let channel = try await ClientBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .connect(unixDomainSocketPath: path) { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHTTPClientHandlers()
                    return try Channel(wrappingChannelSynchronously: channel)
                }
            }
        let deadline = Deadline()
        let timer = timeLimit.map { limit in
            channel.channel.eventLoop.scheduleTask(in: limit) {
                deadline.hasPassed.store(true, ordering: .relaxed)
                channel.channel.close(promise: nil)
            }
        }
        defer { timer?.cancel() }
        do {
            return try await channel.executeThenClose { inbound, outbound in
                try await send(request, to: outbound)
                var answer = ControlAnswer(parts: inbound.makeAsyncIterator())
                let head = try await answer.head()
                return try await take(head, &answer)
            }
        } catch let error where deadline.hasPassed.load(ordering: .relaxed) {
            _ = error
            throw Failure.deadlineExceeded
        }
    }

    private static func send(
        _ request: ControlRequest, to outbound: NIOAsyncChannelOutboundWriter<HTTPClientRequestPart>
    ) async throws {
        var head = HTTPRequestHead(version: .http1_1, method: request.method, uri: request.target)
        head.headers.add(name: "host", value: "localhost")
        head.headers.add(name: "connection", value: "close")
        if let accept = request.accept { head.headers.add(name: "accept", value: accept) }
        if let body = request.body {
            head.headers.add(name: "content-type", value: "application/json")
            head.headers.add(name: "content-length", value: String(body.count))
        }
        var parts = [HTTPClientRequestPart.head(head)]
        if let body = request.body { parts.append(.body(.byteBuffer(ByteBuffer(bytes: body)))) }
        parts.append(.end(nil))
        // In one go: the service may answer and close as soon as it has the last byte, and an end
        // that is written after that fails.
        try await outbound.write(contentsOf: parts)
    }
}

/// A request to the service.
struct ControlRequest {
    var method = HTTPMethod.GET
    /// Path and query.
    var target: String
    var accept: String?
    /// A JSON document.
    var body: [UInt8]?
}

/// What follows the head of an answer, piece by piece.
struct ControlAnswer {
    fileprivate var parts: NIOAsyncChannelInboundStream<HTTPClientResponsePart>.AsyncIterator

    fileprivate mutating func head() async throws -> HTTPResponseHead {
        while let part = try await parts.next() {
            // Informational heads precede the answer's own.
            if case .head(let head) = part, head.status.code >= 200 { return head }
        }
        throw ControlConnection.Failure.ended
    }

    /// The next piece; nil at the end of the answer.
    mutating func next() async throws -> ByteBuffer? {
        while let part = try await parts.next() {
            switch part {
            case .head: continue
            case .body(let piece): return piece
            case .end: return nil
            }
        }
        throw ControlConnection.Failure.ended
    }

    /// All of it, at most `byteCountMax` bytes.
    mutating func collect(upTo byteCountMax: Int) async throws -> ByteBuffer {
        var all = ByteBuffer()
        while var piece = try await next() {
            guard all.readableBytes + piece.readableBytes <= byteCountMax else {
                throw ControlConnection.Failure.tooLarge
            }
            all.writeBuffer(&piece)
        }
        return all
    }
}
