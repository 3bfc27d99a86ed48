import TestSupport
import Testing

@Suite(
    .serialized,
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Devices and images` {
    @Test func `hold what plain arrays hold after any mix of requests, takes, destroys and faults`()
        async throws
    {
        let seeds = SeededGenerator.announced("randomised model")
        let seedCount = sized("seeds", soak: 20, otherwise: 1)
        let operationCount = sized("operations of a seed", soak: 100_000, otherwise: 5000)
        if !canUseFUSE || !canUseLoopDevices {
            print("randomised model: no faults, they need FUSE and loop devices")
        }
        try await runSeeds(seedCount, from: seeds) { seed in
            let began = monotonicSeconds()
            let run = try ModelRun(seed: seed)
            try run.run(operationCount)
            let counts = run.counts
            print(
                "STILLPOINT_SEED=\(seed): \(counts.operations) operations, \(counts.takes) takes, "
                    + "\(counts.races) takes and destroys under load, \(counts.faults) faults, "
                    + "\(counts.appends) appends, \(counts.lostImages) images lost as predicted, "
                    + "\(counts.survivors) images right, \(monotonicSeconds() - began) s")
        }
        print("randomised model: \(seedCount) seeds, no difference")
    }
}
