internal import BlockModel
internal import ControlDocuments
internal import FoundationEssentials
internal import Hummingbird
internal import HummingbirdCore
internal import NIOCore
internal import SnapshotManagement

// The routes of checkpoints and changes.

extension ControlServer {
    func addCheckpoints(to router: Router<ControlContext>) {
        let checkpoints = registries.checkpoints
        router.get("v1/checkpoints") { request, context in
            try await shared(request, context) { Answer(await checkpoints.list()) }
        }
    }

    func addCheckpointChanges(to router: Router<ControlContext>) {
        let checkpoints = registries.checkpoints
        router.post("v1/checkpoints") { request, context in
            let document = try await Self.decode(
                CheckpointCreateDocument.self, keys: CheckpointCreateDocument.keys, from: request)
            let checkpoint = try CheckpointRequest(document)
            if let milliseconds = document.holdMilliseconds {
                return try Answer(
                    try await checkpoints.hold(checkpoint, milliseconds: milliseconds),
                    status: .accepted
                ).response(from: request, context: context)
            }
            return try Answer(try await checkpoints.create(checkpoint), status: .created)
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
            let query = try Self.changesRequest(
                request, device: try context.parameters.require("name"))
            let answer = try await walk { try await changes.page(query) }
            return try ChangesResponse.response(to: request, with: answer)
        }
        router.get("v1/devices/{name}/changes/summary") { request, context in
            let name = try context.parameters.require("name")
            let cellCount = try Self.cellCount(of: request)
            let since = try Self.text("since", of: request)
            return try await shared(request, context, kept: .seconds(3)) {
                try Self.summary(
                    try await walk {
                        try await changes.summary(of: name, cellCount: cellCount, since: since)
                    })
            }
        }
    }

    func addMarks(to router: Router<ControlContext>) {
        let changes = registries.changes
        router.post("v1/devices/{name}/changes") { request, context in
            let document = try await Self.decode(
                ChangesMarkDocument.self, keys: ChangesMarkDocument.keys, from: request)
            return Answer(
                try await changes.mark(document, on: try context.parameters.require("name")))
        }
    }

    /// A picture of the changes. Its cells are written by hand: they are nearly all of it, and the
    /// encoder is slow with lists, as for ranges.
    private static func summary(_ document: SummaryDocument) throws -> Response {
        var frame = document
        frame.cells = []
        return try ChangesResponse.response(
            filling: "cells", of: DocumentCoding.encoder().encode(frame), with: document.cells
        ) { cell, body in
            body.writeString(
                "{\"changed_blocks\":\(cell.changedBlocks),\"epoch\":\(cell.epoch),\"last\":")
            // Names of checkpoints need no escapes.
            body.writeString(cell.last.map { "\"\($0)\"}" } ?? "null}")
        }
    }

    private static func cellCount(of request: Request) throws -> Int {
        guard let count = try number("cells", of: request) else {
            return SummaryDocument.cellCountStandard
        }
        let counts = SummaryDocument.cellCounts
        guard let count = Int(exactly: count), counts.contains(count) else {
            throw ControlError(
                .invalid, "cells=\(count): use \(counts.lowerBound) to \(counts.upperBound)")
        }
        return count
    }

    private static func changesRequest(
        _ request: Request, device: String
    ) throws -> ChangesRequest {
        var query = ChangesRequest(device: device)
        query.since = try text("since", of: request)
        query.until = try text("until", of: request)
        query.offset = try number("offset", of: request) ?? 0
        query.length = try number("length", of: request)
        if let limit = try number("limit", of: request) {
            guard (1...UInt64(ChangesRequest.rangeCountMax)).contains(limit) else {
                throw ControlError(
                    .invalid, "limit=\(limit): use 1 to \(ChangesRequest.rangeCountMax)")
            }
            query.limit = Int(limit)
        }
        if let generation = try text("generation", of: request) {
            guard let id = UniqueID(generation) else {
                throw ControlError(
                    .invalid, "generation=\(generation): use the one the page before named")
            }
            query.generation = Generation(id: id)
        }
        query.sinceEpoch = try epoch("since_epoch", of: request)
        query.untilEpoch = try epoch("until_epoch", of: request)
        return query
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
        guard request.headers[.accept] == CompactChanges.mediaType else {
            return try response(
                filling: "ranges", of: DocumentCoding.encoder().encode(answer.document),
                with: answer.ranges
            ) { range, body in
                body.writeString("{\"length\":\(range.length),\"offset\":\(range.offset)}")
            }
        }
        return response(CompactChanges.mediaType, try CompactChanges.encoded(answer))
    }

    /// A document whose list `key`, empty in `frame`, is written by hand: it is nearly all of it.
    static func response<Item>(
        filling key: String, of frame: Data, with items: [Item],
        _ write: (Item, inout ByteBuffer) -> Void
    ) throws -> Response {
        let frame = String(decoding: frame, as: UTF8.self)
        guard let split = frame.firstRange(of: "\"\(key)\":[") else {
            preconditionFailure("the document has \(key)")
        }
        var body = ByteBuffer()
        body.reserveCapacity(frame.utf8.count + items.count * 48)
        body.writeString(String(frame[..<split.upperBound]))
        var separator = ""
        for item in items {
            body.writeString(separator)
            write(item, &body)
            separator = ","
        }
        body.writeString(String(frame[split.upperBound...]) + "\n")
        return response("application/json", body)
    }

    private static func response(_ type: String, _ body: ByteBuffer) -> Response {
        Response(
            status: .ok, headers: [.contentType: type, .cacheControl: "no-store"],
            body: .init(byteBuffer: body))
    }
}
