import BlockModel
import CutCoordination
import Testing

@Suite struct `A cut over devices` {
    private func drain(_ cut: inout CutCoordinator) -> [CutCoordinator.Effect] {
        var all: [CutCoordinator.Effect] = []
        while let effect = cut.nextEffect() { all.append(effect) }
        return all
    }

    @Test func `all gates close before one switches, all switch before one opens`() {
        var cut = CutCoordinator(deviceCount: 2)
        cut.begin()
        #expect(drain(&cut) == [.prepare(device: 0), .prepare(device: 1)])
        cut.prepared(device: 1, fault: nil, now: 5)
        #expect(drain(&cut) == [])
        cut.prepared(device: 0, fault: nil, now: 5)
        #expect(drain(&cut) == [.closeGate(device: 0), .closeGate(device: 1)])
        #expect(cut.deadline == 1_000_000_005)
        cut.gateDrained(device: 0)
        #expect(drain(&cut) == [])
        cut.gateDrained(device: 1)
        #expect(drain(&cut) == [.switchEpoch(device: 0), .switchEpoch(device: 1)])
        cut.timeReached(.max)
        #expect(drain(&cut) == [], "a cut that began to switch is made")
        cut.switched(device: 1)
        #expect(drain(&cut) == [])
        cut.switched(device: 0)
        #expect(drain(&cut) == [.openGate(device: 0), .openGate(device: 1)])
        cut.opened(device: 0)
        cut.opened(device: 1)
        #expect(drain(&cut) == [.finished(nil)])
    }

    @Test func `a device that cannot prepare undoes the others`() {
        var cut = CutCoordinator(deviceCount: 2)
        cut.begin()
        cut.prepared(device: 0, fault: nil, now: 0)
        cut.prepared(device: 1, fault: .noMemory, now: 0)
        _ = drain(&cut)
        cut.undone(device: 0)
        #expect(drain(&cut) == [.finished(.noMemory)])
    }

    @Test func `gates closed for too long are opened with nothing changed`() {
        var cut = CutCoordinator(deviceCount: 2, limitNanoseconds: 10)
        cut.begin()
        cut.prepared(device: 0, fault: nil, now: 0)
        cut.prepared(device: 1, fault: nil, now: 0)
        cut.gateDrained(device: 0)
        _ = drain(&cut)
        cut.timeReached(9)
        #expect(drain(&cut) == [])
        cut.timeReached(10)
        #expect(drain(&cut) == [.undo(device: 0), .undo(device: 1)])
        cut.gateDrained(device: 1)
        cut.undone(device: 1)
        cut.undone(device: 0)
        #expect(drain(&cut) == [.finished(Fault(errnoValue: 110))])
    }
}
