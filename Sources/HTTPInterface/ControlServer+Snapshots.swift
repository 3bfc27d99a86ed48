internal import BlockModel
internal import ControlDocuments
internal import Hummingbird
internal import HummingbirdCore
internal import NIOCore
internal import ServiceState

// The routes of snapshots and events.

extension ControlServer {
    func addSnapshots(to router: Router<ControlContext>) {
        let snapshots = registries.snapshots
        router.get("v1/snapshots") { request, context in
            try await shared(request, context) { Answer(await snapshots.list()) }
        }
        router.get("v1/snapshots/{id}") { _, context in
            Answer(try await snapshots.show(try context.parameters.require("id")))
        }
    }

    func addSnapshotChanges(to router: Router<ControlContext>) {
        let snapshots = registries.snapshots
        router.post("v1/snapshots") { request, _ in
            let document = try await Self.decode(
                SnapshotCreateDocument.self, keys: SnapshotCreateDocument.keys, from: request)
            return Answer(
                try await snapshots.create(try SnapshotRequest(document)), status: .created)
        }
        router.delete("v1/snapshots/{id}") { [blocks = registries.blocks] request, context in
            let id = try context.parameters.require("id")
            try await blocks.clear(
                imagesOf: "\(try await snapshots.label(of: id))",
                losesWrites: try Self.flag("force_lose_writes", of: request))
            let last = try await snapshots.destroy(id)
            await blocks.endImages(of: last.label)
            return Answer(last)
        }
        router.post("v1/snapshots/{id}/take") { _, context in
            Answer(try await snapshots.take(try context.parameters.require("id")))
        }
        router.post("v1/snapshots/{id}/storage") { request, context in
            let document = try await Self.decode(
                StorageAppendDocument.self, keys: StorageAppendDocument.keys, from: request)
            let selection = try StorageSelection(
                texts: document.storage, limit: document.limit, isForced: document.force ?? false)
            return Answer(
                try await snapshots.appendStorage(
                    selection, to: try context.parameters.require("id")))
        }
    }

    /// Server-sent events: those after a number, then as they happen. `follow=false` ends after
    /// what has happened; with a `timeout` in seconds it waits so long for the first one.
    func addEvents(to router: Router<ControlContext>) {
        router.get("v1/events") { request, _ in
            let query = try await eventQuery(of: request)
            guard let place = FollowerPlace(taking: counts) else {
                throw ControlError(
                    .limitReached,
                    "\(counts.followersMax) clients wait for events, the most that the "
                        + "service allows; end one")
            }
            return Self.stream(query, keeping: place, answering: request)
        }
    }

    private static func stream(
        _ query: EventQuery, keeping place: FollowerPlace, answering request: Request
    ) -> Response {
        Response(
            status: .ok,
            headers: [.contentType: "text/event-stream", .cacheControl: "no-store"],
            body: ResponseBody { writer in
                try await request.body.consumeWithCancellationOnInboundClose { _ in
                    try await query.write(to: &writer)
                }
                withExtendedLifetime(place) {}
                try await writer.finish(nil)
            })
    }

    private func eventQuery(of request: Request) async throws -> EventQuery {
        let timeout = try Self.number("timeout", of: request)
        if let timeout, timeout > EventQuery.timeoutSecondsMax {
            throw ControlError(
                .invalid,
                "timeout=\(timeout): use at most \(EventQuery.timeoutSecondsMax) s, a week"
            )
        }
        return EventQuery(
            events: registries.events,
            snapshot: try await snapshotID(request.uri.queryParameters.get("snapshot")),
            after: try after(request),
            follows: try Self.flag("follow", of: request, otherwise: true),
            deadline: timeout.map { .now + .seconds($0) })
    }

    private func snapshotID(_ text: String?) async throws -> UniqueID? {
        guard let text else { return nil }
        return try await registries.snapshots.id(of: text)
    }

    /// Reads a number of the query.
    static func number(_ name: String, of request: Request) throws -> UInt64? {
        guard let text = request.uri.queryParameters.get(name) else { return nil }
        guard let number = UInt64(text) else {
            throw ControlError(.invalid, "\(name)=\(text): use a number")
        }
        return number
    }

    /// After which event: what the query says, or what a client that connects again has seen, as
    /// the standard of server-sent events says.
    private func after(_ request: Request) throws -> UInt64 {
        let seen = request.headers.first { $0.name.canonicalName == "last-event-id" }
        let number = try Self.number("after", of: request) ?? seen.flatMap { UInt64($0.value) } ?? 0
        try registries.events.check(number)
        return number
    }
}

/// What a client wants to hear of, and for how long.
private struct EventQuery: Sendable {
    let events: EventLog
    let snapshot: UniqueID?
    let after: UInt64
    let follows: Bool
    let deadline: ContinuousClock.Instant?

    /// Longest time that can be waited: a week.
    static let timeoutSecondsMax: UInt64 = 7 * 86400

    func write(to writer: inout any ResponseBodyWriter) async throws {
        var position = after
        while true {
            let page = events.page(after: position, of: snapshot)
            for event in page.events { try await writer.write(try Self.text(of: event)) }
            position = max(position, page.last)
            guard !page.isOver else { return }
            if !follows, !page.events.isEmpty || deadline == nil { return }
            if let deadline, deadline <= .now { return }
            await events.wait(past: page.version, until: deadline)
            try Task.checkCancellation()
        }
    }

    private static func text(of event: EventDocument) throws -> ByteBuffer {
        var buffer = ByteBuffer(string: "id: \(event.number)\nevent: \(event.type)\ndata: ")
        buffer.writeBytes(try DocumentCoding.encoder().encode(event))
        buffer.writeString("\n\n")
        return buffer
    }
}
