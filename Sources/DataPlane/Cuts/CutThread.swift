package import BlockModel
internal import CLinux
internal import CutCoordination
package import Devices
package import FreezePlanning
package import Freezing
internal import Glibc
internal import Host
package import RingIO
internal import Synchronization

// One thread that makes cuts, one after the other: it performs what `CutCoordinator` decides by
// sending messages to the loops of the devices and waiting for their answers, with a limit.

/// A device that takes part in a cut.
package struct CutMember: Sendable {
    let device: AttachedDevice
    /// What is held from the cut on; nil for a cut that is only remembered.
    let snapshot: DeviceSnapshot?

    package init(device: AttachedDevice, snapshot: DeviceSnapshot?) {
        self.device = device
        self.snapshot = snapshot
    }
}

/// How a cut went.
package struct CutOutcome: Sendable {
    /// Why nothing changed; nil when the cut was made.
    package var fault: Fault?
    /// From the first gate's closing until the last one had drained.
    package var drainMicroseconds: UInt64 = 0
    /// From the first gate's closing until the last one was open again.
    package var closedMicroseconds: UInt64 = 0
    /// The epoch that ended, by device.
    package var epochs: [Epoch] = []
    /// The statistics that epoch belongs to, by device.
    package var generations: [Generation] = []
    /// Bytes at the cut, by device.
    package var sizes: [UInt64] = []
    /// How the filesystems fared that were to be frozen for it.
    package var freeze = FreezeOutcome()

    /// A filesystem could not be frozen, so the cut was not begun; `fault` says nothing then.
    package var isCalledOffByFreeze: Bool { freeze.isCalledOff }

    /// What is remembered of the cut of the device at `index`.
    package func base(at index: Int) -> TrackingBase {
        TrackingBase(generation: generations[index], epoch: epochs[index], size: sizes[index])
    }
    /// Why the size that an origin was found to have could not be taken over, by device.
    package var resizeObstacles: [ResizeObstacle?] = []
}

/// The thread that makes cuts.
package final class CutThread: Sendable {
    private struct CutRequest: Sendable {
        var members: [CutMember]
        var isBase: Bool
        var resizes: [DeviceResize?]
        var limitNanoseconds: UInt64
        var freeze: FreezeJob?
        var hold: CutHold?
    }

    private struct Job: Sendable {
        var request: CutRequest
        var finish: @Sendable (CutOutcome) -> Void
    }

    private let jobs = Mutex<[Job]?>([])
    private let available = Semaphore()
    private let thread = Mutex<ServiceThread?>(nil)
    private let statistics = Mutex(CutStatistics())

    package init() throws(RingError) {
        do throws(HostError) {
            let started = try ServiceThread.startJoinable("cut") { [self] in work() }
            thread.withLock { $0 = started }
        } catch {
            throw RingError(operation: .startThread, errnoValue: error.errnoValue)
        }
    }

    /// Makes a cut over the members, each with the size that its origin has now. `isBase`: later
    /// queries of changes can name it. `limitNanoseconds`: longest time writers wait behind closed
    /// gates; beyond it everything is undone. `freeze`: filesystems to freeze before and to thaw
    /// after it.
    package func makeCut(
        _ members: [CutMember], isBase: Bool, limitNanoseconds: UInt64 = 1_000_000_000,
        freezing freeze: FreezeJob? = nil, holding hold: CutHold? = nil
    ) async -> CutOutcome {
        var resizes: [DeviceResize?] = []
        var obstacles: [ResizeObstacle?] = []
        for member in members {
            // What is marked before the cut belongs to the epoch that it ends; what is not taken in
            // time counts for the next one.
            await member.device.takeMarksBeforeCut()
            switch await member.device.findSize() {
            case .success(let resize):
                resizes.append(resize)
                obstacles.append(nil)
            case .failure(let obstacle):
                resizes.append(nil)
                obstacles.append(obstacle)
            }
        }
        let job = CutRequest(
            members: members, isBase: isBase, resizes: resizes,
            limitNanoseconds: limitNanoseconds, freeze: freeze, hold: hold)
        var outcome = await perform(job)
        outcome.resizeObstacles = obstacles
        return outcome
    }

    private func perform(_ request: CutRequest) async -> CutOutcome {
        await withCheckedContinuation { continuation in
            let job = Job(request: request) { outcome in
                self.statistics.withLock { $0.add(outcome) }
                continuation.resume(returning: outcome)
            }
            let accepted = jobs.withLock { jobs in
                guard jobs != nil else { return false }
                jobs?.append(job)
                return true
            }
            if accepted {
                available.signal()
            } else {
                continuation.resume(returning: CutOutcome(fault: .shutdown))
            }
        }
    }

    /// How the cuts so far went.
    package var cuts: CutStatistics { statistics.withLock { $0 } }

    /// Finishes the cuts that wait and ends the thread.
    package func close() {
        available.signal()
        let handle = thread.withLock { thread in
            defer { thread = nil }
            return thread
        }
        handle?.join()
    }

    private func work() {
        while true {
            available.wait()
            let job = jobs.withLock { jobs -> Job? in
                if jobs?.isEmpty ?? true {
                    jobs = nil
                    return nil
                }
                return jobs?.removeFirst()
            }
            guard let job else { return }
            var run = CutRun(
                job.request.members, isBase: job.request.isBase, resizes: job.request.resizes,
                limitNanoseconds: job.request.limitNanoseconds)
            if let freeze = job.request.freeze {
                // What stands when the cut is never asked for.
                var outcome = CutOutcome(fault: .shutdown)
                let frozen = freeze.perform {
                    let members = job.request.members
                    guard LiveTaking.takeFrozen(members, job.request.limitNanoseconds) else {
                        outcome = CutOutcome(fault: Fault(errnoValue: ETIMEDOUT))
                        return
                    }
                    outcome = run.perform()
                    job.request.hold?.made(outcome)
                }
                outcome.freeze = frozen
                job.finish(outcome)
            } else {
                let outcome = run.perform()
                job.request.hold?.made(outcome)
                job.finish(outcome)
            }
        }
    }
}

