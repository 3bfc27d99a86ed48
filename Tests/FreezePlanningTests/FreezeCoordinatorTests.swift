import BlockModel
import FreezePlanning
import Testing

@Suite struct `Filesystems around a cut` {
    private typealias Effect = FreezeCoordinator.Effect

    private func coordinator(_ count: Int, isBestEffort: Bool = false) -> FreezeCoordinator {
        FreezeCoordinator(
            count: count, isBestEffort: isBestEffort, freezeLimitNanoseconds: 10,
            thawLimitNanoseconds: 5)
    }

    private func drain(_ freezing: inout FreezeCoordinator) -> [Effect] {
        var all: [Effect] = []
        while let effect = freezing.nextEffect() { all.append(effect) }
        return all
    }

    @Test func `are frozen in order, thawed in the opposite one, with the cut in between`() {
        var freezing = coordinator(2)
        freezing.begin(now: 100)
        #expect(drain(&freezing) == [.freeze(0)])
        #expect(freezing.deadline == 110)
        freezing.freezeEnded(0, fault: nil, now: 103)
        #expect(drain(&freezing) == [.freeze(1)])
        #expect(freezing.deadline == 110, "all share one limit")
        freezing.freezeEnded(1, fault: nil, now: 104)
        #expect(drain(&freezing) == [.cut])
        #expect(freezing.deadline == nil)
        freezing.cutEnded(now: 200)
        #expect(drain(&freezing) == [.thaw(1)])
        #expect(freezing.deadline == 205)
        freezing.thawEnded(1, fault: nil, now: 201)
        #expect(drain(&freezing) == [.thaw(0)])
        freezing.thawEnded(0, fault: nil, now: 202)
        #expect(drain(&freezing) == [.finished(isCalledOff: false)])
        #expect(freezing.results == [.thawed, .thawed])
    }

    @Test func `that fail to freeze call the cut off, and those frozen are thawed`() {
        var freezing = coordinator(3)
        freezing.begin(now: 0)
        freezing.freezeEnded(0, fault: nil, now: 1)
        freezing.freezeEnded(1, fault: Fault(errnoValue: 16), now: 2)
        #expect(drain(&freezing) == [.freeze(0), .freeze(1), .thaw(0)])
        freezing.thawEnded(0, fault: nil, now: 3)
        #expect(drain(&freezing) == [.finished(isCalledOff: true)])
        #expect(freezing.results == [.thawed, .failed(Fault(errnoValue: 16)), .notTried])
    }

    @Test func `that are too slow are thawed when they come back, and nobody waits`() {
        var freezing = coordinator(2)
        freezing.begin(now: 0)
        freezing.freezeEnded(0, fault: nil, now: 1)
        freezing.timeReached(9)
        #expect(drain(&freezing) == [.freeze(0), .freeze(1)])
        freezing.timeReached(10)
        #expect(drain(&freezing) == [.thaw(1), .thaw(0)])
        freezing.freezeEnded(1, fault: nil, now: 11)
        freezing.thawEnded(1, fault: nil, now: 11)
        #expect(drain(&freezing) == [])
        freezing.thawEnded(0, fault: nil, now: 12)
        #expect(drain(&freezing) == [.finished(isCalledOff: true)])
        #expect(freezing.results == [.thawed, .tooSlow])
    }

    @Test func `do not keep the cut from being made with best effort`() {
        var freezing = coordinator(3, isBestEffort: true)
        freezing.begin(now: 0)
        freezing.freezeEnded(0, fault: Fault(errnoValue: 95), now: 1)
        freezing.freezeEnded(1, fault: nil, now: 2)
        freezing.timeReached(10)
        #expect(drain(&freezing) == [.freeze(0), .freeze(1), .freeze(2), .cut])
        freezing.cutEnded(now: 20)
        #expect(drain(&freezing) == [.thaw(2), .thaw(1)])
        freezing.thawEnded(1, fault: nil, now: 21)
        #expect(drain(&freezing) == [.finished(isCalledOff: false)])
        #expect(freezing.results == [.failed(Fault(errnoValue: 95)), .thawed, .tooSlow])
    }

