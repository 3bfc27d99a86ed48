package import ControlDocuments
internal import Origins
package import RingIO

extension BlockingPool {
    /// Longest time that a command waits for a path that its user named, nanoseconds.
    private static let commandNanosecondsMax: UInt64 = 30_000_000_000

    /// Runs `body` about a path that a user named: what lies there may hang, and then only calls
    /// about such paths wait for it. `what` names it in errors.
    package func runOnNamedPath<Value: Sendable>(
        _ lane: BlockingLane, _ what: String, _ body: @escaping @Sendable () -> Value
    ) async throws(ControlError) -> Value {
        do throws(AttachError) {
            return try await runOnPath(lane, what, limitNanoseconds: Self.commandNanosecondsMax) {
                () throws(AttachError) in body()
            }
        } catch { throw ControlError(error) }
    }
}
