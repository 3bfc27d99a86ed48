import CopyPlanning
import ImageCopy
import TestSupport

// A disk that is written to, programs that mark, a service that cuts, and a copy that
// `LiveCopyMachine` leads and that may be killed at any step: what the copy holds at the end is
// compared with the disk as it was at the freeze. The parts outside of the machine can have a
// mistake, which must be found.

/// A mistake of whoever performs what the machine decides.
enum LiveCopyMistake: String, CaseIterable, Sendable {
    case asksSinceTheNewestCut = "what changed is asked since the newest cut"
    case asksBeforeTheCut = "what changed is asked before the cut is made"
    case forgetsTheHeld = "what was read while frozen is not written"
    case readsAfterRelease = "what is left is read after the release"
    case recordsTooEarly = "a record names a cut before the target has what changed until then"
    case resumesFromNewCut = "a copy that was interrupted goes on from a cut of today"
    case ignoresWriters = "a release is not refused although somebody wrote"
    case keepsOldBlocks = "what a freeze that failed has read is written later"
}

/// The disk, its writers and the service.
struct LiveCopyWorld {
    private struct Write {
        var block: Int
        var value: Int
        var isLanded = false
    }

    static let blockCount = 6
    var generator: SeededGenerator
    private(set) var disk = [Int](repeating: 0, count: blockCount)
    private var writes: [Write] = []
    private var marks: Set<Int> = []
    private var changedIn = [Int](repeating: 0, count: blockCount)
    private var epoch = 1
    private var lastValue = 0
    private(set) var isFrozen = false
    private(set) var atFreeze: [Int] = []
    /// Somebody writes beside the filesystem.
    let hasRawWriter: Bool
    private var budget = 60

    init(_ generator: SeededGenerator) {
        self.generator = generator
        hasRawWriter = Int.random(in: 0..<3, using: &self.generator) == 0
    }

    mutating func chance(_ share: Int) -> Bool {
        Int.random(in: 0..<share, using: &generator) == 0
    }

    /// Time passes: writes begin, land and complete.
    mutating func pass() {
        while chance(2) {
            switch Int.random(in: 0..<3, using: &generator) {
            case 0 where budget > 0 && (!isFrozen || hasRawWriter && chance(4)):
                budget -= 1
                lastValue += 1
                let block = Int.random(in: 0..<Self.blockCount, using: &generator)
                marks.insert(block)
                writes.append(Write(block: block, value: lastValue))
            case 1: land()
            default: complete()
            }
        }
    }

    private mutating func land() {
        guard let index = writes.indices.randomElement(using: &generator),
            !writes[index].isLanded
        else { return }
        writes[index].isLanded = true
        disk[writes[index].block] = writes[index].value
    }

    private mutating func complete() {
        guard let index = writes.indices.randomElement(using: &generator), writes[index].isLanded
        else { return }
        marks.insert(writes.remove(at: index).block)
    }

    private mutating func take() {
        for block in marks { changedIn[block] = epoch }
        marks = []
    }

    /// Makes a cut; its number.
    mutating func cut() -> Int {
        take()
        epoch += 1
        return epoch - 1
    }

    mutating func freeze() -> Int {
        // Nothing is in flight when a freeze returns.
        for write in writes {
            if !write.isLanded { disk[write.block] = write.value }
            marks.insert(write.block)
        }
        writes = []
        isFrozen = true
        let cut = cut()
        atFreeze = disk
        return cut
    }

    mutating func thaw() { isFrozen = false }

    mutating func changed(since cut: Int) -> [Int] {
        take()
        return changedIn.indices.filter { changedIn[$0] > cut }
    }
}

/// A copy over one or several runs.
struct LiveCopyModel {
    private struct Killed: Error {}
    private enum Outcome { case finished, gaveUp }

    /// What outlives a kill.
    private struct Record {
        var to: Int?
        var done: Set<Int> = []
    }

    private let mistake: LiveCopyMistake?
    private var world: LiveCopyWorld
    private var target = [Int](repeating: -1, count: LiveCopyWorld.blockCount)
    private var record = Record()
    private var killsLeft = 2
    private var held: [(block: Int, value: Int)] = []
    private var former = 0
    private var newest = 0
    private var last = 0

