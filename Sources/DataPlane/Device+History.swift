internal import BlockModel
internal import ChangeTracking
internal import Glibc
internal import RingIO
internal import SnapshotCore

// What cuts, a lack of memory and another size mean for a device's history.

extension Device {
    /// The unbroken tracking history that the engine's epochs count in.
    var generation: Generation { keeper.header.generation }

    /// Changes are not known from here on; said before a write goes unmarked.
    func trackingLost(_ reason: NewHistoryReason) {
        guard !engine.isTrackingLost else { return }
        lossReason = reason
        keeper.trackingLost(reason)
        engine.trackingLost()
        notify(.trackingLost(reason))
    }

    /// An entry was found that cannot be: its generation has to end.
    func mapFoundDamaged() {
        trackingLost(.mapDamaged)
        engineTouched()
    }

    /// The newest cut usable as a base is another one; 0: none is.
    func newestBaseChanged(to base: UInt32) {
        keeper.newestBaseChanged(to: base)
        engine.newestBaseChanged(to: base)
    }

    /// The cut: cannot fail. A history that cannot be continued ends here, and the cut is the first
    /// of the next one. Returns the epoch that ended, of the generation that the device has now.
    func switchEpoch(holding part: SnapshotPart?, isBase: Bool, resize: DeviceResize?) -> Epoch {
        if let reason = reasonToBegin(resize) { beginGeneration(reason) }
        if let resize { take(resize) }
        keeper.cutComing(isBase: isBase)
        let ended = engine.cutSwitched(snapshot: part?.index, isBase: isBase)
        part?.held()
        engineTouched()
        return ended
    }

    private func reasonToBegin(_ resize: DeviceResize?) -> NewHistoryReason? {
        if let resize, resize.size < size { return .shrunk(from: size, to: resize.size) }
        if engine.isTrackingLost { return lossReason }
        return engine.epoch == .last ? .epochsUsedUp : nil
    }

    private func beginGeneration(_ reason: NewHistoryReason) {
        keeper.generationBegins(reason, size: size)
        _ = engine.cutSwitched(snapshot: nil, isBase: false, newMap: keeper.changeMap)
        let file = keeper.memory.file
        // Refused: what is stale is emptied when it is wanted.
        _ = blocking.submit { file.emptyStalePages() }
        notify(.generationBegan(generation, reason))
    }

    private func take(_ resize: DeviceResize) {
        let old = size
        // The engine marks in it until it is told of the larger one.
        let former = keeper.memory
        // It was made before this cut had its turn: another one may have brought more room.
        let memory = resize.memory.flatMap { $0.chunkCount > former.chunkCount ? $0 : nil }
        keeper.resized(to: resize.size, memory)
        let larger = memory?.changeMap(current: engine.epoch, newestBase: engine.newestBase)
        withExtendedLifetime(former) {
            engine.deviceResized(to: resize.size, in: larger, now: loop.now)
        }
        size = resize.size
        notify(.resized(from: old, to: size))
    }

    // MARK: Pages

    func reserveMapPage(_ page: UInt64) {
        let back = LoopConfined(self, on: loop)
        let mailbox = loop.mailbox
        let memory = keeper.memory
        let ordinal = engine.generationOrdinal
        let accepted = blocking.submit {
            let isReserved = memory.reserve(page: page)
            let failure = isReserved ? 0 : errno
            mailbox.postWhenRoom { loop in
                back.get(on: loop).mapPageAnswered(page, failure: failure, ordinal: ordinal)
            }
        }
        if !accepted { mapPageRefused(page, failure: Fault.noMemory.errnoValue) }
    }

    private func mapPageAnswered(_ page: UInt64, failure: Int32, ordinal: UInt32) {
        guard ordinal == engine.generationOrdinal else {
            // A new generation began meanwhile: the page may be stale by now.
            return reserveMapPage(page)
        }
        if failure == 0 {
            engine.mapPageReserved(page)
        } else {
            mapPageRefused(page, failure: failure)
        }
        engineTouched()
    }

    private func mapPageRefused(_ page: UInt64, failure: Int32) {
        lossPage = page
        trackingLost(.mapMemoryShort(failure))
    }
}
