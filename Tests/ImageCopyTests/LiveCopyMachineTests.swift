import BlockModel
import CopyPlanning
import CopyTargets
import ImageCopy
import TestSupport
import Testing
import WriterLimits

@Suite struct `A copy in passes` {
    private typealias Pass = LiveCopyMachine.Pass

    /// Runs passes until something else than a pass is to be done.
    private static func decide(
        _ machine: inout LiveCopyMachine, _ passes: (Int) -> Pass
    ) -> (effect: LiveCopyMachine.Effect, passCount: Int) {
        _ = machine.begun(isResumed: false)
        _ = machine.cutMade()
        var effect = machine.firstCopied(byteCount: 512 << 20, seconds: 2)
        var count = 0
        while effect == .cut {
            #expect(machine.cutMade() == .copyChanges)
            count += 1
            #expect(machine.changesCopied(passes(count)) == .record)
            #expect(machine.recorded() == .forgetFormer)
            effect = machine.formerForgotten()
        }
        return (effect, count)
    }

    private static func pass(_ byteCount: UInt64, since: Double, took: Double) -> Pass {
        Pass(
            byteCount: byteCount, secondsSinceFormer: since, seconds: took, askSeconds: 0.005,
            readSeconds: took * 0.8)
    }

    @Test func `of a device that rests has one more pass, then a freeze`() {
        var machine = LiveCopyMachine(LiveCopyMachine.Limits())
        let decided = Self.decide(&machine) { _ in Self.pass(0, since: 2, took: 0.01) }
        #expect(decided.passCount == 1)
        #expect(decided.effect == .freeze(holdMilliseconds: 2000))
    }

    @Test func `goes on as long as passes shrink, though an earlier freeze would do`() throws {
        var machine = LiveCopyMachine(LiveCopyMachine.Limits())
        // 2700 writes a second of 4 KiB, copied at 256 MiB a second.
        var took = 2.0
        let decided = Self.decide(&machine) { _ in
            let byteCount = took * 2700 * 4096
            let since = took
            took = byteCount / Double(256 << 20) + 0.01
            return Self.pass(UInt64(byteCount), since: since, took: took)
        }
        #expect(decided.passCount >= 2)
        #expect(decided.effect == .freeze(holdMilliseconds: 2000))
        let estimate = try #require(machine.estimate)
        #expect(estimate.byteCount <= 1 << 20 && estimate.seconds < 0.2)
    }

    @Test func `that does not get shorter is given up with the figures, after so many passes`() {
        var machine = LiveCopyMachine(LiveCopyMachine.Limits(freezeSeconds: 0.1))
        let decided = Self.decide(&machine) { _ in Self.pass(256 << 20, since: 1, took: 1) }
        #expect(decided.passCount == 10)
        guard case .giveUp(.tooLong(let estimate, passCount: 10)) = decided.effect else {
            Issue.record("\(decided.effect)")
            return
        }
        #expect(estimate.seconds > 0.1 && estimate.byteCount > 200 << 20)
    }

    @Test func `slows writers down when passes do not get shorter, and only until the freeze`() {
        var limits = LiveCopyMachine.Limits(freezeSeconds: 0.1)
        limits.mayLimitWriters = true
        var machine = LiveCopyMachine(limits)
        let decided = Self.decide(&machine) { _ in Self.pass(256 << 20, since: 1, took: 1) }
        #expect(decided.passCount == 3 && decided.effect == .limitWriters)
        for outcome in [LiveCopyMachine.HoldOutcome.tooSlow, .kept] {
            #expect(machine.writersLimited() == .cut)
            _ = machine.cutMade()
            _ = machine.changesCopied(Self.pass(1 << 18, since: 1, took: 0.01))
            _ = machine.recorded()
            #expect(machine.formerForgotten() == .liftLimit)
            #expect(machine.limitLifted() == .freeze(holdMilliseconds: 200))
            #expect(machine.frozen() == .readFrozen)
            #expect(machine.frozenRead() == .release)
            #expect(machine.holdEnded(outcome) == (outcome == .kept ? .writeHeld : .limitWriters))
        }
    }

    @Test func `whose slow writers are still too fast is given up after as many passes again`() {
        var limits = LiveCopyMachine.Limits(freezeSeconds: 0.1)
        limits.mayLimitWriters = true
        var machine = LiveCopyMachine(limits)
        var (effect, count) = Self.decide(&machine) { _ in Self.pass(256 << 20, since: 1, took: 1) }
        #expect(effect == .limitWriters)
        effect = machine.writersLimited()
        while effect == .cut {
            _ = machine.cutMade()
            _ = machine.changesCopied(Self.pass(128 << 20, since: 1, took: 1))
            _ = machine.recorded()
            effect = machine.formerForgotten()
            count += 1
        }
        guard case .giveUp(.tooLong(_, passCount: 13)) = effect, count == 13 else {
            Issue.record("\(effect) after \(count)")
            return
        }
    }

    @Test func `that does not get shorter is frozen when the limit allows what is left`() {
        var machine = LiveCopyMachine(LiveCopyMachine.Limits(freezeSeconds: 5))
        let decided = Self.decide(&machine) { _ in Self.pass(256 << 20, since: 1, took: 1) }
        #expect(decided.passCount == 3)
        #expect(decided.effect == .freeze(holdMilliseconds: 10_000))
    }

