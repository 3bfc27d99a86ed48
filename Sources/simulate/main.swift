import Simulation

// simulate [--seconds N] [--seed S | --first-seed S] [--operations N]
//
// Runs seeds one after the other for N seconds (default 10), or one seed. Each seed's world lives
// for about N operations (default 5000). A violation is shown with the command that replays it.

var seconds = 10
var onlySeed: UInt64?
var firstSeed: UInt64?
var operations = 5000
var arguments = CommandLine.arguments.dropFirst()
while let name = arguments.popFirst() {
    guard let text = arguments.popFirst(), let value = UInt64(text) else {
        print("usage: simulate [--seconds N] [--seed S] [--operations N]")
        fatalError("\(name) needs a number")
    }
    switch name {
    case "--seconds": seconds = Int(value)
    case "--seed": onlySeed = value
    case "--first-seed": firstSeed = value
    case "--operations": operations = Int(value)
    default: fatalError("there is no option \(name)")
    }
}

let coverage = Coverage()
let clock = ContinuousClock()
let start = clock.now
var seed = onlySeed ?? firstSeed ?? UInt64.random(in: 1...1_000_000_000)
var operationCount = 0
var violationCount = 0
var seedCount = 0
print("first seed \(seed), \(operations) operations a seed")
repeat {
    let outcome = Simulation.run(seed: seed, operations: operations, coverage: coverage)
    operationCount += outcome.operationCount
    seedCount += 1
    if let violation = outcome.violation {
        violationCount += 1
        let fewest = Simulation.minimise(seed: seed, operations: operations)
        print("violation: \(violation)")
        print("    replay: simulate --seed \(seed) --operations \(fewest)")
    }
    seed += 1
} while onlySeed == nil && clock.now - start < .seconds(seconds)

let elapsed = clock.now - start
let (reached, unreached) = coverage.report
print("reached: \(reached.joined(separator: ", "))")
print("unreached: \(unreached.isEmpty ? "none" : unreached.joined(separator: ", "))")
let rate = Double(operationCount) / max(elapsed / .seconds(1), 0.001) * 60
print("\(seedCount) seeds, \(elapsed), \(Int(rate)) operations per minute")
print("\(operationCount) operations, \(violationCount) violations")
precondition(violationCount == 0, "the simulation found violations")
