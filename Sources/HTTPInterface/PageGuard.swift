internal import ControlDocuments
internal import Glibc
internal import Hummingbird
internal import HummingbirdCore

// Who may look at the page, and from where.
//
// Invariants
// - A name that is not ours in `Host` is refused, so that no page of others reaches this one
//   through a name that they let point here; an address cannot be made to point elsewhere.
// - A request that a page of others caused is refused: by `Origin` where there is one, else by what
//   the browser says of it.
// - Every answer, refusals included, tells the browser to run nothing but the page's own files.

/// Puts what browsers have to obey on every answer.
struct PageHeaders: RouterMiddleware {
    typealias Context = ControlContext

    private static let headers: HTTPFields = [
        .contentSecurityPolicy:
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
            + "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        .xContentTypeOptions: "nosniff",
        // Without any, browsers would not say which page a form is of.
        HTTPFields.Element.Name("Referrer-Policy")!: "same-origin",
        HTTPFields.Element.Name("Cross-Origin-Resource-Policy")!: "same-origin",
        HTTPFields.Element.Name("Cross-Origin-Opener-Policy")!: "same-origin",
        HTTPFields.Element.Name("X-Frame-Options")!: "DENY",
    ]

    func handle(
        _ request: Request, context: Context,
        next: (Request, Context) async throws -> Response
    ) async throws -> Response {
        var response = try await next(request, context)
        for field in Self.headers { response.headers[field.name] = field.value }
        return response
    }
}

/// Refuses requests to names that are not ours, and those that pages of others cause.
struct PageGuard: RouterMiddleware {
    typealias Context = ControlContext
    /// Names of this machine, in lower case.
    private let names: Set<String>
    /// Names that a proxy is asked for, and then asks us by another.
    private let proxied: Set<String>

    init(_ settings: PageSettings) {
        var names: Set<String> = ["localhost"]
        for case .tcp(let host, _) in settings.addresses { names.insert(host.lowercased()) }
        names.formUnion(settings.hosts)
        if let own = Self.machineName {
            names.insert(own)
            if let first = own.split(separator: ".").first { names.insert(String(first)) }
        }
        self.names = names
        proxied = Set(settings.hosts)
    }

    func handle(
        _ request: Request, context: Context,
        next: (Request, Context) async throws -> Response
    ) async throws -> Response {
        guard let authority = request.head.authority?.lowercased() else {
            throw ControlError(.invalid, "the request has no Host header")
        }
        // The first one is the authority; a proxy in between may have checked another one.
        guard request.headers[HTTPFields.Element.Name("Host")!] == nil else {
            throw ControlError(.invalid, "the request has several Host headers; send one")
        }
        let host = Self.host(of: authority)
        guard Self.isAddress(host) || names.contains(host) else {
            throw ControlError(
                .forbidden,
                "this is not the host that was asked for; if it is one of its names, start the "
                    + "service with --http-host and that name")
        }
        if let origin = request.headers[.origin]?.lowercased() {
            guard let scheme = origin.firstRange(of: "://"),
                ["http", "https"].contains(origin[..<scheme.lowerBound])
            else { throw Self.foreign }
            let asking = String(origin[scheme.upperBound...])
            guard asking == authority || proxied.contains(Self.host(of: asking)) else {
                throw Self.foreign
            }
        }
        // A link on a page of others may lead here; a picture or a script of theirs may not.
        let site = request.headers[HTTPFields.Element.Name("Sec-Fetch-Site")!] ?? "none"
        let mode = request.headers[HTTPFields.Element.Name("Sec-Fetch-Mode")!] ?? "navigate"
        guard
            ["none", "same-origin"].contains(site) || (mode == "navigate" && request.method == .get)
        else { throw Self.foreign }
        return try await next(request, context)
    }

    private static let foreign = ControlError(
        .forbidden, "a page of another site asked for this; open the page itself")

    /// The host of `HOST`, `HOST:PORT` or `[ADDRESS]:PORT`.
    private static func host(of authority: String) -> String {
        if authority.hasPrefix("["), let end = authority.firstIndex(of: "]") {
            return String(authority[authority.index(after: authority.startIndex)..<end])
        }
        return String(authority.prefix { $0 != ":" })
    }

    private static func isAddress(_ host: String) -> Bool {
        var room = in6_addr()
        return inet_pton(AF_INET, host, &room) == 1 || inet_pton(AF_INET6, host, &room) == 1
    }

    private static var machineName: String? {
        var name = utsname()
        guard uname(&name) == 0 else { return nil }
        let text = withUnsafeBytes(of: &name.nodename) { bytes in
            String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
        return text.isEmpty ? nil : text.lowercased()
    }
}
