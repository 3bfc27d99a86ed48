internal import BlockModel
package import ControlDocuments
package import DeviceManagement
internal import FoundationEssentials
package import Hummingbird
internal import HummingbirdCore
package import Logging
internal import Monitoring
internal import NIOCore

// HTTP/JSON on the control socket: routes to the registry, errors as documents, bounds.

/// Bounds of the control socket.
package enum ControlLimits {
    /// Largest body of a request.
    static let bodyByteCountMax = 64 << 10
    /// Largest head of a request.
    static let headByteCountMax = 16 << 10
    /// Connections at once; more wait in the backlog.
    static let connectionsMax = 128
    /// Of these, those that wait for events: they must not keep others from being answered.
    package static let followersMax = 64
    /// Time for a client to send the next part of a request, or a next request.
    static let idleSeconds: Int64 = 30
    /// Time for a request's body as a whole.
    static let bodyTime = Duration.seconds(30)
}

/// What a request carries on its way through the routes.
package struct ControlContext: RequestContext {
    /// What Hummingbird keeps of a request.
    package var coreContext: CoreRequestContextStorage
    /// Bytes of a body at most.
    package let maxUploadSize = ControlLimits.bodyByteCountMax

    package init(source: Source) { coreContext = .init(source: source) }
}

/// Answers with a document.
struct Answer<Document: Encodable & Sendable>: ResponseGenerator {
    let status: HTTPResponse.Status
    let document: Document

    init(_ document: Document, status: HTTPResponse.Status = .ok) {
        self.status = status
        self.document = document
    }

    func response(from request: Request, context: some RequestContext) throws -> Response {
        var bytes = try DocumentCoding.encoder().encode(document)
        bytes.append(UInt8(ascii: "\n"))
        return Response(
            status: status,
            headers: [.contentType: "application/json", .cacheControl: "no-store"],
            body: .init(byteBuffer: ByteBuffer(bytes: bytes)))
    }
}

/// Converts every error into a document that says why.
struct ErrorDocuments: RouterMiddleware {
    typealias Context = ControlContext
    let explain: @Sendable (ControlError) -> ControlError
    let logger: Logger

    func handle(
        _ request: Request, context: Context,
        next: (Request, Context) async throws -> Response
    ) async throws -> Response {
        do {
            return try await next(request, context)
        } catch {
            let refusal = explain(Self.refusal(for: error, request))
            if refusal.code == .failed {
                logger.error("\(request.method) \(request.uri.path): \(refusal): \(error)")
            }
            let status = HTTPResponse.Status(code: refusal.code.httpStatus)
            var response = try Answer(ErrorDocument(refusal), status: status)
                .response(from: request, context: context)
            if let methods = refusal.details["allow"] { response.headers[.allow] = methods }
            return response
        }
    }

    private static func refusal(for error: any Error, _ request: Request) -> ControlError {
        if let error = error as? ControlError { return error }
        if error is NIOTooManyBytesError { return tooLarge }
        guard let error = error as? HTTPError else {
            return ControlError(.failed, "the service failed at this request; its log says why")
        }
        switch error.status {
        case .notFound:
            return ControlError(
                .notFound,
                "\(request.uri.path) was not found; docs/openapi.yaml describes the paths")
        case .contentTooLarge:
            return tooLarge
        default:
            return ControlError(.invalid, error.body ?? error.status.reasonPhrase)
        }
    }

    private static let tooLarge = ControlError(
        .tooLarge, "the request's body is larger than \(ControlLimits.bodyByteCountMax) bytes")
}