    @Test func `are all thawed although a thaw fails, hangs or was done by somebody else`() {
        var freezing = coordinator(4)
        freezing.begin(now: 0)
        for index in 0..<4 { freezing.freezeEnded(index, fault: nil, now: 1) }
        freezing.cutEnded(now: 2)
        freezing.thawEnded(3, fault: Fault(errnoValue: 5), now: 3)
        freezing.timeReached(8)
        freezing.thawEnded(2, fault: nil, now: 9)
        freezing.thawEnded(1, fault: Fault(errnoValue: 22), now: 9)
        freezing.thawEnded(0, fault: nil, now: 9)
        #expect(
            drain(&freezing).suffix(5) == [
                .thaw(3), .thaw(2), .thaw(1), .thaw(0), .finished(isCalledOff: false),
            ])
        #expect(
            freezing.results == [
                .thawed, .thawedByOthers, .notThawed(Fault(errnoValue: 110)),
                .notThawed(Fault(errnoValue: 5)),
            ])
    }

    /// Plays filesystems that fail, hang and come back at random steps, and keeps its own account
    /// of which of them are frozen.
    @Test(arguments: 0..<400)
    func `are never left frozen, whatever fails at whatever step`(seed: UInt64) throws {
        var generator = Xorshift(state: seed &* 0x9e37_79b9_7f4a_7c15 | 1)
        let count = Int.random(in: 1...5, using: &generator)
        let isBestEffort = Bool.random(using: &generator)
        var freezing = coordinator(count, isBestEffort: isBestEffort)
        var now: UInt64 = 0
        // What each filesystem's thread has been ordered and has not done: it works in order.
        var orders = Array(repeating: [Effect](), count: count)
        var isFrozen = Array(repeating: false, count: count)
        var thawCounts = Array(repeating: 0, count: count)
        var cutCount = 0
        var isOver = false
        freezing.begin(now: now)
        for _ in 0..<10_000 {
            while let effect = freezing.nextEffect() {
                switch effect {
                case .freeze(let index): orders[index].append(effect)
                case .thaw(let index):
                    orders[index].append(effect)
                    thawCounts[index] += 1
                case .cut:
                    cutCount += 1
                    if !isBestEffort { #expect(isFrozen.allSatisfy { $0 }) }
                    now += .random(in: 0...20, using: &generator)
                    freezing.cutEnded(now: now)
                case .finished(let isCalledOff):
                    #expect(isCalledOff == (cutCount == 0))
                    isOver = true
                }
            }
            let busy = orders.indices.filter { !orders[$0].isEmpty }
            if isOver && busy.isEmpty { break }
            now += .random(in: 0...4, using: &generator)
            if let index = busy.randomElement(using: &generator),
                Int.random(in: 0..<3, using: &generator) > 0
            {
                let fails = Int.random(in: 0..<5, using: &generator) == 0
                let fault = fails ? Fault(errnoValue: 16) : nil
                switch orders[index].removeFirst() {
                case .freeze:
                    isFrozen[index] = !fails
                    freezing.freezeEnded(index, fault: fault, now: now)
                default:
                    isFrozen[index] = false
                    freezing.thawEnded(index, fault: nil, now: now)
                }
            }
            freezing.timeReached(now)
        }
        #expect(isOver, "it ends")
        #expect(cutCount <= 1 && !isFrozen.contains(true), "nothing stays frozen")
        #expect(thawCounts.allSatisfy { $0 <= 1 })
    }
}

/// A small generator, so that a seed tells the whole run.
private struct Xorshift: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state ^= state << 13
        state ^= state >> 7
        state ^= state << 17
        return state
    }
}
