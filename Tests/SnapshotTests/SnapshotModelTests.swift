import TestSupport
import Testing

@Suite(
    .serialized,
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Devices and images` {
    @Test func `hold what plain arrays hold after any mix of requests, takes, destroys and faults`()
        throws
    {
        var seeds = SeededGenerator.announced("randomised model")
        let seedCount = sized("seeds", soak: 20, otherwise: 1)
        let operationCount = sized("operations of a seed", soak: 100_000, otherwise: 5000)
        if !canUseFUSE || !canUseLoopDevices {
            print("randomised model: no faults, they need FUSE and loop devices")
        }
        var total = 0
        for number in 0..<seedCount {
            // The first is the one announced, so that a failing one can be given as such.
            let seed = number == 0 ? seeds.seed : seeds.next() % UInt64(UInt32.max)
            let began = monotonicSeconds()
            let run = try ModelRun(seed: seed)
            do { try run.run(operationCount) } catch {
                throw TestFailure("STILLPOINT_SEED=\(seed): \(error)")
            }
            total += run.counts.operations
            let counts = run.counts
            print(
                "STILLPOINT_SEED=\(seed): \(counts.operations) operations, \(counts.takes) takes, "
                    + "\(counts.races) takes and destroys under load, \(counts.faults) faults, "
                    + "\(counts.appends) appends, \(counts.lostImages) images lost as predicted, "
                    + "\(counts.survivors) images right, \(monotonicSeconds() - began) s")
        }
        print("randomised model: \(seedCount) seeds, \(total) operations, no difference")
    }
}
