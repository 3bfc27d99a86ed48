package import BlockModel
package import ChangeTracking
internal import Generations
internal import Glibc
internal import RingIO
internal import SnapshotCore

// What cuts, a lack of memory and another size mean for a device's generation.

extension Device {
    /// The unbroken tracking history that the engine's epochs count in.
    package var generation: Generation { running.header.generation }

    /// Changes are not known from here on; said before a write goes unmarked.
    package func trackingLost(_ reason: NewGenerationReason) {
        guard !engine.isTrackingLost else { return }
        lossReason = reason
        running.trackingLost(reason)
        engine.trackingLost()
        notify(.trackingLost(reason))
    }

    /// An entry was found that cannot be: its generation has to end.
    package func mapFoundDamaged() {
        trackingLost(.mapDamaged)
        engineTouched()
    }

    /// The newest cut usable as a base is another one; 0: none is.
    package func newestBaseChanged(to base: UInt32) {
        running.newestBaseChanged(to: base)
        engine.newestBaseChanged(to: base)
    }

    /// The cut: cannot fail. A generation that cannot be continued ends here, and the cut is the
    /// first of the next one. Returns the epoch that ended, of the generation that the device has
    /// now.
    package func switchEpoch(holding part: SnapshotPart?, isBase: Bool, resize: DeviceResize?)
        -> Epoch
    {
        // Looks are made before a cut has its turn: one that another cut overtook says nothing.
        let resize = resize.flatMap { $0.number > lastLookNumber ? $0 : nil }
        lastLookNumber = resize?.number ?? lastLookNumber
        if let reason = reasonToBegin(resize) { beginGeneration(reason) }
        if let resize, resize.size != size { take(resize) }
        running.cutComing(isBase: isBase)
        let ended = engine.cutSwitched(snapshot: part?.index, isBase: isBase)
        part?.held()
        engineTouched()
        return ended
    }

    private func reasonToBegin(_ resize: DeviceResize?) -> NewGenerationReason? {
        if let resize, resize.size < size { return .shrunk(from: size, to: resize.size) }
        if engine.isTrackingLost { return lossReason }
        return engine.epoch == .last ? .epochsUsedUp : nil
    }

    private func beginGeneration(_ reason: NewGenerationReason) {
        running.generationBegins(reason, size: size)
        _ = engine.cutSwitched(snapshot: nil, isBase: false, newMap: running.changeMap)
        let file = running.memory.file
        // Refused: what is stale is emptied when it is wanted.
        _ = blocking.submit(.erasure) { file.emptyStalePages() }
        notify(.generationBegan(generation, reason))
    }

    private func take(_ resize: DeviceResize) {
        let old = size
        // The engine marks in it until it is given the larger one.
        let former = running.memory
        // It was made before this cut had its turn: another one may have brought more room.
        let memory = resize.memory.flatMap { $0.chunkCount > former.chunkCount ? $0 : nil }
        running.resized(to: resize.size, memory)
        let larger = memory?.changeMap(current: engine.epoch, newestBase: engine.newestBase)
        withExtendedLifetime(former) {
            engine.deviceResized(to: resize.size, in: larger, now: loop.now)
        }
        size = resize.size
        notify(.resized(from: old, to: size))
    }

    // MARK: Pages

    /// A write waits for a page of the map.
    func reserveMapPage(_ page: UInt64) {
        pageQueue.wanted(page)
        startPageJob()
    }

    private func startPageJob() {
        let pageCount = ChangeMap.pageCount(chunkCount: MapLayout.chunkCount(size: size))
        let job = pageQueue.nextJob(pageCount: pageCount) { engine.isMapPageReserved($0) }
        guard let job else { return }
        let work = pageWork ?? MapPageWork(device: self)
        pageWork = work
        work.prepare(
            job.pages, isAhead: job.isAhead, memory: running.memory, engine.generationOrdinal)
        // The pool takes it unless it has ended.
        if !blocking.submit(.pages, work: work) { mapPagesAnswered(work) }
    }

    /// A job for pages has ended.
    func mapPagesAnswered(_ work: MapPageWork) {
        pageQueue.jobEnded()
        if work.ordinal == engine.generationOrdinal {
            for page in work.pages.prefix(work.reservedCount) { engine.mapPageReserved(page) }
            // A failure ahead of need is ignored.
            if work.failure != 0, !work.isAhead {
                mapPageRefused(work.pages[work.reservedCount], failure: work.failure)
            }
        } else if !work.isAhead {
            // A new generation began meanwhile: the pages may be stale by now.
            for page in work.pages { pageQueue.wanted(page) }
        }
        startPageJob()
        engineTouched()
        usersChanged()
    }

    private func mapPageRefused(_ page: UInt64, failure: Int32) {
        pageQueue.forgetAll()
        lossPage = page
        trackingLost(.mapMemoryShort(failure))
    }
}

/// Makes pages of a device's change map resident: one job of the pool at a time.
final class MapPageWork: BlockingWork, @unchecked Sendable {
    // SAFETY: `BlockingWork` says which thread touches the fields when.
    private unowned let device: Device
    private(set) var pages: [UInt64] = []
    private(set) var isAhead = false
    /// Of the engine, when the pages were asked for.
    private(set) var ordinal: UInt32 = 0
    /// So many of the pages, the first ones, are there; `failure` says why the next one is not.
    private(set) var reservedCount = 0
    private(set) var failure: Int32 = 0
    private var memory: ChangeMapMemory

    init(device: Device) {
        self.device = device
        memory = device.running.memory
        super.init(mailbox: device.loop.mailbox)
    }

    func prepare(
        _ pages: [UInt64], isAhead: Bool, memory: ChangeMapMemory, _ ordinal: UInt32
    ) {
        self.pages = pages
        self.isAhead = isAhead
        self.memory = memory
        self.ordinal = ordinal
        reservedCount = 0
        failure = Fault.noMemory.errnoValue
    }

    override func perform() {
        for page in pages {
            guard memory.reserve(page: page) else {
                failure = errno
                return
            }
            reservedCount += 1
        }
        failure = 0
    }

    override func finished() { device.mapPagesAnswered(self) }
}
