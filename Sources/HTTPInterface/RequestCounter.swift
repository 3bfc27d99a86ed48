internal import Hummingbird
internal import HummingbirdCore
internal import Synchronization

/// How many requests were answered, by status, and how many clients may wait for events.
package final class RequestCounts: Sendable {
    private let counts = Mutex<[Int: UInt64]>([:])
    /// Most clients that wait for events.
    let followersMax: Int
    /// Clients that wait for events now.
    fileprivate let followerCount = Atomic<Int>(0)

    package init(followersMax: Int) { self.followersMax = followersMax }

    func add(_ status: Int) { counts.withLock { $0[status, default: 0] += 1 } }

    /// By status, the lowest first.
    package func all() -> [(status: Int, count: UInt64)] {
        counts.withLock { $0 }.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
    }
}

/// One of the places for clients that wait for events; given back when it goes.
final class FollowerPlace: Sendable {
    private let counts: RequestCounts

    /// Nil when all are taken.
    init?(taking counts: RequestCounts) {
        self.counts = counts
        let before = counts.followerCount.wrappingAdd(1, ordering: .relaxed).oldValue
        guard before < counts.followersMax else {
            // A failing initialiser of a complete object runs `deinit`, which gives it back.
            return nil
        }
    }

    deinit { counts.followerCount.wrappingSubtract(1, ordering: .relaxed) }
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