/// The routes of the control socket.
package struct ControlServer: Sendable {
    let registries: Registries
    let status: @Sendable () async throws -> StatusDocument
    let metrics: @Sendable () async -> String
    let about: @Sendable () -> AboutDocument
    let probe: @Sendable (String?) async throws -> MachineProbe
    let activity: @Sendable () async -> ActivityDocument
    var counts: RequestCounts
    /// Adds to an error what the user that the service runs as has to do with it.
    let explain: @Sendable (ControlError) -> ControlError
    let logger: Logger
    /// Where answers are given again to others for a moment; nil: each is made again.
    var sharedAnswers: SharedAnswers?
    /// Limits how fast questions about changes are answered; nil: there is no limit.
    var pace: PagePace?

    package init(
        registries: Registries, status: @escaping @Sendable () async throws -> StatusDocument,
        metrics: @escaping @Sendable () async -> String,
        about: @escaping @Sendable () -> AboutDocument,
        probe: @escaping @Sendable (String?) async throws -> MachineProbe,
        activity: @escaping @Sendable () async -> ActivityDocument, counts: RequestCounts,
        explain: @escaping @Sendable (ControlError) -> ControlError, logger: Logger
    ) {
        self.registries = registries
        self.status = status
        self.metrics = metrics
        self.about = about
        self.probe = probe
        self.activity = activity
        self.counts = counts
        self.explain = explain
        self.logger = logger
    }

    /// What serves these routes.
    package func listener() -> ControlListener<RouterResponder<ControlContext>> {
        ControlListener(
            name: "the control socket", responder: router().buildResponder(), logger: plumbing,
            bounds: .control(logger: plumbing))
    }

    /// Messages of the library are about plumbing; requests that fail are logged by
    /// `ErrorDocuments`.
    var plumbing: Logger {
        var plumbing = logger
        plumbing.logLevel = .warning
        return plumbing
    }

    private func router() -> Router<ControlContext> {
        let router = Router(
            context: ControlContext.self, options: .autoGenerateHeadEndpoints)
        router.add(middleware: RequestCounter(counts: counts))
        router.add(middleware: ErrorDocuments(explain: explain, logger: logger))
        router.add(middleware: KnownQueries())
        addReading(to: router)
        addChanging(to: router)
        refuseOtherMethods(on: router)
        return router
    }

    /// The routes that change something.
    private func addChanging(to router: Router<ControlContext>) {
        addDeviceChanges(to: router)
        addSnapshotChanges(to: router)
        addCheckpointChanges(to: router)
        addMarks(to: router)
        addBlockChanges(to: router)
        addCopyChanges(to: router)
    }

    /// The routes that change nothing, all of them GET.
    func addReading(to router: Router<ControlContext>) {
        router.get("v1") { _, _ in Answer(about()) }
        router.get("v1/health") { [registries] _, _ in
            let health = await registries.health()
            return Answer(health, status: health.isFailing ? .serviceUnavailable : .ok)
        }
        router.get("v1/status") { request, context in
            try await shared(request, context) { Answer(try await status()) }
        }
        router.get("v1/activity") { request, context in
            try await shared(request, context) { Answer(await activity()) }
        }
        router.get("v1/probe") { request, _ in
            let path = request.uri.queryParameters.get("path")
            return Answer(try await probe(path))
        }
        router.get("metrics") { request, context in
            try await shared(request, context) {
                Response(
                    status: .ok, headers: [.contentType: MetricsText.contentType],
                    body: .init(byteBuffer: ByteBuffer(string: await metrics())))
            }
        }
        addDevices(to: router)
        addSnapshots(to: router)
        addEvents(to: router)
        addCheckpoints(to: router)
        addChanges(to: router)
        addBlocks(to: router)
        addCopies(to: router)
    }

    /// Makes an answer, or gives one that was made for somebody else a moment ago.
    func shared(
        _ request: Request, _ context: ControlContext, kept age: Duration = SharedAnswers.moment,
        _ make: @escaping @Sendable () async throws -> some ResponseGenerator
    ) async throws -> Response {
        guard let sharedAnswers else {
            return try await make().response(from: request, context: context)
        }
        return try await sharedAnswers.answer(to: request.uri.string, kept: age) {
            try await make().response(from: request, context: context)
        }
    }

    /// Answers a question that walks a change map.
    func walk<Value: Sendable>(
        _ body: @escaping @Sendable () async throws -> Value
    ) async throws -> Value {
        guard let pace else { return try await body() }
        return try await pace.walk(body)
    }

    /// A path that is there answers a method that is not with 405, and says which are.
    func refuseOtherMethods(on router: Router<ControlContext>) {
        let methods: [HTTPRequest.Method] =
            [
                .get, .post, .put, .delete, .patch, .head, .options, .trace,
            ] + [HTTPRequest.Method(rawValue: "QUERY")].compactMap(\.self)
        let known = Dictionary(grouping: router.routes, by: { $0.path.description })
        for routes in known.values {
            // What can be got has a head, too.
            let known =
                routes.map(\.method) + (routes.contains { $0.method == .get } ? [.head] : [])
            let names = known.map(\.rawValue).sorted().joined(separator: ", ")
            for method in methods where !known.contains(method) {
                router.on(routes[0].path, method: method) { request, _ -> Response in
                    throw ControlError(
                        .notAllowed, "\(request.uri.path) takes \(names) only",
                        details: ["allow": names])
                }
            }
        }
    }

    private func addDevices(to router: Router<ControlContext>) {
        let registry = registries.devices
        router.get("v1/devices") { request, context in
            try await shared(request, context) { Answer(await registry.list()) }
        }
        router.get("v1/devices/{name}") { _, context in
            Answer(try await registry.show(try context.parameters.require("name")))
        }
    }

    private func addDeviceChanges(to router: Router<ControlContext>) {
        let registry = registries.devices
        router.post("v1/devices") { [blocks = registries.blocks] request, _ in
            let outcome = try await registry.attach(try await Self.attachRequest(request))
            if outcome.isNew { await blocks.deviceAttached(outcome.device.name) }
            return Answer(outcome.device, status: outcome.isNew ? .created : .ok)
        }
        router.post("v1/devices/{name}/resize") { _, context in
            Answer(try await registry.resize(try context.parameters.require("name")))
        }
        router.delete("v1/devices/{name}") { [registries] request, context in
            let losesWrites = try Self.flag("force_lose_writes", of: request)
            let isForced = try Self.flag("force", of: request) || losesWrites
            let name = try context.parameters.require("name")
            try await registries.blocks.clear(
                device: name, isForced: isForced, losesWrites: losesWrites)
            for label in isForced ? await registry.holders(of: name) : [] {
                try await registries.blocks.clear(
                    imagesOf: "\(label)", losesWrites: losesWrites)
            }
            let last = try await registry.detach(
                name, isForced: isForced, destroying: registries.snapshots.destroyAll)
            guard let last else {
                // It was only remembered: there is nothing to show.
                return try Answer(["name": name]).response(from: request, context: context)
            }
            return try Answer(last).response(from: request, context: context)
        }
    }

    /// Reads a yes-or-no query parameter.
    static func flag(
        _ name: String, of request: Request, otherwise: Bool = false
    ) throws -> Bool {
        switch request.uri.queryParameters.get(name) {
        case nil: return otherwise
        case "false", "0": return false
        case "true", "1": return true
        case .some(let text):
            throw ControlError(.invalid, "\(name)=\(text): use true or false")
        }
    }

    private static func attachRequest(_ request: Request) async throws -> AttachRequest {
        let document = try await decode(
            AttachDocument.self, keys: AttachDocument.keys, from: request)
        return try AttachRequest(
            name: document.name, path: document.path, isReadOnly: document.readOnly ?? false,
            sectorBytes: document.sectorSize, isExclusive: document.exclusive ?? false,
            isLive: document.live ?? false)
    }

    /// Reads a request's body: whole, in time, and with no key that would silently do nothing.
    static func decode<Document: Decodable>(
        _ type: Document.Type, keys: Set<String>, from request: Request
    ) async throws -> Document {
        let bytes = Data(buffer: try await collect(request.body))
        do {
            let given = try JSONDecoder().decode([String: Ignored].self, from: bytes)
            if let unknown = given.keys.filter({ !keys.contains($0) }).min() {
                throw ControlError(
                    .invalid,
                    "\"\(unknown)\" is not known here; known are \(keys.sorted().joined(separator: ", "))"
                )
            }
            if let empty = given.filter(\.value.isNull).keys.min() {
                throw ControlError(.invalid, "\"\(empty)\" is null; leave it out instead")
            }
            return try DocumentCoding.decoder().decode(type, from: bytes)
        } catch let error as DecodingError {
            throw ControlError(.invalid, "the request's body: \(error.sentence)")
        }
    }

    private static func collect(_ body: RequestBody) async throws -> ByteBuffer {
        try await withThrowingTaskGroup(of: ByteBuffer.self) { group in
            group.addTask { try await body.collect(upTo: ControlLimits.bodyByteCountMax) }
            group.addTask {
                try await Task.sleep(for: ControlLimits.bodyTime)
                throw ControlError(.tooSlow, "the request's body did not arrive in time")
            }
            defer { group.cancelAll() }
            guard let bytes = try await group.next() else { return ByteBuffer() }
            return bytes
        }
    }

    /// A value of which nothing matters but its key, and that there is one.
    private struct Ignored: Decodable {
        let isNull: Bool

        init(from decoder: any Decoder) throws {
            isNull = try decoder.singleValueContainer().decodeNil()
        }
    }
}

extension Data {
    init(buffer: ByteBuffer) { self.init(buffer.readableBytesView) }
}

extension DecodingError {
    /// What is wrong with the JSON, for people.
    var sentence: String {
        switch self {
        case .keyNotFound(let key, _): "\"\(Self.jsonKey(key))\" is missing"
        case .typeMismatch(_, let context), .valueNotFound(_, let context):
            "\(Self.place(context)) has the wrong type"
        case .dataCorrupted(let context):
            context.codingPath.isEmpty
                ? "it is not JSON" : "\(Self.place(context)) has a value that does not fit"
        @unknown default: "it does not fit"
        }
    }

    private static func place(_ context: Context) -> String {
        guard !context.codingPath.isEmpty else { return "it" }
        return "\"" + context.codingPath.map(jsonKey).joined(separator: ".") + "\""
    }

    /// The key as it stands in JSON: snake case.
    private static func jsonKey(_ key: any CodingKey) -> String {
        key.stringValue.reduce(into: "") { text, letter in
            text += letter.isUppercase ? "_" + letter.lowercased() : String(letter)
        }
    }
}
