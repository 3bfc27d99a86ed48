import Glibc
import Simulation

// simulate [--seconds N] [--seed S | --first-seed S] [--operations N] [--verbose 1]
//
// Runs seeds one after the other for N seconds (default 10), or one seed. Each seed's world lives
// for about N operations (default 5000). A violation is shown with the command that replays it;
// for a trap, --verbose names each seed before it runs.

/// Unbuffered, so that nothing is lost when an engine traps.
func say(_ text: String) {
    _ = (text + "\n").withCString { write(1, $0, strlen($0)) }
}

var seconds = 10
var onlySeed: UInt64?
var firstSeed: UInt64?
var operations = 5000
var isVerbose = false
var arguments = CommandLine.arguments.dropFirst()
while let name = arguments.popFirst() {
    guard let text = arguments.popFirst(), let value = UInt64(text) else {
        say("usage: simulate [--seconds N] [--seed S] [--operations N]")
        fatalError("\(name) needs a number")
    }
    switch name {
    case "--seconds": seconds = Int(value)
    case "--seed": onlySeed = value
    case "--first-seed": firstSeed = value
    case "--operations": operations = Int(value)
    case "--verbose": isVerbose = value != 0
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
say("first seed \(seed), \(operations) operations a seed")
repeat {
    if isVerbose { say("seed \(seed)") }
    let outcome = Simulator.run(seed: seed, operations: operations, coverage: coverage)
    operationCount += outcome.operationCount
    seedCount += 1
    if let violation = outcome.violation {
        violationCount += 1
        let fewest = Simulator.minimise(seed: seed, operations: operations)
        say("violation: \(violation)")
        say("    replay: simulate --seed \(seed) --operations \(fewest)")
    }
    seed += 1
} while onlySeed == nil && clock.now - start < .seconds(seconds)

let elapsed = clock.now - start
let (reached, unreached) = coverage.report
say("reached: \(reached.joined(separator: ", "))")
say("unreached: \(unreached.isEmpty ? "none" : unreached.joined(separator: ", "))")
let rate = Double(operationCount) / max(elapsed / .seconds(1), 0.001) * 60
say("\(seedCount) seeds, \(elapsed), \(Int(rate)) operations per minute")
say("\(operationCount) operations, \(violationCount) violations")
exit(violationCount == 0 ? 0 : 1)
