package import BlockModel
package import CopyOnWrite
internal import Host
package import Origins
internal import RingIO
internal import Synchronization

// One source of difference storage: performs what `StorageSpace` decides. Shared by the devices
// of a snapshot, which may live on several loops; they meet here once per extent.
//
// Invariants
// - The descriptor or mapping lives until the last user is gone: the opener of the source, devices,
//   and what runs elsewhere. A number or address that was closed may belong to somebody else by the
//   time a late job uses it.
// - Bytes are read and written by the loops themselves; growing, erasing and closing, which may
//   block, run on other threads.
// - A medium that others can read afterwards is closed when what was stored on it is erased, or
//   when it was told that it could not be.
// - Answers to waiting requests are sent by jobs, never by loops: a loop must not wait for another.

/// What a source needs a thread for.
package enum StorageWork: Sendable {
    /// Growing or making resident: writers may wait for it.
    case growth
    /// Erasing and closing.
    case erasure
    /// Erasing what may have to be overwritten: it may take minutes.
    case overwriting
}

/// Finds threads for the jobs of a source; tests plan refusals and delays here.
package protocol StorageJobs: Sendable {
    /// Runs `job` on another thread, soon; false when no thread is available.
    func start(_ work: StorageWork, _ job: @escaping @Sendable () -> Void) -> Bool
}

/// The blocking pool, and threads of their own for what would keep its threads for long.
struct PoolJobs: StorageJobs {
    let blocking: BlockingPool

    func start(_ work: StorageWork, _ job: @escaping @Sendable () -> Void) -> Bool {
        switch work {
        case .growth: if blocking.require(.growth, job) { return true }
        case .erasure: if blocking.require(.erasure, job) { return true }
        case .overwriting: break
        }
        do throws(HostError) {
            try ServiceThread.start("storage", job)
            return true
        } catch { return work == .overwriting && blocking.require(.erasure, job) }
    }
}

