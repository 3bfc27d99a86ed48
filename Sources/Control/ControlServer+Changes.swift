internal import BlockModel
internal import FoundationEssentials
internal import Hummingbird
internal import HummingbirdCore
internal import NIOCore

// The routes of checkpoints and changes.

extension ControlServer {
    func addCheckpoints(to router: Router<ControlContext>) {
        let checkpoints = registries.checkpoints
        router.get("v1/checkpoints") { _, _ in Answer(await checkpoints.list()) }
        router.post("v1/checkpoints") { request, context in
            let document = try await Self.decode(
                CheckpointCreateDocument.self, keys: CheckpointCreateDocument.keys, from: request)
            let wish = try CheckpointRequest(document)
            if let milliseconds = document.holdMilliseconds {
                return try Answer(
                    try await checkpoints.hold(wish, milliseconds: milliseconds),
                    status: .accepted
                ).response(from: request, context: context)
            }
            return try Answer(try await checkpoints.create(wish), status: .created)
                .response(from: request, context: context)
        }
        router.post("v1/checkpoints/{name}/release") { _, context in
            Answer(
                try await checkpoints.releaseHeld(try context.parameters.require("name")),
                status: .created)
        }
        router.delete("v1/checkpoints/{name}/hold") { _, context in
            Answer(try await checkpoints.abandonHeld(try context.parameters.require("name")))
        }
        router.delete("v1/checkpoints/{name}") { _, context in
            Answer(try await checkpoints.delete(try context.parameters.require("name")))
        }
    }

    func addChanges(to router: Router<ControlContext>) {
        let changes = registries.changes
        router.get("v1/devices/{name}/changes") { request, context in
            let answer = try await changes.page(
                try Self.changesRequest(
                    request, device: try context.parameters.require("name")))
            return try ChangesResponse.response(to: request, with: answer)
        }
        router.post("v1/devices/{name}/changes") { request, context in
            let document = try await Self.decode(
                ChangesMarkDocument.self, keys: ChangesMarkDocument.keys, from: request)
            return Answer(
                try await changes.mark(document, on: try context.parameters.require("name")))
        }
    }

    private static func changesRequest(
        _ request: Request, device: String
    ) throws -> ChangesRequest {
        var wish = ChangesRequest(device: device)
        wish.since = try text("since", of: request)
        wish.until = try text("until", of: request)
        wish.offset = try number("offset", of: request) ?? 0
        wish.length = try number("length", of: request)
        if let limit = try number("limit", of: request) {
            guard (1...UInt64(ChangesRequest.rangeCountMax)).contains(limit) else {
                throw ControlError(
                    .invalid, "limit=\(limit): use 1 to \(ChangesRequest.rangeCountMax)")
            }
            wish.limit = Int(limit)
        }
        if let generation = try text("generation", of: request) {
            guard let id = UniqueID(generation) else {
                throw ControlError(
                    .invalid, "generation=\(generation): use the one the page before named")
            }
            wish.generation = Generation(id: id)
        }
        wish.sinceEpoch = try epoch("since_epoch", of: request)
        wish.untilEpoch = try epoch("until_epoch", of: request)
        return wish
    }

    private static func text(_ name: String, of request: Request) throws -> String? {
        guard let text = request.uri.queryParameters.get(name) else { return nil }
        guard !text.isEmpty else {
            throw ControlError(.invalid, "\(name)= is empty; name something or leave it out")
        }
        return text
    }

    private static func epoch(_ name: String, of request: Request) throws -> UInt32? {
        guard let number = try number(name, of: request) else { return nil }
        guard let epoch = UInt32(exactly: number) else {
            throw ControlError(.invalid, "\(name)=\(number): use the one the page before named")
        }
        return epoch
    }
}

/// Answers with a page of changes: as JSON, or as the compact form that the command line asks for,
/// since a page of JSON takes a hundred times as long to read as to find.
enum ChangesResponse {
    static func response(to request: Request, with answer: ChangesAnswer) throws -> Response {
        let isCompact = request.headers[.accept] == CompactChanges.mediaType
        let body = try isCompact ? CompactChanges.encoded(answer) : json(answer)
        return Response(
            status: .ok,
            headers: [
                .contentType: isCompact ? CompactChanges.mediaType : "application/json",
                .cacheControl: "no-store",
            ],
            body: .init(byteBuffer: body))
    }

    /// The document with its ranges, which are written by hand: they are nearly all of it.
    private static func json(_ answer: ChangesAnswer) throws -> ByteBuffer {
        let frame = String(
            decoding: try DocumentCoding.encoder().encode(answer.document), as: UTF8.self)
        let place = "\"ranges\":["
        guard let split = frame.firstRange(of: place) else {
            preconditionFailure("a document of changes has ranges")
        }
        var body = ByteBuffer()
        body.reserveCapacity(frame.utf8.count + answer.ranges.count * 48)
        body.writeString(String(frame[..<split.upperBound]))
        var separator = ""
        for range in answer.ranges {
            body.writeString(separator)
            body.writeString("{\"length\":\(range.length),\"offset\":\(range.offset)}")
            separator = ","
        }
        body.writeString(String(frame[split.upperBound...]) + "\n")
        return body
    }
}
