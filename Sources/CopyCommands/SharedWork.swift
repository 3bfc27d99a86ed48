internal import ClientSupport
internal import ControlDocuments
internal import CopyPlanning
internal import ImageCopy
internal import RingIO
internal import Synchronization

/// Threads that share a work, with a progress bar, until it is done or the user interrupts.
enum SharedWork {
    /// Runs `body` on as many threads, each with its number, and throws what failed.
    /// `interrupted` says how to continue after Ctrl-C.
    static func perform(
        _ label: String, _ work: CopyWork, threads count: Int, interrupted: String,
        _ body: @escaping @Sendable (Int) -> Void
    ) async throws {
        let pool: BlockingPool
        do throws(RingError) {
            pool = try BlockingPool(threadCount: count)
        } catch { throw ControlError(.failed, "\(label) cannot start: \(error)") }
        defer { pool.close() }
        let interruption = Interruption.whenAsked {
            work.failed(CopyError(.interrupted, "interrupted; \(interrupted)"))
        }
        defer { interruption.withdraw() }
        try await ProgressBar.showing(
            label, of: work.byteCount,
            done: { work.doneByteCount.load(ordering: .relaxed) }
        ) {
            await withTaskGroup(of: Void.self) { group in
                for index in 0..<count {
                    group.addTask {
                        let outcome: Void? = await pool.run { body(index) }
                        guard outcome != nil else {
                            preconditionFailure("a pool takes a job for each of its threads")
                        }
                    }
                }
            }
        }
        do throws(CopyError) {
            try work.check()
        } catch { throw ControlError(error) }
    }

    /// Runs something that blocks on a thread of its own.
    static func run<Value: Sendable>(
        _ body: @escaping @Sendable () throws(CopyError) -> Value
    ) async throws -> Value {
        let pool: BlockingPool
        do throws(RingError) {
            pool = try BlockingPool(threadCount: 1)
        } catch { throw ControlError(.failed, "a thread cannot be started: \(error)") }
        defer { pool.close() }
        let outcome = await pool.run { () -> Result<Value, CopyError> in
            do throws(CopyError) { return .success(try body()) } catch { return .failure(error) }
        }
        switch outcome {
        case .success(let value): return value
        case .failure(let error): throw ControlError(error)
        case nil: preconditionFailure("a pool takes a job for each of its threads")
        }
    }
}
