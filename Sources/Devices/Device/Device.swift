package import BlockModel
internal import CLinux
internal import ChangeTracking
internal import CopyOnWrite
internal import EngineState
package import Generations
package import OriginIO
package import Origins
package import RingIO
package import SnapshotCore
internal import Storage

// An origin attached to the service, on its loop: what exports submit requests to. It asks the
// engine about every change and performs what the engine decides (`Device+Effects.swift`).
//
// Invariants
// - `underway` counts the requests that were taken over and not yet finished.
// - After `close` no request is taken over; the origin is given back when `underway` is zero, every
//   user has left, no snapshot is held and the last flush has ended.

/// One device on its loop.
package final class Device: BlockTarget {
    let loop: EventLoop
    package let requests: RequestPool
    let blocking: BlockingPool
    package let engine: SnapshotEngine
    let preservation: LoopPreservation
    package let running: RunningGeneration
    let notify: (DeviceNotice) -> Void
    /// Why tracking was lost the last time, and the page of the map that could not be allocated.
    var lossReason = NewGenerationReason.mapDamaged
    package var lossPage: UInt64 = 0
    /// The snapshots of this device by their index in the engine.
    var parts: [SnapshotPart?]
    /// Those that are gone, reported once the effects that came with it are performed: the
    /// receiver expects the storage to be given back.
    var goneParts: [SnapshotPart] = []
    /// The storage sources by their index in the engine.
    var sources: [StorageSource?]
    /// Pages of the change map that are wanted, and the job that makes some of them resident.
    var pageQueue = PageReservationQueue()
    var pageWork: MapPageWork?
    /// The newest look at the origin's size that a cut took over.
    var lastLookNumber: UInt64 = 0
    /// Why the origin is gone.
    package var goneFault: Fault?
    /// It was asked whether it is, after a failure.
    var isCheckingOrigin = false
    var originCheckedAt: UInt64 = 0
    /// Called once, when the closed gate has drained.
    var gateDrained: (() -> Void)?
    var isDraining = false
    /// Extents asked for whose storage must grow first: the answer comes to the loop.
    var awaitedExtentCount = 0
    /// Those of them that are asked for again in a moment.
    var deferredExtentRequests: [(SourceIndex, StoragePurpose)] = []
    var timer: TimerID?
    private var statusesStorage: StatusQueue?
    private var originStorage: Origin?
    private var preserverStorage: Preserver?
    private var underway = 0
    package var counters = DeviceCounters()
    private let meter = RequestMeter()
    /// What came through images.
    let imageMeter = RequestMeter()
    private var closing: Closing?
    /// Takes the marks of a live device's range into the change map.
    package var takeMarks: (@Sendable (ByteRange) async -> Void)?

    private struct Closing {
        /// Taken out when it is about to be called: it may hold the device.
        var finish: ((Fault?) -> Void)?
        var isFlushing = false
    }

    /// Serves the disk behind `access` on `loop`, from the state of its changes on.
    package init(
        _ access: OriginAccess, _ generation: OpenedGeneration, loop: EventLoop,
        blocking: BlockingPool
    ) {
        running = RunningGeneration(generation)
        notify = generation.request?.notify ?? { _ in }
        self.loop = loop
        self.blocking = blocking
        requests = loop.requests
        preservation = LoopPreservation.of(loop)
        let limits = EngineLimits(requestCount: loop.requests.capacity)
        engine = SnapshotEngine(
            size: access.facts.size, map: running.changeMap, buffers: preservation.buffers,
            limits: limits)
        parts = Array(repeating: nil, count: limits.snapshotCount)
        sources = Array(repeating: nil, count: limits.sourceCount)
        engine.originReportsHoles = !access.facts.isBlockDevice
        super.init(size: access.facts.size, alignment: UInt64(access.facts.offsetAlignment))
        originStorage = Origin(access, device: self, loop: loop)
        preserverStorage = Preserver(device: self, access: access, limits: limits)
        statusesStorage = StatusQueue(self)
    }

    var origin: Origin { originStorage.unsafelyUnwrapped }
    var preserver: Preserver { preserverStorage.unsafelyUnwrapped }
    /// Block status requests that are answered on the loop, in slices.
    var statuses: StatusQueue { statusesStorage.unsafelyUnwrapped }

    /// A snapshot is prepared, held or not yet gone.
    var hasSnapshots: Bool { parts.contains { $0 != nil } }

    var isClosing: Bool { closing != nil }

    /// Enters its handlers on the loop; false when the loop is full.
    package func register() -> Bool {
        guard loop.register(origin) else { return false }
        guard loop.register(preserver) else {
            loop.remove(origin)
            return false
        }
        guard loop.register(statuses) else {
            loop.remove(origin)
            loop.remove(preserver)
            return false
        }
        preservation.deviceAdded(self)
        return true
    }

    // MARK: Requests

    package override func submit(_ index: RequestIndex) {
        let request = requests.pointer(to: index)
        underway += 1
        request.pointee.submittedNanoseconds = loop.now
        guard closing == nil else { return finish(index, .shutdown) }
        if let fault = faultBeyondEnd(of: request.pointee) { return finish(index, fault) }
        switch request.pointee.operation {
        case .read:
            counters.reads &+= 1
            counters.readBytes &+= request.pointee.length
            origin.readArrived(index)
        case .write:
            counters.writes &+= 1
            counters.writtenBytes &+= request.pointee.length
            change(index)
        case .flush:
            counters.flushes &+= 1
            if origin.facts.isReadOnly { return finish(index, nil) }
            origin.flushArrived(index)
        case .discard:
            counters.discards &+= 1
            change(index)
        case .writeZeroes:
            counters.zeroes &+= 1
            change(index)
        case .prefetch:
            // The page cache is not ours to fill: direct origins have none, tmpfs is memory.
            finish(index, nil)
        case .blockStatus:
            guard request.pointee.statusBase != nil else { return origin.statusArrived(index) }
            if takeMarks != nil { return liveStatusArrived(index) }
            changeStatusArrived(index, image: nil)
        }
    }

    // Random writes find neither the entry of the map nor bucket and record of a layer in a cache.
    // Each miss costs about 100 ns, a fortieth of a write; fetched this early they come while the
    // payload of this write, or of the one before, is copied.

    package override func writeForeseen(at offset: UInt64) {
        if let address = engine.bucketAddress(at: offset) { cl_prefetch(address) }
    }

    package override func writeExpected(at offset: UInt64) {
        if let address = engine.changeEntryAddress(at: offset) { cl_prefetch(address) }
        if let address = engine.recordAddress(at: offset) { cl_prefetch(address) }
    }

    private func change(_ index: RequestIndex) {
        let request = requests.pointer(to: index)
        guard !origin.facts.isReadOnly else { return finish(index, .notPermitted) }
        guard request.pointee.length > 0 else { return finish(index, nil) }
        counters.markedBlocks &+= Self.blockCount(request.pointee.range)
        let admission = engine.writeArrived(
            index, operation: request.pointee.operation, offset: request.pointee.offset,
            length: request.pointee.length, now: loop.now)
        switch admission {
        case .issue: origin.writeArrived(index)
        case .taken: engineTouched()
        case .refused(let fault): finish(index, fault)
        }
    }

    static func blockCount(_ range: ByteRange) -> UInt64 {
        (range.end - 1) / blockByteCount - range.offset / blockByteCount + 1
    }

    /// The origin is done with a request, or with the part of it that it was given.
    func originFinished(_ index: RequestIndex, _ fault: Fault?) {
        if let fault { originFailed(fault) }
        let request = requests.pointer(to: index)
        switch request.pointee.operation {
        case .read, .flush, .prefetch, .blockStatus: finish(index, fault)
        case .write, .discard, .writeZeroes:
            let completion = engine.originWriteFinished(
                index, byteCount: fault == nil ? request.pointee.part.length : 0, fault: fault)
            switch completion {
            case .finish(let outcome):
                finish(index, outcome)
                drainEffects()
            case .taken: engineTouched()
            }
        }
    }

    /// Tells the owner.
    func finish(_ index: RequestIndex, _ fault: Fault?) {
        if fault != nil { counters.failures &+= 1 }
        meter.finished(requests[index], now: loop.now, isFailure: fault != nil)
        underway -= 1
        requests.finish(index, fault)
        if closing != nil { continueClosing() }
    }

    /// What the device has done since it was attached.
    package var currentCounters: DeviceCounters {
        var counters = counters
        counters.copiedBlocks = engine.counters.copiedBlockCount
        counters.copiedBytes = engine.counters.copiedByteCount
        counters.parkedWrites = engine.counters.delayedRequestCount
        return counters
    }

    /// The same with how long requests took.
    package var activity: DeviceActivity {
        DeviceActivity(
            counters: currentCounters, requests: meter.report, imageRequests: imageMeter.report,
            epoch: engine.epoch, mapByteCount: engine.mapByteCount, userCount: userCount)
    }

    // MARK: Loop iterations

    /// Has `turnEnded` called once at the end of this turn.
    func callAtEndOfTurn() { loop.callAtEndOfTurn(preserver) }

    func turnEnded() {
        engine.turnEnded(now: loop.now)
        drainEffects()
        if engine.waitsForBuffers {
            engine.buffersFreed()
            drainEffects()
        }
        preservation.wakeWaiting(except: self)
        preservation.turnEnded(of: self)
        if engine.hasWork { callAtEndOfTurn() }
        if closing != nil { continueClosing() }
    }

    // MARK: Closing

    /// Sends the users away, finishes what is under way, flushes and calls `finish` with the fault
    /// of the flush; the origin's disk is the caller's then. Its snapshots must have been
    /// destroyed. Runs on the loop, once.
    package func close(_ finish: @escaping (Fault?) -> Void) {
        precondition(closing == nil, "a device is closed twice")
        closing = Closing(finish: finish)
        takeMarks = nil
        closeUsers()
        continueClosing()
    }

    package override func usersChanged() {
        if closing != nil { continueClosing() }
    }

    private func continueClosing() {
        guard underway == 0, userCount == 0, let current = closing, !current.isFlushing,
            origin.scanCount == 0, statuses.isEmpty, awaitedExtentCount == 0,
            !pageQueue.hasJob, !isCheckingOrigin,
            !hasSnapshots, preserver.underwayCount == 0, !engine.hasWork
        else { return }
        let finish = current.finish
        closing = Closing(finish: nil, isFlushing: true)
        origin.close { fault in
            if let timer = self.timer { self.loop.cancel(timer) }
            self.loop.remove(self.preserver)
            self.loop.remove(self.statuses)
            self.preservation.deviceRemoved(self)
            self.preserverStorage = nil
            self.statusesStorage = nil
            self.originStorage = nil
            finish?(fault)
        }
    }
}
