internal import ControlDocuments
internal import Encryption
internal import Hummingbird
internal import HummingbirdCore
internal import Logging
internal import NIOCore
internal import PageFiles
package import RingIO

// The page, the GET requests of the API, the events and the metrics, on TCP.
//
// Invariants
// - Nothing that changes anything is reachable: the routes that do are not there (`addReading`).
// - Paths of the machine that clients name are not looked at: who may reach this port need not be
//   who may ask root to open files.
// - Costs nothing while no client is connected: no timer, no copies.

/// Serves the page; see the head of this file.
package struct PageServer: Sendable {
    private let descriptors: [Int32]
    private let listener: ControlListener<RouterResponder<ControlContext>>

    /// Loads token and certificate, and opens the sockets.
    package static func start(
        _ settings: PageSettings, encryption: EncryptionSettings?, routes: ControlServer,
        counts: RequestCounts, blocking: BlockingPool
    ) async throws -> PageServer {
        let outcome = await blocking.run {
            () -> Result<([Int32], PageLogin?, TLSServer?), any Error> in
            Result {
                let token = try settings.token()
                let security = try encryption.flatMap { try $0.pageSecurity() }
                return (
                    try settings.listen(encryption),
                    token.map { PageLogin($0, isEncrypted: security != nil) }, security
                )
            }
        }
        guard let outcome else { throw ControlError.tooManyOperations }
        let (descriptors, login, security) = try outcome.get()
        var routes = routes
        routes.sharedAnswers = SharedAnswers()
        let pace = PagePace()
        routes.pace = pace
        let router = Self.router(settings, login, routes, counts, pace)
        var bounds = ListenerBounds(admission: { PageAdmission() })
        bounds.timeoutHandlers = { [PageTimeouts()] }
        if let security { bounds.security = { security.handler() } }
        return PageServer(
            descriptors: descriptors,
            listener: ControlListener(
                name: "the page's listener", responder: router.buildResponder(),
                logger: routes.plumbing, bounds: bounds))
    }

    /// Serves until a graceful stop.
    package func run() async throws {
        try await withThrowingTaskGroup(of: Void.self) { group in
            for descriptor in descriptors {
                group.addTask { try await listener.run(on: descriptor, whenRunning: {}) }
            }
            try await group.waitForAll()
        }
    }

    private static func router(
        _ settings: PageSettings, _ login: PageLogin?, _ routes: ControlServer,
        _ counts: RequestCounts, _ pace: PagePace
    ) -> Router<ControlContext> {
        let router = Router(
            context: ControlContext.self, options: .autoGenerateHeadEndpoints)
        router.add(middleware: RequestCounter(counts: counts))
        router.add(middleware: PagePacing(pace: pace))
        router.add(middleware: PageHeaders())
        if settings.hidesPaths { router.add(middleware: HiddenPaths()) }
        router.add(middleware: ErrorDocuments(explain: routes.explain, logger: routes.logger))
        router.add(middleware: PageGuard(settings))
        if let login { router.add(middleware: PageDoor(login: login)) }
        router.add(middleware: KnownQueries())
        router.add(middleware: NoPaths())
        var routes = routes
        routes.counts = counts
        routes.addReading(to: router)
        // The form is there for those who need it.
        for file in PageFile.all where login != nil || file.path != "/login" {
            router.get(RouterPath(file.path)) { request, _ in file.answer(to: request) }
        }
        login?.addRoutes(to: router)
        routes.refuseOtherMethods(on: router)
        return router
    }
}

extension EncryptionSettings {
    /// TLS for browsers, which know certificates and no pre-shared keys; nil: none.
    fileprivate func pageSecurity() throws(ControlError) -> TLSServer? {
        guard case .certificate = credentials else { return nil }
        do throws(EncryptionError) {
            return try TLSServer(credentials)
        } catch {
            throw ControlError(error.kind == .invalid ? .invalid : .failed, "TLS: \(error)")
        }
    }
}

/// Refuses to look at paths that a client names.
private struct NoPaths: RouterMiddleware {
    typealias Context = ControlContext

    func handle(
        _ request: Request, context: Context,
        next: (Request, Context) async throws -> Response
    ) async throws -> Response {
        guard request.uri.queryParameters.get("path") == nil else {
            throw ControlError(
                .forbidden, "paths of the machine are looked at on the control socket only")
        }
        return try await next(request, context)
    }
}

/// A file of the page, in the program itself.
struct PageFile: Sendable {
    let path: String
    private let type: String
    private let tag: String
    // SAFETY: the bytes are constants of the program.
    private nonisolated(unsafe) let bytes: UnsafeBufferPointer<UInt8>

    /// All files.
    static let all: [PageFile] = {
        var files: [PageFile] = []
        while let file = page_file_at(UInt(files.count)) {
            let entry = file.pointee
            let bytes = UnsafeBufferPointer(start: entry.bytes, count: Int(entry.byte_count))
            files.append(
                PageFile(
                    path: String(cString: entry.path), type: String(cString: entry.type),
                    tag: tag(of: bytes), bytes: bytes))
        }
        return files
    }()

    private init(path: String, type: String, tag: String, bytes: UnsafeBufferPointer<UInt8>) {
        self.path = path
        self.type = type
        self.tag = tag
        self.bytes = bytes
    }

    /// Tells versions of a file apart: FNV-1a, whose multiplication wraps as it must.
    private static func tag(of bytes: UnsafeBufferPointer<UInt8>) -> String {
        let hash = bytes.reduce(0xcbf2_9ce4_8422_2325 as UInt64) { hash, byte in
            (hash ^ UInt64(byte)) &* 0x100_0000_01b3
        }
        return "\"\(String(hash, radix: 16))\""
    }

    func answer(to request: Request) -> Response {
        // Asked for each time, sent only when it is another one: an upgrade shows at once.
        let headers: HTTPFields = [.cacheControl: "no-cache", .eTag: tag, .contentType: type]
        guard request.headers[.ifNoneMatch] != tag else {
            return Response(status: .notModified, headers: headers)
        }
        return Response(
            status: .ok, headers: headers, body: .init(byteBuffer: ByteBuffer(bytes: bytes)))
    }
}
