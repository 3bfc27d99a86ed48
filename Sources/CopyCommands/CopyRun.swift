internal import BlockModel
internal import ClientSupport
internal import ControlDocuments
package import CopyPlanning
internal import CopyTargets
internal import ImageCopy
internal import NBDAccess
internal import RingIO
internal import Synchronization

/// The performance of one copy: its threads, its progress bar and what its failures mean.
struct CopyRun {
    let image: CopySource
    let request: CopyRequest
    let path: String
    let changes: RangeSpool?
    let options: CopyOptions
    /// The snapshot was made for this copy, and goes with it.
    var isOwn = false
    var report = ProgressReport.bar

    /// Connections, one thread each: the service's side keeps a core busy with fewer.
    private static let workerCount = 4
    /// Below this many bytes one connection does.
    private static let manyByteCount: UInt64 = 4 << 20
    /// How often the record of a full copy says how far it is.
    private static let progressInterval = Duration.seconds(5)

    /// Copies; returns the copier and what the user should know.
    func perform() async throws -> (copier: ImageCopier, notes: [String]) {
        let byteCount = changes?.byteCount ?? request.cut.size
        let count = byteCount < Self.manyByteCount ? 1 : Self.workerCount
        let pool: BlockingPool
        do throws(RingError) {
            // One more records how far the others are.
            pool = try BlockingPool(threadCount: count + 1)
        } catch { throw ControlError(.failed, "the copy cannot start: \(error)") }
        defer { pool.close() }
        do {
            return try await perform(count, on: pool)
        } catch let error as CopyError {
            throw try await meaning(of: error)
        }
    }

    private func perform(
        _ count: Int, on pool: BlockingPool
    ) async throws -> (copier: ImageCopier, notes: [String]) {
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
        let (copier, said) = try await Self.run(on: pool) {
            Result { () throws(CopyError) in
                let copier = try ImageCopier(
                    request, target: path, changes: changes, options: options, workers: workers)
                return (copier, try copier.begin())
            }
        }.get()
        let notes = copier.notes + said
        guard copier.plan != .nothing else { return (copier, notes) }
        let work = copier.work
        let wayOn = wayOn
        let interruption = Interruption.whenAsked {
            let done = work.doneByteCount.load(ordering: .relaxed)
            work.failed(
                CopyError(
                    .interrupted,
                    "interrupted after \(sizeText(done)) of \(sizeText(work.byteCount)); \(wayOn)"))
        }
        defer { interruption.withdraw() }
        let begin = CopyBeginDocument(
            device: image.device, snapshot: image.snapshot, target: path,
            since: request.since?.name, bytes: work.byteCount)
        try await CopyReport.reporting(
            begin, to: image.client, done: { work.doneByteCount.load(ordering: .relaxed) }
        ) {
            try await copyAndFinish(copier, on: pool)
        }
        return (copier, notes)
    }

    private func copyAndFinish(_ copier: ImageCopier, on pool: BlockingPool) async throws {
        let work = copier.work
        try await ProgressBar.showing(
            "copy \(image.export)", of: work.byteCount, report,
            done: { work.doneByteCount.load(ordering: .relaxed) }
        ) {
            await copyAll(copier, on: pool)
        }
        try await Self.run(on: pool) {
            Result { () throws(CopyError) in
                do throws(CopyError) {
                    try work.check()
                } catch {
                    // Why it failed is the news, not whether this can be recorded as well.
                    try? copier.recordFailure()
                    throw error
                }
                try copier.finish()
            }
        }.get()
    }

    /// How to continue an interrupted copy.
    private var wayOn: String {
        if changes != nil { return "run the same command again to finish the copy" }
        // To continue, it needs the very same image.
        return isOwn
            ? "its snapshot is destroyed with this command, so the next full copy starts over (a copy "
                + "of a snapshot that is held, DEVICE@SNAPSHOT, would continue)"
            : "run the same command again to continue, as long as snapshot \(image.snapshot) is held"
    }

    private func copyAll(_ copier: ImageCopier, on pool: BlockingPool) async {
        await withTaskGroup(of: Void.self) { group in
            group.addTask {
                // Cancelled when the work is done.
                while (try? await Task.sleep(for: Self.progressInterval)) != nil {
                    await Self.run(on: pool) {
                        do throws(CopyError) {
                            try copier.recordProgress()
                        } catch {
                            copier.work.failed(error)
                        }
                    }
                }
            }
            await withTaskGroup(of: Void.self) { workers in
                for index in 0..<copier.workerCount {
                    workers.addTask { await Self.run(on: pool) { copier.copy(index) } }
                }
            }
            group.cancelAll()
        }
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
        guard error.code == .unreadable else { return ControlError(error) }
        try await image.checkIsHeld()
        return ControlError(
            .failed,
            "\(image.export) could not be copied: \(error.message); run the same command again")
    }
}

extension ControlError {
    /// What an error of a copy means to scripts.
    package init(_ error: CopyError) {
        let code: Code =
            switch error.code {
            case .busy: .busy
            case .unfit: .generationUnknown
            case .missing: .notFound
            case .unsuitable: .unsuitable
            case .failed, .unreadable, .interrupted: .failed
            }
        self.init(code, error.message)
    }
}
