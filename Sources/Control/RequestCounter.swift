internal import Hummingbird
internal import HummingbirdCore
internal import Synchronization

/// How many requests to the control socket were answered, by status.
final class RequestCounts: Sendable {
    private let counts = Mutex<[Int: UInt64]>([:])

    func add(_ status: Int) { counts.withLock { $0[status, default: 0] += 1 } }

    /// By status, the lowest first.
    func all() -> [(status: Int, count: UInt64)] {
        counts.withLock { $0 }.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
    }
}

/// Counts every answer.
struct RequestCounter: RouterMiddleware {
    typealias Context = ControlContext
    let counts: RequestCounts

    func handle(
        _ request: Request, context: Context,
        next: (Request, Context) async throws -> Response
    ) async throws -> Response {
        let response = try await next(request, context)
        counts.add(response.status.code)
        return response
    }
}