    private init(_ generator: SeededGenerator, _ mistake: LiveCopyMistake?) {
        world = LiveCopyWorld(generator)
        self.mistake = mistake
    }

    /// Whether a finished copy is not the disk as it was frozen; nil when it was given up.
    static func isWrong(seed: UInt64, _ mistake: LiveCopyMistake?) -> Bool? {
        var model = LiveCopyModel(SeededGenerator(seed: seed), mistake)
        for _ in 0..<4 {
            do {
                switch try model.run() {
                case .finished: return model.target != model.world.atFreeze
                case .gaveUp: return nil
                }
            } catch {
                // The guardian, or the limit of the hold.
                model.world.thaw()
                model.held = []
            }
        }
        return nil
    }

    private mutating func step() throws {
        world.pass()
        if killsLeft > 0, world.chance(40) {
            killsLeft -= 1
            throw Killed()
        }
    }

    private mutating func run() throws -> Outcome {
        let isResumed = record.to != nil && mistake != .resumesFromNewCut
        var limits = LiveCopyMachine.Limits(freezeSeconds: world.chance(3) ? 0.05 : 1)
        limits.mayLimitWriters = world.chance(2)
        var machine = LiveCopyMachine(limits)
        if isResumed { former = record.to ?? 0 }
        var isFirst = !isResumed
        var effect = machine.begun(isResumed: isResumed)
        while true {
            try step()
            switch effect {
            case .cut:
                if mistake != .asksBeforeTheCut || isFirst { newest = world.cut() }
                if isFirst { former = newest }
                isFirst = false
                effect = machine.cutMade()
            case .copyFirst:
                try copyFirst()
                effect = machine.firstCopied(byteCount: 6 << 20, seconds: 1)
            case .copyChanges: effect = machine.changesCopied(try copyChanges())
            case .record:
                record = Record(to: newest, done: Set(target.indices))
                effect = machine.recorded()
            case .forgetFormer: effect = machine.formerForgotten()
            case .limitWriters:
                try step()
                effect = machine.writersLimited()
            case .liftLimit:
                try step()
                effect = machine.limitLifted()
            case .freeze:
                last = world.freeze()
                if mistake != .keepsOldBlocks { held = [] }
                effect = machine.frozen()
            case .readFrozen:
                if mistake == .readsAfterRelease { world.thaw() }
                for block in world.changed(since: former) {
                    try step()
                    held.append((block, world.disk[block]))
                }
                effect = machine.frozenRead()
            case .release:
                let isWritten = !world.changed(since: last).isEmpty
                world.thaw()
                effect = machine.holdEnded(
                    isWritten && mistake != .ignoresWriters && mistake != .readsAfterRelease
                        ? .writtenBeside("") : world.chance(5) ? .tooSlow : .kept)
            case .writeHeld:
                for (block, value) in mistake == .forgetsTheHeld ? [] : held {
                    try step()
                    target[block] = value
                }
                effect = machine.heldWritten()
            case .complete: effect = machine.completed()
            case .finished: return .finished
            case .giveUp: return .gaveUp
            }
        }
    }

    private mutating func copyFirst() throws {
        if record.to != former {
            record = Record(to: former, done: mistake == .resumesFromNewCut ? record.done : [])
        }
        for block in target.indices where !record.done.contains(block) {
            try step()
            target[block] = world.disk[block]
            try step()
            record.done.insert(block)
        }
    }

    private mutating func copyChanges() throws -> LiveCopyMachine.Pass {
        let found = world.changed(since: mistake == .asksSinceTheNewestCut ? newest : former)
        if mistake == .asksBeforeTheCut {
            try step()
            newest = world.cut()
        }
        if mistake == .recordsTooEarly { record.to = newest }
        // As some are, it goes by memory.
        var read: [(block: Int, value: Int)] = []
        for block in found {
            try step()
            read.append((block, world.disk[block]))
        }
        for (block, value) in read {
            try step()
            target[block] = value
        }
        former = newest
        return LiveCopyMachine.Pass(
            byteCount: UInt64(found.count) << 20, secondsSinceFormer: 1, seconds: 0.3,
            askSeconds: 0.01, readSeconds: 0.2)
    }
}