/// One source of difference storage.
package final class StorageSource: Sendable {
    /// What the events of a source report.
    package enum Notice: Sendable {
        /// Less than a tenth of the available space is left.
        case lowSpace(Report)
        /// It grew by that many bytes.
        case grown(UInt64)
        /// It was closed with so many bytes of preserved data on it that could not be erased.
        case notErased(UInt64, Fault)
    }

    /// Bytes the source is made of, for reports.
    package struct Report: Sendable {
        package var name: String
        package var capacity: UInt64
        package var limit: UInt64
        package var granted: UInt64
        /// Bytes that can still be handed out, growth included, as far as is known.
        package var available: UInt64
        /// What would have to be raised for more room.
        package var bound: StorageSpace.Bound
    }

    package typealias Reply = @Sendable (Result<UInt64, Fault>) -> Void

    private struct ExtentRequest {
        let number: UInt64
        let purpose: StoragePurpose
        let isFirst: Bool
        let reply: Reply
    }

    private struct State {
        var space: StorageSpace
        var requests: [ExtentRequest] = []
        var requestCount: UInt64 = 0
        /// The opener of the source is its first user.
        var userCount = 1
        /// Users that may still want extents.
        var askerCount = 1
        /// Growth, erasure and population on other threads.
        var jobCount = 0
        /// Why something could not be erased.
        var erasureFault: Fault?
        var hasGrown = false
        var isClosed = false
        var closeWaiters: [@Sendable () -> Void] = []
    }

    /// Extents smaller than this are granted as they are: making them resident elsewhere would take
    /// longer than the faults of the loop.
    private static let populatedByteCountMin: UInt64 = 256 << 10

    package let name: String
    /// Bytes of its extents.
    package let extentByteCount: UInt64
    /// How loops read and write it.
    package let access: StorageAccess
    /// What it lies on.
    package let foundations: Set<Foundation>
    private let medium: any StorageMedium
    private let jobs: any StorageJobs
    private let notify: @Sendable (Notice) -> Void
    private let state: Mutex<State>

    /// Takes over the medium, and begins to grow if it can.
    package convenience init(
        name: String, medium: any StorageMedium, space: StorageSpace, jobs: any StorageJobs,
        notify: @escaping @Sendable (Notice) -> Void
    ) {
        self.init(
            name: name, medium: medium, foundations: [], space: space, jobs: jobs, notify: notify)
    }

    /// The same for one that lies on something.
    init(
        name: String, medium: any StorageMedium, foundations: Set<Foundation>,
        space: StorageSpace, jobs: any StorageJobs, notify: @escaping @Sendable (Notice) -> Void
    ) {
        self.name = name
        self.foundations = foundations
        self.medium = medium
        self.jobs = jobs
        self.notify = notify
        access = medium.access
        extentByteCount = space.extentByteCount
        state = Mutex(State(space: space))
        // The first writer after the cut finds room instead of waiting for the first step.
        startWork()
    }

    /// There is another user, until it says `userAsksNoMore`, then `drained`.
    package func userAdded() {
        state.withLock { state in
            state.userCount += 1
            state.askerCount += 1
        }
    }

    /// A user wants no more extents. After the last one growth under way breaks off, so that
    /// so waiting for it and for the end does not take long.
    package func userAsksNoMore() { state.withLock { $0.askerCount -= 1 } }

    /// Somebody has it, or may still have data in it.
    package var isInUse: Bool { state.withLock { $0.userCount > 0 } }

    package var report: Report { state.withLock { report(of: $0.space) } }

    private func report(of space: StorageSpace) -> Report {
        Report(
            name: name, capacity: space.capacity, limit: space.limit,
            granted: space.grantedByteCount, available: space.availableByteCount,
            bound: space.bound)
    }

    // MARK: Extents

    /// A device wants an extent, its first one here or more room ahead of need. The answer comes at
    /// once, or by `reply` on another thread (then nil is returned): when the source must grow or
    /// be erased first, or when memory is made resident. EAGAIN: ask again in a moment.
    package func extentWanted(
        for purpose: StoragePurpose, isFirst: Bool, reply: @escaping Reply
    ) -> Result<UInt64, Fault>? {
        let (request, answer, low) = state.withLock { state in
            state.requestCount += 1
            let request = ExtentRequest(
                number: state.requestCount, purpose: purpose, isFirst: isFirst, reply: reply)
            var answer = state.space.extentWanted(for: purpose)
            if answer == .coming {
                if state.askerCount > 0 { state.requests.append(request) } else { answer = .full }
            }
            return (request, answer, state.space.lowSpaceDue() ? report(of: state.space) : nil)
        }
        if let low { notify(.lowSpace(low)) }
        startWork()
        switch answer {
        case .granted(let byteOffset):
            return populate(byteOffset, for: request) ? nil : .success(byteOffset)
        case .full: return .failure(.noSpace)
        case .coming: return isAnswered(request) ? nil : .failure(.wouldBlock)
        }
    }

    /// True when a job has answered the request or will; false when no thread could be had for one:
    /// it is forgotten then, and what others wait for is begun when it is asked again.
    private func isAnswered(_ request: ExtentRequest) -> Bool {
        state.withLock { state in
            guard !state.space.isWorking,
                let place = state.requests.firstIndex(where: { $0.number == request.number })
            else { return true }
            state.requests.remove(at: place)
            return false
        }
    }

    /// A device gives an extent back: what is in it is dropped or overwritten, then it is free.
    package func extentReleased(byteOffset: UInt64) {
        state.withLock { $0.space.extentReleased(byteOffset: byteOffset) }
        startWork()
    }

    /// Makes an extent of memory resident before it is granted: faults of the loop would cost it as
    /// much as copying. Not for the first extent of a device: many at once, right after a cut, took
    /// the processors from the next one. False when it is not done.
    private func populate(_ byteOffset: UInt64, for request: ExtentRequest) -> Bool {
        guard medium.isPopulated, !request.isFirst, extentByteCount >= Self.populatedByteCountMin
        else { return false }
        state.withLock { $0.jobCount += 1 }
        let isStarted = jobs.start(.growth) { [self] in
            medium.populate(ByteRange(offset: byteOffset, length: extentByteCount))
            request.reply(.success(byteOffset))
            jobEnded()
        }
        if !isStarted { jobEnded() }
        return isStarted
    }

    // MARK: Growth and erasure

    /// Starts the growth and the erasure that are due. What no thread is available for stays due.
    private func startWork() {
        let (growth, erasure) = takeWork()
        if let growth {
            let isStarted = jobs.start(.growth) { [self] in
                performGrowth(growth)
                continueWork()
            }
            if !isStarted {
                state.withLock { $0.space.growthPutOff(growth) }
                jobEnded()
            }
        }
        if let erasure {
            let isStarted = jobs.start(erasing) { [self] in
                performErasure(erasure)
                continueWork()
            }
            if !isStarted {
                state.withLock { $0.space.erasurePutOff(erasure) }
                jobEnded()
            }
        }
    }

    private var erasing: StorageWork { medium.outlivesUs ? .overwriting : .erasure }

    /// Each of what it returns is a job.
    private func takeWork() -> (GrowthRun?, [UInt64]?) {
        state.withLock { state in
            let growth = state.askerCount > 0 ? state.space.growthDue() : nil
            let erasure = state.space.erasureDue()
            state.jobCount += (growth == nil ? 0 : 1) + (erasure == nil ? 0 : 1)
            return (growth, erasure)
        }
    }

    /// A job continues with what became due meanwhile, and ends.
    private func continueWork() {
        while true {
            let (growth, erasure) = takeWork()
            if let growth {
                performGrowth(growth)
                jobEnded()
            }
            if let erasure {
                performErasure(erasure)
                jobEnded()
            }
            if growth == nil, erasure == nil { return jobEnded() }
        }
    }

    private func performGrowth(_ planned: GrowthRun) {
        var run = planned
        while state.withLock({ $0.askerCount > 0 }),
            let piece = run.next(room: medium.room()?.usable)
        {
            let range = ByteRange(offset: piece.byteOffset, length: piece.byteCount)
            if medium.allocate(range) == 0 {
                run.succeeded(piece)
            } else {
                medium.giveBack(range, isTail: piece.isTail)
                run.failed(piece)
            }
        }
        let (gained, isNews) = state.withLock { [run] state in
            let before = state.space.capacity
            state.space.growthEnded(run)
            defer { state.hasGrown = true }
            return (state.space.capacity - min(before, state.space.capacity), state.hasGrown)
        }
        // The first step belongs to opening the source: only what follows is news.
        if gained > 0, isNews { notify(.grown(gained)) }
        answerRequests()
    }

    private func performErasure(_ offsets: [UInt64]) {
        for piece in ErasurePlan.pieces(of: offsets, extentByteCount: extentByteCount) {
            // What nobody can read after the end needs no erasing at the end.
            let isNeeded = medium.outlivesUs || state.withLock { $0.userCount > 0 }
            if !isNeeded || medium.erase(piece) == 0 {
                erased(piece, nil)
                continue
            }
            // One place that cannot be written does not keep the others from being erased.
            for extent in ErasurePlan.extents(of: piece, extentByteCount: extentByteCount) {
                let failure = medium.erase(extent)
                erased(extent, failure == 0 ? nil : Fault(errnoValue: failure))
            }
        }
        state.withLock { $0.space.erasureEnded() }
        answerRequests()
    }

    private func erased(_ piece: ByteRange, _ fault: Fault?) {
        state.withLock { state in
            state.space.erased(piece, isClean: fault == nil)
            if let fault { state.erasureFault = fault }
        }
        answerRequests()
    }

    /// Answers those who waited for growth or erasure. On the thread of a job.
    private func answerRequests() {
        let answers = state.withLock { state -> [(ExtentRequest, Result<UInt64, Fault>)] in
            var answers: [(ExtentRequest, Result<UInt64, Fault>)] = []
            var waiting: [ExtentRequest] = []
            for request in state.requests {
                switch state.space.extentAwaited(for: request.purpose) {
                case .granted(let byteOffset): answers.append((request, .success(byteOffset)))
                case .coming where state.askerCount > 0: waiting.append(request)
                case .full, .coming: answers.append((request, .failure(.noSpace)))
                }
            }
            state.requests = waiting
            return answers
        }
        for (request, answer) in answers { request.reply(answer) }
    }

    // MARK: End

    /// A user is gone: a device that has no block left here, say. The last one closes the source.
    package func drained() {
        let isLast = state.withLock { state in
            state.userCount -= 1
            return state.userCount == 0 && state.jobCount == 0
        }
        if isLast { closeSoon() }
    }

    private func jobEnded() {
        let isLast = state.withLock { state in
            state.jobCount -= 1
            return state.userCount == 0 && state.jobCount == 0
        }
        if isLast { closeSoon() }
    }

    private func closeSoon() {
        if !jobs.start(erasing, { [self] in close() }) { close() }
    }

    /// Returns when the source is closed, or at once while a device still uses it.
    package func closed() async {
        await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
            let isNow = state.withLock { state in
                guard state.userCount == 0, !state.isClosed else { return true }
                state.closeWaiters.append { continuation.resume() }
                return false
            }
            if isNow { continuation.resume() }
        }
    }

    private func close() {
        if medium.outlivesUs { eraseRest() }
        medium.close()
        let waiters = state.withLock { state in
            state.isClosed = true
            defer { state.closeWaiters = [] }
            return state.closeWaiters
        }
        for waiter in waiters { waiter() }
    }

    /// What is still dirty because no thread could be had, and once more what could not be erased.
    private func eraseRest() {
        while let offsets = state.withLock({ $0.space.erasureDue() }) { performErasure(offsets) }
        if let offsets = state.withLock({ $0.space.lastErasureDue() }) { performErasure(offsets) }
        let (count, fault) = state.withLock { ($0.space.unclean.count, $0.erasureFault) }
        if count > 0 {
            notify(.notErased(UInt64(count) * extentByteCount, fault ?? .inputOutput))
        }
    }
}
