// One moment of the model in `LiveProtocol.swift`.

/// One moment of a live copy.
struct LiveState: Hashable {
    enum Stage: UInt8 { case idle, issued, landed, completing, notified }

    /// A completion whose programs run.
    struct Frame: Hashable {
        var write: Int
        var level: Int
        var instance = 0
        var isInside = false
        /// Which bitmap it was instructed to mark in.
        var target = 0
    }

    enum Phase: Hashable {
        /// The full copy, from a block on.
        case full(Int)
        case pause
        case loaded, folded
        /// Reads what the take named; cleared before, as built.
        case reading
        /// The bug: reads first.
        case readingUncleared
        case done
    }

    var stages: [Stage]
    var disk: [UInt8]
    var copy: [UInt8]
    var bitmaps: [UInt8] = [0, 0]
    var index = 0
    var stacks: [[Frame]] = [[], [], []]
    var phase = Phase.full(0)
    var loaded: UInt8 = 0
    var folded: UInt8 = 0
    /// Blocks that the pass has yet to read.
    var pending: UInt8 = 0
    var passesLeft: Int
    var isFrozen = false
    var wasKilled = false
    /// Writes whose writer was notified before the take began.
    var completedAtTake: UInt8 = 0
    var violation: String?

    static let blockCount = 2

    init(_ scenario: LiveScenario) {
        stages = scenario.writes.map { _ in .idle }
        disk = Array(repeating: 0, count: Self.blockCount)
        copy = Array(repeating: 255, count: Self.blockCount)
        passesLeft = scenario.passCount
    }

    /// All that can happen next.
    func successors(
        _ scenario: LiveScenario, _ marking: LiveProtocol
    ) -> [(String, LiveState)] {
        guard phase != .done else { return [] }
        var found: [(String, LiveState)] = []
        for index in stages.indices {
            if let next = writeGoesOn(index, scenario.writes[index], marking) { found.append(next) }
        }
        for processor in stacks.indices {
            if let next = programGoesOn(processor, scenario, marking) { found.append(next) }
        }
        if let next = copyGoesOn(scenario, marking) { found.append(next) }
        if scenario.canBeKilled, !wasKilled { found.append(("kill", killed())) }
        return found
    }

    private static func bit(_ block: Int) -> UInt8 { 1 << UInt8(block) }

    // -- writes

    private func writeGoesOn(
        _ index: Int, _ write: LiveScenario.Write, _ marking: LiveProtocol
    ) -> (String, LiveState)? {
        var next = self
        switch stages[index] {
        case .idle:
            guard !isFrozen else { return nil }
            next.stages[index] = .issued
            if marking.marksAtIssue { next.bitmaps[self.index] |= Self.bit(write.block) }
            return ("issue \(index)", next)
        case .issued:
            next.stages[index] = .landed
            next.disk[write.block] = UInt8(index + 1)
            return ("land \(index)", next)
        case .landed:
            guard marking.marksAtCompletion else {
                next.stages[index] = .notified
                return ("tell \(index)", next)
            }
            let stack = stacks[write.processor]
            guard (stack.last?.level ?? -1) < write.level else { return nil }
            next.stages[index] = .completing
            next.stacks[write.processor].append(Frame(write: index, level: write.level))
            return ("complete \(index)", next)
        case .completing, .notified: return nil
        }
    }

    /// The program on top of a processor's stack goes one step on.
    private func programGoesOn(
        _ processor: Int, _ scenario: LiveScenario, _ marking: LiveProtocol
    ) -> (String, LiveState)? {
        guard var frame = stacks[processor].last else { return nil }
        var next = self
        if frame.isInside {
            next.bitmaps[frame.target] |= Self.bit(scenario.writes[frame.write].block)
            frame.isInside = false
            frame.instance += 1
        } else if frame.instance == marking.instanceCount {
            next.stacks[processor].removeLast()
            next.stages[frame.write] = .notified
            return ("tell \(frame.write)", next)
        } else if stacks[processor].dropLast().contains(where: {
            $0.isInside && $0.instance == frame.instance
        }) {
            // The kernel skips a program that runs already on this processor.
            frame.instance += 1
        } else {
            frame.isInside = true
            frame.target = index
        }
        next.stacks[processor][next.stacks[processor].count - 1] = frame
        return ("program \(frame.write)", next)
    }

    // -- the copy

    private func copyGoesOn(
        _ scenario: LiveScenario, _ marking: LiveProtocol
    ) -> (String, LiveState)? {
        var next = self
        switch phase {
        case .full(let block):
            next.copy[block] = disk[block]
            next.phase = block + 1 == Self.blockCount ? .pause : .full(block + 1)
            return ("copy \(block)", next)
        case .pause:
            if passesLeft == 0, !isFrozen {
                // A freeze waits for the writes that are under way.
                guard stages.allSatisfy({ $0 == .idle || $0 == .notified }) else { return nil }
                next.isFrozen = true
                return ("freeze", next)
            }
            next.beginTake(marking)
            return ("load", next)
        case .loaded:
            next.folded |= loaded
            next.pending |= loaded
            next.phase = marking == .readBeforeClear ? .readingUncleared : .folded
            return ("fold", next)
        case .folded:
            next.clear(marking)
            next.phase = .reading
            next.checkTake(scenario)
            return ("clear", next)
        case .readingUncleared:
            guard let block = firstPending else {
                next.clear(marking)
                next.passEnded(scenario)
                return ("clear", next)
            }
            next.copy[block] = disk[block]
            next.pending &= ~Self.bit(block)
            return ("read \(block)", next)
        case .reading:
            guard let block = firstPending else {
                next.passEnded(scenario)
                return ("pass ends", next)
            }
            next.copy[block] = disk[block]
            next.pending &= ~Self.bit(block)
            return ("read \(block)", next)
        case .done: return nil
        }
    }

    private var firstPending: Int? { pending == 0 ? nil : pending.trailingZeroBitCount }

    private mutating func beginTake(_ marking: LiveProtocol) {
        completedAtTake = 0
        for (index, stage) in stages.enumerated() where stage == .notified {
            completedAtTake |= Self.bit(index)
        }
        if marking == .flipWithoutWait { index ^= 1 }
        loaded = bitmaps[marking == .flipWithoutWait ? index ^ 1 : index]
        phase = .loaded
    }

    private mutating func clear(_ marking: LiveProtocol) {
        bitmaps[marking == .flipWithoutWait ? index ^ 1 : index] &= ~loaded
    }

    /// Completions reported before the take began are known after it.
    private mutating func checkTake(_ scenario: LiveScenario) {
        for (index, write) in scenario.writes.enumerated()
        where completedAtTake & Self.bit(index) != 0 && folded & Self.bit(write.block) == 0 {
            violation = "write \(index) is not known to have changed block \(write.block)"
        }
    }

    private mutating func passEnded(_ scenario: LiveScenario) {
        guard isFrozen else {
            passesLeft -= 1
            phase = .pause
            return
        }
        phase = .done
        if copy != disk { violation = "the copy is \(copy), the disk \(disk)" }
        checkTake(scenario)
    }

    /// Service and copy end and begin again: the change map, the marks and the record of the copy
    /// are left, and filesystems are thawed. A full copy that was not done begins again; else
    /// everything that changed since its base is read once more.
    private func killed() -> LiveState {
        var next = self
        next.wasKilled = true
        next.isFrozen = false
        next.loaded = 0
        next.passesLeft = max(1, passesLeft)
        if case .full = phase {
            next.phase = .full(0)
        } else {
            next.phase = .reading
            next.pending = folded
        }
        return next
    }
}
