package import BlockModel

// One cut over several devices on several loops.
//
//   preparing --all--> closing --all drained--> switching --all--> opening --all--> finished
//       | a fault          | limit, abandoned
//       +-----> undoing <--+                  (each device undone, then finished with the fault)
//
// Invariants
// - No device switches before every gate is closed and drained; no gate opens before every
//   device has switched: a write that depends on another one is never in an image without it.
// - Once the first switch is asked for, the cut cannot fail.
// - Every device that was asked to prepare is opened or undone exactly once.

/// Leads a cut. Lives on the thread that makes cuts; devices answer through mailboxes.
package struct CutCoordinator {
    /// What has to be done next, in order.
    package enum Effect: Equatable, Sendable {
        /// Do everything that can fail; answer `prepared`.
        case prepare(device: Int)
        /// Close the gate; answer `gateDrained` when nothing is under way.
        case closeGate(device: Int)
        /// Switch; answer `switched`.
        case switchEpoch(device: Int)
        /// Open the gate; answer `opened`.
        case openGate(device: Int)
        /// Open the gate if it was closed, abandon what was prepared; answer `undone`.
        case undo(device: Int)
        /// Over, and nothing follows: nil is success.
        case finished(Fault?)
    }

    private enum Phase { case idle, preparing, closing, switching, opening, undoing, finished }

    private let deviceCount: Int
    private let limitNanoseconds: UInt64
    private var phase = Phase.idle
    private var answered: [Bool]
    private var isPrepared: [Bool]
    private var fault: Fault?
    private var effects: [Effect] = []
    /// When the closed gates exceed their limit; nil when no limit runs.
    package private(set) var deadline: UInt64?

    /// `limitNanoseconds`: longest time between the first closed gate and the switch.
    package init(deviceCount: Int, limitNanoseconds: UInt64 = 1_000_000_000) {
        precondition(deviceCount > 0, "a cut has devices")
        self.deviceCount = deviceCount
        self.limitNanoseconds = limitNanoseconds
        answered = Array(repeating: false, count: deviceCount)
        isPrepared = Array(repeating: false, count: deviceCount)
    }

    /// The next thing to do, or nil.
    package mutating func nextEffect() -> Effect? {
        effects.isEmpty ? nil : effects.removeFirst()
    }

    /// The cut is wanted.
    package mutating func begin() {
        precondition(phase == .idle, "a cut begins once")
        enter(.preparing)
        for device in 0..<deviceCount { effects.append(.prepare(device: device)) }
    }

    /// The device prepared, or could not.
    package mutating func prepared(device: Int, fault: Fault?, now: UInt64) {
        answer(device, in: .preparing)
        if let fault { self.fault = self.fault ?? fault } else { isPrepared[device] = true }
        guard isComplete else { return }
        if self.fault != nil {
            undo()
            return
        }
        enter(.closing)
        deadline = now + limitNanoseconds
        for device in 0..<deviceCount { effects.append(.closeGate(device: device)) }
    }

    /// The device's gate is closed and drained. Late answers of an undone cut are ignored.
    package mutating func gateDrained(device: Int) {
        if phase == .undoing || phase == .finished { return }
        answer(device, in: .closing)
        guard isComplete else { return }
        deadline = nil
        enter(.switching)
        for device in 0..<deviceCount { effects.append(.switchEpoch(device: device)) }
    }

    /// The device has switched.
    package mutating func switched(device: Int) {
        answer(device, in: .switching)
        guard isComplete else { return }
        enter(.opening)
        for device in 0..<deviceCount { effects.append(.openGate(device: device)) }
    }

    /// The device's gate is open again after its switch.
    package mutating func opened(device: Int) {
        answer(device, in: .opening)
        if isComplete { finish() }
    }

    /// The device is as before the cut.
    package mutating func undone(device: Int) {
        answer(device, in: .undoing)
        if isComplete { finish() }
    }

    /// It is `now`: gates closed for too long are opened, nothing changed.
    package mutating func timeReached(_ now: UInt64) {
        guard let deadline, deadline <= now, phase == .closing else { return }
        fault = Fault(errnoValue: 110)
        undo()
    }

    private mutating func undo() {
        deadline = nil
        enter(.undoing)
        for device in 0..<deviceCount {
            if isPrepared[device] {
                effects.append(.undo(device: device))
            } else {
                answered[device] = true
            }
        }
        if isComplete { finish() }
    }

    private mutating func finish() {
        phase = .finished
        effects.append(.finished(fault))
    }

    private mutating func enter(_ next: Phase) {
        phase = next
        for device in 0..<deviceCount { answered[device] = false }
    }

    private mutating func answer(_ device: Int, in expected: Phase) {
        precondition(phase == expected, "a device answers what it was asked")
        precondition(!answered[device], "a device answers once")
        answered[device] = true
    }

    private var isComplete: Bool { answered.allSatisfy { $0 } }
}
