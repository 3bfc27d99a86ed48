internal import ControlDocuments
internal import Encryption
internal import Hummingbird
internal import HummingbirdCore
internal import NIOCore
internal import Synchronization

// The token, and browsers that have shown it.
//
// Invariants
// - A cookie is a random word that means nothing outside this process: the token is never sent
//   back.
// - Wrong tokens wait, and few at a time: guessing takes too long to succeed and does not disturb
//   clients that know the token.

/// Knows who may look; see the head of this file.
final class PageLogin: Sendable {
    let token: AccessToken
    private let isEncrypted: Bool

    private struct State {
        var sessions: [String: ContinuousClock.Instant] = [:]
        var waitingCount = 0
    }

    private let state = Mutex(State())

    init(_ token: AccessToken, isEncrypted: Bool) {
        self.token = token
        self.isEncrypted = isEncrypted
    }

    private var cookieName: String { isEncrypted ? "__Host-stillpoint" : "stillpoint" }

    /// Throws unless the request shows the token, or the cookie of a browser that has.
    func check(_ request: Request) async throws {
        if let given = Self.bearer(of: request) {
            if token.matches(given) { return }
            throw try await refusal()
        }
        guard let session = session(of: request), isLoggedIn(session) else {
            throw ControlError(
                .unauthorized,
                "this needs the token of --http-token-file: send \"Authorization: Bearer TOKEN\", or "
                    + "log in at /login")
        }
    }

    /// Logs a browser in that shows the token; returns its cookie.
    func logIn(_ word: String) async throws -> String {
        guard token.matches(word) else { throw try await refusal() }
        var generator = SystemRandomNumberGenerator()
        let session = (0..<4).map { _ in
            let word = String(generator.next() as UInt64, radix: 16)
            return String(repeating: "0", count: 16 - word.count) + word
        }.joined()
        state.withLock { state in
            let now = ContinuousClock.now
            state.sessions = state.sessions.filter { $0.value > now }
            if state.sessions.count >= PageLimits.sessionsMax,
                let oldest = state.sessions.min(by: { $0.value < $1.value })
            {
                state.sessions[oldest.key] = nil
            }
            state.sessions[session] = now + PageLimits.sessionTime
        }
        return cookie(session, seconds: PageLimits.sessionTime.components.seconds)
    }

    /// Forgets a browser; returns the cookie that makes it forget, too.
    func logOut(_ request: Request) -> String {
        if let session = session(of: request) {
            state.withLock { $0.sessions[session] = nil }
        }
        return cookie("", seconds: 0)
    }

    private func cookie(_ value: String, seconds: Int64) -> String {
        "\(cookieName)=\(value); Path=/; Max-Age=\(seconds); HttpOnly; SameSite=Strict"
            + (isEncrypted ? "; Secure" : "")
    }

    private func isLoggedIn(_ session: String) -> Bool {
        state.withLock { state in
            guard let end = state.sessions[session] else { return false }
            return end > .now
        }
    }

    private func session(of request: Request) -> String? {
        for header in request.headers[values: .cookie] {
            for pair in header.split(separator: ";") {
                let parts = pair.drop { $0 == " " }.split(separator: "=", maxSplits: 1)
                if parts.count == 2, parts[0] == cookieName { return String(parts[1]) }
            }
        }
        return nil
    }

    private static func bearer(of request: Request) -> Substring? {
        guard let header = request.headers[.authorization],
            header.lowercased().hasPrefix("bearer ")
        else { return nil }
        return header.dropFirst(7).drop { $0 == " " }
    }

    private func refusal() async throws -> ControlError {
        let waits = state.withLock { state in
            guard state.waitingCount < PageLimits.wrongTokensMax else { return false }
            state.waitingCount += 1
            return true
        }
        guard waits else {
            return ControlError(
                .busy, "too many wrong tokens were shown; try again in a moment")
        }
        defer { state.withLock { $0.waitingCount -= 1 } }
        try await Task.sleep(for: PageLimits.wrongTokenDelay)
        return ControlError(.unauthorized, "this is not the token of --http-token-file")
    }
}

/// Rejects requests without the token. Browsers that open the page are led to the form.
struct PageDoor: RouterMiddleware {
    typealias Context = ControlContext
    let login: PageLogin

    /// What the form needs: it reveals nothing.
    private static let open: Set<String> = ["/login", "/page.css", "/icon.svg"]

    func handle(
        _ request: Request, context: Context,
        next: (Request, Context) async throws -> Response
    ) async throws -> Response {
        if Self.open.contains(request.uri.path) { return try await next(request, context) }
        do {
            try await login.check(request)
        } catch let error as ControlError where error.code == .unauthorized {
            let isBrowser = request.headers[.accept]?.contains("text/html") ?? false
            guard request.uri.path == "/", isBrowser else { throw error }
            return Response(status: .seeOther, headers: [.location: "/login"])
        }
        var response = try await next(request, context)
        // The page offers to log out.
        response.headers[Self.loginField] = "yes"
        return response
    }

    private static let loginField = HTTPFields.Element.Name("Stillpoint-Login")!
}

/// The routes of the form.
extension PageLogin {
    /// Longest body of the form: a token, escaped.
    private static let bodyByteCountMax = 1024

    func addRoutes(to router: Router<ControlContext>) {
        router.post("login") { request, _ in
            var headers: HTTPFields = [.location: "/", .cacheControl: "no-store"]
            do {
                let form = try await request.body.collect(upTo: Self.bodyByteCountMax)
                headers[.setCookie] = try await self.logIn(Self.token(inForm: form))
            } catch let error as ControlError {
                // The form says so, and asks again.
                headers[.location] = error.code == .busy ? "/login#busy" : "/login#wrong"
            }
            return Response(status: .seeOther, headers: headers)
        }
        router.post("logout") { request, _ in
            Response(
                status: .seeOther,
                headers: [
                    .location: "/login", .cacheControl: "no-store",
                    .setCookie: self.logOut(request),
                ])
        }
    }

    /// The field `token` of a form; letters of a token that are escaped are resolved.
    private static func token(inForm form: ByteBuffer) -> String {
        let text = String(buffer: form)
        let field = text.split(separator: "&").first { $0.hasPrefix("token=") }
        var bytes: [UInt8] = []
        var rest = (field ?? "").utf8.dropFirst(6)
        while let byte = rest.popFirst() {
            let digits = String(decoding: rest.prefix(2), as: UTF8.self)
            if byte == UInt8(ascii: "%"), let escaped = UInt8(digits, radix: 16) {
                bytes.append(escaped)
                rest = rest.dropFirst(2)
            } else {
                bytes.append(byte)
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}
