import Foundation

/// Runs each job on a thread of its own, so that bodies which block do not occupy threads of
/// Swift's pool.
private final class ThreadForEachJob: TaskExecutor {
    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        let thread = Thread { job.runSynchronously(on: self.asUnownedTaskExecutor()) }
        thread.stackSize = 4 << 20
        thread.start()
    }
}

/// Runs `body` with `count` seeds, four at a time: most of a run is waiting for a service. The
/// first seed is that of `seeds`, so that a failing one can be given as STILLPOINT_SEED.
///
/// Throws the first failure, with the seed that shows it again.
package func runSeeds(
    _ count: Int, from seeds: SeededGenerator, _ body: @escaping @Sendable (UInt64) throws -> Void
) async throws {
    var seeds = seeds
    let all = (0..<count).map { $0 == 0 ? seeds.seed : seeds.next() % UInt64(UInt32.max) }
    let executor = ThreadForEachJob()
    try await withThrowingTaskGroup(of: Void.self) { group in
        for (number, seed) in all.enumerated() {
            if number >= 4 { try await group.next() }
            group.addTask(executorPreference: executor) {
                do { try body(seed) } catch {
                    throw TestFailure("STILLPOINT_SEED=\(seed): \(error)")
                }
            }
        }
        try await group.waitForAll()
    }
}
