import Simulation
import Testing

@Suite struct `Model of a live copy` {
    private typealias Write = LiveScenario.Write

    /// Two writes of one block and one of another, on processors of their own.
    private static func apart(canBeKilled: Bool) -> LiveScenario {
        LiveScenario(
            writes: [
                Write(block: 0, processor: 0, level: 0), Write(block: 0, processor: 1, level: 0),
            ], passCount: 1, canBeKilled: canBeKilled)
    }

    /// Completions on one processor that interrupt each other: task, softirq, hardirq.
    private static let nested = LiveScenario(
        writes: [
            Write(block: 0, processor: 0, level: 0), Write(block: 0, processor: 0, level: 1),
            Write(block: 1, processor: 0, level: 2),
        ], passCount: 1, canBeKilled: false)

    @Test(arguments: [false, true])
    func `no order of writes, takes, passes and a kill makes the copy differ`(
        canBeKilled: Bool
    ) {
        let outcome = LiveModel.explore(Self.apart(canBeKilled: canBeKilled), .built)
        #expect(outcome.violation == nil)
        #expect(outcome.stateCount > 1000)
    }

    @Test func `completions that interrupt each other lose no mark`() {
        let outcome = LiveModel.explore(Self.nested, .built)
        #expect(outcome.violation == nil)
        #expect(outcome.stateCount > 1000)
    }

    @Test func `marks at the queue alone are found out`() {
        #expect(
            LiveModel.explore(Self.apart(canBeKilled: false), .queueMarksOnly).violation != nil)
    }

    @Test func `reading before the mark is cleared is found out`() {
        #expect(
            LiveModel.explore(Self.apart(canBeKilled: false), .readBeforeClear).violation != nil)
    }

    @Test func `two instances of the completion program are found out`() {
        #expect(LiveModel.explore(Self.nested, .twoInstances).violation != nil)
    }

    @Test func `changing bitmaps over without a wait is found out`() {
        #expect(
            LiveModel.explore(Self.apart(canBeKilled: false), .flipWithoutWait).violation != nil)
    }
}
