internal import ControlDocuments
internal import Hummingbird
internal import HummingbirdCore

/// Refuses query parameters that would silently do nothing.
struct KnownQueries: RouterMiddleware {
    typealias Context = ControlContext

    /// What each path takes; those that are not here take nothing.
    private static let names: [String: Set<String>] = [
        "/v1/probe": ["path"], "/v1/devices/{name}": ["force", "force_lose_writes"],
        "/v1/snapshots/{id}": ["force_lose_writes"], "/v1/blocks/{name}": ["force_lose_writes"],
        "/v1/devices/{name}/changes": [
            "since", "until", "offset", "length", "limit", "generation", "since_epoch",
            "until_epoch",
        ],
        "/v1/devices/{name}/changes/summary": ["cells", "since"],
        "/v1/events": ["after", "snapshot", "follow", "timeout"],
    ]

    func handle(
        _ request: Request, context: Context,
        next: (Request, Context) async throws -> Response
    ) async throws -> Response {
        let known = Self.names[context.endpointPath ?? ""] ?? []
        for parameter in request.uri.queryParameters where !known.contains(String(parameter.key)) {
            let list = known.isEmpty ? "none" : known.sorted().joined(separator: ", ")
            throw ControlError(
                .invalid,
                "query parameter \"\(parameter.key)\" is not known here; known are \(list)")
        }
        return try await next(request, context)
    }
}
