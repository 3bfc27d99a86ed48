package import BlockModel
internal import ChangeTracking
package import Devices
internal import Glibc
internal import LiveTracking
internal import Origins
internal import RingIO

// Live devices: their users keep using the origin, and programs in the kernel mark what is written.
// The marks are taken into the change map before every cut and before every answer.
//
// Invariants
// - A mark is cleared only after the change map has it, which is memory that outlives the service.
// - The marks' completeness is looked at after they were taken: what may be missing is reported
//   then.

/// What became of marks that were to be taken.
package enum LiveTake: Equatable, Sendable {
    /// All that were set when it was asked for are in the change map, so many bytes.
    case taken(UInt64)
    /// They may not be complete, or the map could not take them: a new generation follows.
    case lost
    /// The loop or the pool had too much to do; marks that are left are taken the next time.
    case busy
}

extension AttachedDevice {
    /// It is tracked in use.
    package var isLive: Bool { live != nil }

    /// Bytes that a mark of a live device stands for.
    package var granularity: UInt64? { live?.granularity }

    /// Bytes of kernel memory that the marks of its disk take.
    package var markByteCount: UInt64? { live?.byteCount }

    /// The live device's own number.
    package var liveNumber: DeviceNumber? { live?.place.number }

    /// Number of the disk that it lies on.
    package var liveDiskNumber: DeviceNumber? { live?.place.diskNumber }

    /// Ends the tracking of a live device that is detached for good.
    package func endLiveTracking() async {
        guard let live else { return }
        if await blocking.run({ live.end() }) == nil { live.end() }
    }

    /// From now on the loop can have marks taken.
    func beginTaking() async {
        guard live != nil else { return }
        let device = device
        _ = await loop.mailbox.run { loop in
            device.get(on: loop).takeMarks = { range in _ = await self.takeMarks(in: range) }
        }
    }

    /// Takes the marks of a range, all when nil, into the change map.
    package func takeMarks(in range: ByteRange? = nil) async -> LiveTake {
        guard let live else { return .taken(0) }
        let size = facts.size
        let wanted = range ?? ByteRange(offset: 0, length: size)
        let end = min(wanted.end, size)
        guard wanted.offset < end else { return .taken(0) }
        let bounds = ByteRange(offset: wanted.offset, length: end - wanted.offset)
        var position = bounds.offset
        var total: UInt64 = 0
        while position < bounds.end {
            let start = position
            let found = await blocking.run { live.collect(from: start, in: bounds) }
            guard let found else { return .busy }
            if !found.ranges.isEmpty {
                if let refusal = await mark(found.ranges, blocking: blocking) {
                    return await refused(refusal)
                }
                found.clear()
                total += found.ranges.reduce(0) { $0 + $1.length }
            }
            position = found.resumeOffset
        }
        guard let doubt = await blocking.run({ live.examine() }) else { return .busy }
        guard let doubt else { return .taken(total) }
        await lose(.doubted(doubt))
        return .lost
    }

    private func refused(_ refusal: ChangesRefusal) async -> LiveTake {
        switch refusal {
        case .noMemory: await lose(.mapMemoryShort(ENOMEM))
        case .generationUnknown: await adoptMarks()
        case .damaged: await lose(.mapDamaged)
        case .busy, .changed, .sinceIsLater, .notTaken, .notHeld, .corrupted, .failed, .beyondEnd,
            .tooManyForSnapshot:
            return .busy
        }
        return .lost
    }

    private func lose(_ reason: NewGenerationReason) async {
        let (device, token) = (device, live?.token)
        _ = await loop.mailbox.run { loop in
            let device = device.get(on: loop)
            if let token { device.running.marksRenewed(token) }
            device.trackingLost(reason)
            device.engineTouched()
        }
    }

    /// Tracking is lost already; the next generation continues with the marks as they are.
    private func adoptMarks() async {
        guard let live, await blocking.run({ live.examine() }) != nil else { return }
        let (device, token) = (device, live.token)
        _ = await loop.mailbox.run { device.get(on: $0).running.marksRenewed(token) }
    }

    /// Before a question about changes until now.
    func takeMarks(for query: ChangesQuery) async -> ChangesRefusal? {
        guard isLive, query.until == nil, query.sinceEpoch != nil else { return nil }
        let size = facts.size
        guard query.offset < size else { return nil }
        let length = min(query.length ?? .max, size - query.offset)
        switch await takeMarks(in: ByteRange(offset: query.offset, length: length)) {
        case .taken: return nil
        case .lost: return .generationUnknown
        case .busy: return .busy
        }
    }

    /// Bytes of a live device that were written after the cut of `base`, 0 for one that is served.
    /// Where a mark stands for a neighbour's sectors too, nothing is known, and that range is left
    /// out.
    package func writtenBesides(since base: TrackingBase) async -> Result<UInt64, ChangesRefusal> {
        guard let live else { return .success(0) }
        let own = live.ownRange(size: facts.size)
        guard !own.isEmpty else { return .success(0) }
        var query = ChangesQuery(since: .base(base), until: nil)
        query.offset = own.offset
        query.length = own.length
        return await changes(query).map { page in
            page.ranges.reduce(0) { $0 + $1.length } + (page.nextOffset == nil ? 0 : 1)
        }
    }

    /// Before a cut: the size that the disk has now, and what is marked. What cannot be taken is
    /// left for the next epoch; what is lost begins a new generation at the cut.
    func takeMarksBeforeCut() async {
        guard let live else { return }
        let failure = await blocking.run { () -> LiveError? in
            guard let place = live.currentPlace else { return nil }
            return live.grow(to: place.diskSectorCount)
        }
        if case .some(.some) = failure { await lose(.doubted(.notGrown)) }
        _ = await takeMarks()
    }
}
