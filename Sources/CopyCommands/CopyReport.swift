internal import ClientSupport
internal import ControlDocuments
internal import NIOCore

// Tells the service how far a copy is, for those who look at its page and for its metrics. The copy
// does not depend on it: what cannot be reported is left out.

/// A copy that is reported to the service; see the head of this file.
struct CopyReport: Sendable {
    private let client: ControlClient
    private let id: String
    private let progress: Task<Void, Never>
    private let done: @Sendable () -> UInt64

    private static let interval = Duration.seconds(2)
    /// A service that does not answer at once is not waited for.
    private static let timeLimit = TimeAmount.seconds(5)

    /// Tells that a copy begins; nil when the service takes no such news.
    static func begin(
        _ copy: CopyBeginDocument, to client: ControlClient, done: @escaping @Sendable () -> UInt64
    ) async -> CopyReport? {
        let answer = try? await client.call(
            .POST, "/v1/copies", body: copy, timeLimit: timeLimit, as: CopyJobDocument.self)
        guard let id = answer?.id else { return nil }
        let progress = Task {
            // Cancelled when the copy has ended.
            while (try? await Task.sleep(for: interval)) != nil {
                await report(CopyProgressDocument(copiedBytes: done()), of: id, to: client)
            }
        }
        return CopyReport(client: client, id: id, progress: progress, done: done)
    }

    /// Performs a copy, and reports its start and end to the service.
    static func reporting<Value>(
        _ copy: CopyBeginDocument, to client: ControlClient,
        done: @escaping @Sendable () -> UInt64, _ body: () async throws -> Value
    ) async throws -> Value {
        let report = await begin(copy, to: client, done: done)
        do {
            let value = try await body()
            await report?.ended("done", nil)
            return value
        } catch {
            let isAsked = Interruption.lastSignal != 0
            await report?.ended(isAsked ? "interrupted" : "failed", isAsked ? nil : "\(error)")
            throw error
        }
    }

    private func ended(_ state: String, _ error: String?) async {
        progress.cancel()
        await progress.value
        await Self.report(
            CopyProgressDocument(
                copiedBytes: done(), state: state, error: error.map { String($0.prefix(1000)) }),
            of: id, to: client)
    }

    private static func report(
        _ progress: CopyProgressDocument, of id: String, to client: ControlClient
    ) async {
        _ = try? await client.call(
            .POST, "/v1/copies/\(id)", body: progress, timeLimit: timeLimit,
            as: CopyJobDocument.self)
    }
}