/// One cut on its way.
private struct CutRun {
    private enum Answer: Sendable {
        case drained(Int)
        case switched(Int, TrackingBase)
        case opened(Int)
        case undone(Int)
    }

    private let members: [CutMember]
    private let isBase: Bool
    private let resizes: [DeviceResize?]
    private let answers = Answers<Answer>()
    private var coordinator: CutCoordinator
    private var outcome = CutOutcome()
    private var closedAt: UInt64 = 0
    private var openCount = 0

    init(
        _ members: [CutMember], isBase: Bool, resizes: [DeviceResize?], limitNanoseconds: UInt64
    ) {
        self.members = members
        self.isBase = isBase
        self.resizes = resizes
        coordinator = CutCoordinator(
            deviceCount: members.count, limitNanoseconds: limitNanoseconds)
        outcome.epochs = Array(repeating: .first, count: members.count)
        outcome.sizes = Array(repeating: 0, count: members.count)
        outcome.generations = Array(
            repeating: Generation(id: UniqueID(high: 0, low: 0)), count: members.count)
    }

    mutating func perform() -> CutOutcome {
        coordinator.begin()
        while true {
            while let effect = coordinator.nextEffect() {
                if case .finished(let fault) = effect {
                    outcome.fault = fault
                    return outcome
                }
                perform(effect)
            }
            if let answer = answers.next(before: coordinator.deadline) {
                take(answer)
            } else {
                coordinator.timeReached(cl_now_nanoseconds())
            }
        }
    }

    private mutating func perform(_ effect: CutCoordinator.Effect) {
        let answers = answers
        switch effect {
        case .prepare(let index):
            // The snapshots were prepared before the cut was asked for.
            coordinator.prepared(device: index, fault: nil, now: cl_now_nanoseconds())
        case .closeGate(let index):
            if closedAt == 0 { closedAt = cl_now_nanoseconds() }
            send(index) { device, _ in device.closeGate { answers.add(.drained(index)) } }
        case .switchEpoch(let index):
            let isBase = isBase
            let resize = resizes[index]
            send(index) { device, part in
                let ended = device.switchEpoch(holding: part, isBase: isBase, resize: resize)
                answers.add(
                    .switched(
                        index,
                        TrackingBase(
                            generation: device.generation, epoch: ended, size: device.size)))
            }
        case .openGate(let index):
            send(index) { device, _ in
                device.openGate()
                answers.add(.opened(index))
            }
        case .undo(let index):
            send(index) { device, _ in
                device.openGate()
                answers.add(.undone(index))
            }
        case .finished: preconditionFailure("the end of a cut is handled by its loop")
        }
    }

    private func send(
        _ index: Int, _ body: @escaping @Sendable (Device, SnapshotPart?) -> Void
    ) {
        let member = members[index]
        let accepted = member.device.loop.mailbox.postWhenRoom { loop in
            body(member.device.device.get(on: loop), member.snapshot?.part.get(on: loop))
        }
        precondition(accepted, "a loop does not stop while its devices are in a cut")
    }

    private mutating func take(_ answer: Answer) {
        let elapsed = (cl_now_nanoseconds() - closedAt) / 1000
        switch answer {
        case .drained(let index):
            outcome.drainMicroseconds = elapsed
            coordinator.gateDrained(device: index)
        case .switched(let index, let base):
            outcome.epochs[index] = base.epoch
            outcome.sizes[index] = base.size
            outcome.generations[index] = base.generation
            members[index].device.wasResized(to: base.size)
            coordinator.switched(device: index)
        case .opened(let index):
            outcome.closedMicroseconds = elapsed
            coordinator.opened(device: index)
        case .undone(let index): coordinator.undone(device: index)
        }
    }
}