    @Test(arguments: [
        LiveCopyMachine.HoldOutcome.tooSlow, .writtenBeside("vm1 (4096 bytes)"),
    ])
    func `makes a pass after a freeze that failed, and at most three freezes`(
        outcome: LiveCopyMachine.HoldOutcome
    ) {
        var machine = LiveCopyMachine(LiveCopyMachine.Limits())
        var (effect, _) = Self.decide(&machine) { _ in Self.pass(0, since: 1, took: 0.01) }
        for count in 1...3 {
            #expect(effect == .freeze(holdMilliseconds: 2000))
            #expect(machine.frozen() == .readFrozen)
            #expect(machine.frozenRead() == .release)
            effect = machine.holdEnded(outcome)
            guard count < 3 else { break }
            #expect(effect == .cut)
            _ = machine.cutMade()
            _ = machine.changesCopied(Self.pass(0, since: 1, took: 0.01))
            _ = machine.recorded()
            effect = machine.formerForgotten()
        }
        #expect(effect == .giveUp(.notHeld(outcome, freezeCount: 3)))
    }

    @Test func `that is interrupted goes on without another first cut`() {
        var machine = LiveCopyMachine(LiveCopyMachine.Limits())
        #expect(machine.begun(isResumed: true) == .copyFirst)
        #expect(machine.firstCopied(byteCount: 0, seconds: 0) == .cut)
    }

    // MARK: The model

    private static let seeds: Range<UInt64> = 0..<3000

    @Test func `equals the disk at the freeze, whoever writes and whatever is killed`() {
        var finished = 0
        for seed in Self.seeds {
            guard let isWrong = LiveCopyModel.isWrong(seed: seed, nil) else { continue }
            #expect(!isWrong, "seed \(seed)")
            finished += 1
        }
        #expect(finished > Self.seeds.count / 2)
    }

    @Test(arguments: LiveCopyMistake.allCases)
    func `is found wrong by the model when it is performed with a mistake`(
        mistake: LiveCopyMistake
    ) {
        #expect(Self.seeds.contains { LiveCopyModel.isWrong(seed: $0, mistake) == true })
    }

    @Test func `keeps what does not fit into memory in the target`() throws {
        let directory = try TemporaryDirectory()
        let target = try CopyTarget(opening: directory.path("target"), creates: true)
        try target.resize(to: 3 * 4096)
        let blocks = HeldBlocks(byteCountMax: 4096, beyond: target)
        let bytes = [UInt8](repeating: 7, count: 4096)
        try bytes.withUnsafeBytes { buffer in
            let start = try #require(buffer.baseAddress)
            try blocks.write(start, 4096, at: 0)
            try blocks.write(start, 4096, at: 8192)
        }
        try blocks.zero(ByteRange(offset: 4096, length: 4096))
        #expect(try readFile(directory.path("target"), 0..<4096).allSatisfy { $0 == 0 })
        #expect(try readFile(directory.path("target"), 8192..<12288).allSatisfy { $0 == 7 })
        try blocks.flush()
        #expect(try readFile(directory.path("target"), 0..<4096).allSatisfy { $0 == 7 })
        #expect(try readFile(directory.path("target"), 4096..<8192).allSatisfy { $0 == 0 })
    }

    @Test func `keeps what does not fit into memory in a spill file, if there is one`() throws {
        let directory = try TemporaryDirectory()
        let target = try CopyTarget(opening: directory.path("target"), creates: true)
        let count = 64
        try target.resize(to: UInt64(count) * 4096)
        let spill = try #require(SpillFile(in: directory.root, notOn: []))
        let blocks = HeldBlocks(byteCountMax: 4096, spill: spill, beyond: target)
        for _ in 0..<2 {
            for block in (0..<count).reversed() {
                try [UInt8](repeating: UInt8(block + 1), count: 4096).withUnsafeBytes { buffer in
                    try blocks.write(
                        try #require(buffer.baseAddress), 4096, at: UInt64(block) * 4096)
                }
            }
            #expect(try readFile(directory.path("target"), 0..<count * 4096).allSatisfy { $0 == 0 })
            try blocks.flush()
            for block in 0..<count {
                #expect(
                    try readFile(directory.path("target"), block * 4096..<(block + 1) * 4096)
                        .allSatisfy { $0 == UInt8(block + 1) })
            }
            // What was flushed is not kept for the next time.
            try blocks.zero(ByteRange(offset: 0, length: UInt64(count) * 4096))
            try blocks.flush()
        }
    }

    @Test(.enabled(if: canUseLoopDevices, "loop devices need root"))
    func `makes no spill file on a device that is to be frozen`() throws {
        let directory = try TemporaryDirectory()
        let file = directory.path("disk")
        try makeSparseFile(file, byteCount: 16 * mebibyte)
        let loop = try LoopDevice(over: file, sectorSize: 512)
        let mounted = try MountedDisk(onDevice: loop.path)
        #expect(SpillFile(in: mounted.path(""), notOn: [loop.path]) == nil)
        #expect(SpillFile(in: mounted.path(""), notOn: [directory.path("gone")]) == nil)
        #expect(SpillFile(in: mounted.path(""), notOn: []) != nil)
        #expect(SpillFile(in: directory.root, notOn: [loop.path]) != nil)
    }

    // MARK: Slower writers

    @Test func `reads the limits of a disk among others, and sets its own`() {
        let text = """
            8:0 rbps=max wbps=1048576 riops=max wiops=max
            8:16 rbps=1 wbps=max riops=max wiops=2
            """
        #expect(WriteLimitLine.limit(ofDisk: "8:0", in: text) == 1_048_576)
        #expect(WriteLimitLine.limit(ofDisk: "8:16", in: text) == nil)
        #expect(WriteLimitLine.limit(ofDisk: "8:1", in: text) == nil)
        #expect(WriteLimitLine.limit(ofDisk: "8:0", in: "") == nil)
        #expect(WriteLimitLine.setting(1 << 20, ofDisk: "8:0") == "8:0 wbps=1048576")
        #expect(WriteLimitLine.setting(nil, ofDisk: "8:0") == "8:0 wbps=max")
    }
}
