/// Runs worlds from seeds.
package enum Simulator {
    /// What a run found.
    package struct Outcome: Sendable {
        /// Events given to engines.
        package let operationCount: Int
        /// What was violated, or nil.
        package let violation: String?
    }

    /// Runs the world of `seed` for about `operations` operations, then winds it down.
    package static func run(seed: UInt64, operations: Int, coverage: Coverage) -> Outcome {
        if let violation = StorageWorld(seed: seed).run(operations: min(operations, 400)) {
            return Outcome(operationCount: 0, violation: violation)
        }
        let world = World(seed: seed, coverage: coverage)
        let violation = world.run(operations: operations)
        return Outcome(operationCount: world.operations, violation: violation)
    }

    /// Fewest operations, near enough, after which the world of `seed` is already in violation.
    package static func minimise(seed: UInt64, operations: Int) -> Int {
        var low = 0
        var high = operations
        while high - low > max(1, operations / 1000) {
            let middle = (low + high) / 2
            if run(seed: seed, operations: middle, coverage: Coverage()).violation != nil {
                high = middle
            } else {
                low = middle
            }
        }
        return high
    }
}
