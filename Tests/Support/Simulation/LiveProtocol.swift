// A live copy as a model: writes that are issued, land and complete, programs that mark them, a
// copy that takes marks and reads what they name, a freeze, and a kill. All orders of all steps are
// looked at.
//
// What must hold at the end
// - The copy equals the disk.
// - Every block that was written is known to have changed, at the latest by the first take that
//   began after its writer was notified.

/// How marks are set and taken: the protocol that is built, or one with a planted bug.
package enum LiveProtocol: String, CaseIterable, Sendable {
    case built = "as built"
    case queueMarksOnly = "marks when a write is queued only"
    case readBeforeClear = "a block is read before its mark is cleared"
    case twoInstances = "two instances of the completion program"
    case flipWithoutWait = "two bitmaps, changed over without a wait"

    /// Instances of the program on completions: the kernel skips one that runs already.
    var instanceCount: Int {
        switch self {
        case .built, .queueMarksOnly, .readBeforeClear: 3
        case .twoInstances: 2
        // Another instance, or a mark at issue, would often repeat what came too late.
        case .flipWithoutWait: 1
        }
    }
    var marksAtIssue: Bool { self != .twoInstances && self != .flipWithoutWait }
    var marksAtCompletion: Bool { self != .queueMarksOnly }
}

/// Writes of a model: to which block each goes, and where its completion runs.
package struct LiveScenario: Sendable {
    package struct Write: Sendable {
        package let block: Int
        package let processor: Int
        /// 0 task, 1 softirq, 2 hardirq: the later interrupt the earlier.
        package let level: Int

        package init(block: Int, processor: Int, level: Int) {
            self.block = block
            self.processor = processor
            self.level = level
        }
    }

    package let writes: [Write]
    /// Passes before the freeze, the full one not counted.
    package let passCount: Int
    /// Service and copy are killed once, at any step.
    package let canBeKilled: Bool

    package init(writes: [Write], passCount: Int, canBeKilled: Bool) {
        self.writes = writes
        self.passCount = passCount
        self.canBeKilled = canBeKilled
    }
}

/// What looking at all orders came to.
package struct LiveOutcome: Sendable {
    package let stateCount: Int
    /// What was violated, with the steps that lead there; nil: nothing.
    package let violation: String?
}

/// Looks at all orders of a scenario's steps.
package enum LiveModel {
    /// Explores; stops at the first violation.
    package static func explore(
        _ scenario: LiveScenario, _ marking: LiveProtocol
    ) -> LiveOutcome {
        let first = LiveState(scenario)
        var seen: Set<LiveState> = [first]
        var paths: [(state: LiveState, steps: [String])] = [(first, [])]
        while let (state, steps) = paths.popLast() {
            for (name, next) in state.successors(scenario, marking) {
                if let violation = next.violation {
                    return LiveOutcome(
                        stateCount: seen.count,
                        violation: violation + ": " + (steps + [name]).joined(separator: ", "))
                }
                if seen.insert(next).inserted { paths.append((next, steps + [name])) }
            }
        }
        return LiveOutcome(stateCount: seen.count, violation: nil)
    }
}
