import Simulation
import Testing

@Suite struct `Simulated worlds` {
    @Test(arguments: 1...40 as ClosedRange<UInt64>)
    func `no world of these seeds sees a violation`(seed: UInt64) {
        let outcome = Simulator.run(seed: seed, operations: 2500, coverage: Coverage())
        #expect(outcome.violation == nil, "replay: simulate --seed \(seed) --operations 2500")
        #expect(outcome.operationCount >= 2500)
    }

    @Test(arguments: [7, 8, 9, 10, 11, 12] as [UInt64])
    func `a seed gives the same world every time`(seed: UInt64) {
        let first = Simulator.run(seed: seed, operations: 1000, coverage: Coverage())
        let second = Simulator.run(seed: seed, operations: 1000, coverage: Coverage())
        #expect(first.operationCount == second.operationCount)
    }
}
