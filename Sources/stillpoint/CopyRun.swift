import BlockModel
import Control
import ImageCopy
import NBDAccess
import RingIO
import Synchronization

/// The performance of one copy: its threads, its progress bar and what its failures mean.
struct CopyRun {
    let image: CopySource
    let wish: CopyWish
    let path: String
    let work: CopyWork

    /// Connections, one thread each: the service's side keeps a core busy with fewer.
    private static let workerCount = 4
    /// Below this many bytes one connection does.
    private static let manyByteCount: UInt64 = 4 << 20

    /// Copies; returns what there was to do.
    func perform() async throws -> CopyPlan {
        let count = work.byteCount < Self.manyByteCount ? 1 : Self.workerCount
        let pool: BlockingPool
        do throws(RingError) {
            pool = try BlockingPool(threadCount: count)
        } catch { throw ControlError(.failed, "the copy cannot start: \(error)") }
        defer { pool.close() }
        do {
            return try await perform(count, on: pool)
        } catch let error as CopyError {
            throw try await meaning(of: error)
        }
    }

    private func perform(_ count: Int, on pool: BlockingPool) async throws -> CopyPlan {
        let connected = await Self.run(on: pool) { image.connect(count) }
        let workers: [CopyWorker]
        switch connected {
        case .success(let made): workers = made
        case .failure(let error):
            try await image.checkIsHeld()
            throw Unreachable(
                message: "the image \(image.export) cannot be opened over NBD (\(error)); see "
                    + "where the service listens with `stillpoint status`")
        }
        try await image.checkIsHeld()
        let copier = try await Self.run(on: pool) {
            Result { () throws(CopyError) in
                let copier = try ImageCopier(wish, target: path, workers: workers)
                try copier.begin()
                return copier
            }
        }.get()
        guard copier.plan != .nothing else { return .nothing }
        try await ProgressBar.showing(
            "copy \(image.export)", of: work.byteCount,
            done: { work.doneByteCount.load(ordering: .relaxed) }
        ) {
            await withTaskGroup(of: Void.self) { group in
                for index in workers.indices {
                    group.addTask {
                        await Self.run(on: pool) { copier.copy(work, worker: index) }
                    }
                }
            }
        }
        try work.check()
        try await Self.run(on: pool) {
            Result { () throws(CopyError) in try copier.finish() }
        }.get()
        return copier.plan
    }

    /// Runs something that blocks; the pool has a thread for each job that is given to it.
    private static func run<Value: Sendable>(
        on pool: BlockingPool, _ body: @escaping @Sendable () -> Value
    ) async -> Value {
        guard let value = await pool.run(body) else {
            preconditionFailure("a pool of one copy takes the few jobs of that copy")
        }
        return value
    }

    /// A read that failed means something else when the image is not what it was.
    private func meaning(of error: CopyError) async throws -> ControlError {
        switch error.code {
        case .busy: return ControlError(.busy, error.message)
        case .unfit: return ControlError(.historyUnknown, error.message)
        case .unsuitable: return ControlError(.unsuitable, error.message)
        case .failed: return ControlError(.failed, error.message)
        case .unreadable:
            try await image.checkIsHeld()
            return ControlError(
                .failed,
                "\(image.export) could not be copied: \(error.message); run the same command again")
        }
    }
}
