internal import ControlDocuments
internal import Hummingbird
internal import HummingbirdCore

// How fast the clients of the page may ask, all together.
//
// Without a limit they could ask as fast as the machine answers, and each answer takes processor
// time, or a loop's time, from clients that read and write.
//
// Invariants
// - Requests beyond the rate wait for their turn, in order. A connection has one request under way,
//   so a turn comes within a second however many clients ask.
// - Questions that walk a change map are answered one at a time. After each one the next waits many
//   times as long as the answer took.

/// Keeps the pace of the page's listeners; see the head of this file.
actor PagePace {
    /// When the last request that was asked for has, or had, its turn.
    private var lastTurn = ContinuousClock.now
    private var lastWalk: Task<Void, Never>?
    private var restEnd = ContinuousClock.now
    private var walkCount = 0

    /// Waits for the turn of a request.
    func turn() async throws {
        let now = ContinuousClock.now
        // Clients that have not asked for a while may ask for several things at once.
        lastTurn = max(lastTurn, now - PageLimits.burst) + PageLimits.turn
        if lastTurn > now { try await Task.sleep(until: lastTurn, clock: .continuous) }
    }

    /// Answers a question that walks a change map.
    func walk<Value: Sendable>(
        _ body: @escaping @Sendable () async throws -> Value
    ) async throws -> Value {
        guard walkCount < PageLimits.walksMax else {
            throw ControlError(
                .busy,
                "\(walkCount) questions about changes wait on the page's listeners, the most that "
                    + "may; ask again in a moment, or on the control socket")
        }
        walkCount += 1
        defer { walkCount -= 1 }
        let former = lastWalk
        let work = Task {
            await former?.value
            return await self.afterRest(body)
        }
        lastWalk = Task { _ = await work.value }
        return try await work.value.get()
    }

    private func afterRest<Value: Sendable>(
        _ body: @Sendable () async throws -> Value
    ) async -> Result<Value, any Error> {
        // `try?`: this task is never cancelled.
        try? await Task.sleep(until: restEnd, clock: .continuous)
        let begin = ContinuousClock.now
        let result: Result<Value, any Error>
        do { result = .success(try await body()) } catch { result = .failure(error) }
        let end = ContinuousClock.now
        restEnd = end + begin.duration(to: end) * PageLimits.restPerWalk
        return result
    }
}

/// Lets requests wait for their turn.
struct PagePacing: RouterMiddleware {
    typealias Context = ControlContext
    let pace: PagePace

    func handle(
        _ request: Request, context: Context,
        next: (Request, Context) async throws -> Response
    ) async throws -> Response {
        try await pace.turn()
        return try await next(request, context)
    }
}
