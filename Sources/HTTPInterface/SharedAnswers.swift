internal import Hummingbird
internal import HummingbirdCore

// Many who look at the same page cost as much as one: an answer that is younger than a moment is
// given again, and who asks while it is being made waits for it.
//
// Invariants
// - Bounded: `capacity` answers; one is let go when its moment is over, so that nothing is kept
//   while nobody looks.
// - Only answers that are in memory as a whole are given again.

/// Gives answers again; see the head of this file.
actor SharedAnswers {
    private var making: [String: Task<Response, any Error>] = [:]
    private static let capacity = 64

    /// How long an answer is given again, unless it is said.
    static let moment = Duration.milliseconds(900)

    /// The answer to `key`, made by `body` unless there is one.
    func answer(
        to key: String, kept age: Duration,
        _ body: @escaping @Sendable () async throws -> Response
    ) async throws -> Response {
        if let known = making[key] { return try await known.value }
        guard making.count < Self.capacity else { return try await body() }
        let task = Task { try await body() }
        making[key] = task
        // Not by who asked: that one may go away, and others still want it.
        Task {
            if case .success = await task.result {
                // Nobody cancels it.
                try? await Task.sleep(for: age)
            }
            forget(key)
        }
        return try await task.value
    }

    private func forget(_ key: String) { making[key] = nil }
}
