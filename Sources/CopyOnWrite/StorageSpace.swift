package import BlockModel

// The space of one source of difference storage: extents, growth in steps, limit, low space, what
// is to be erased. Shared by all devices that use the source, so it lives where their requests
// meet.
//
//   [ granted | ready | dirty -> erased | ... ] [ never granted ]  end ... limit
//        ^        |        |                          |
//        +--------+--------+--------------------------+     holes: erased and no longer reserved,
//                                                           reserved again by a growth step
//
// Invariants
// - An extent is granted, ready, dirty, being erased, unclean, a hole, or was never granted.
// - Every granted extent is reserved: its bytes were allocated after it was last punched.
// - What was written is erased before it is granted again, unless it stays reserved in a file.
// - Preserving may use everything; an overlay leaves a tenth of what is available untouched.
// - At most one growth step and one erasure are under way. Low space is announced once until it
//   is over.
// - A refusal of growth holds until the next request that finds nothing: then growth is tried
//   again.

/// Who wants the space.
@usableFromInline package enum StoragePurpose: UInt8, Sendable {
    /// Old data of an origin.
    case preserving
    /// Blocks written through an image.
    case overlay
}

/// Decides who gets the extents of a source, when it grows and what is erased. Pure.
package struct StorageSpace {
    /// Answer to a request for an extent.
    package enum Answer: Equatable, Sendable {
        /// The extent at this offset.
        case granted(byteOffset: UInt64)
        /// Ask again when the growth or erasure under way has ended.
        case coming
        /// No room up to the limit, or none that the filesystem gives.
        case full
    }

    /// What keeps a source from giving more.
    package enum Bound: Equatable, Sendable {
        /// It is as large as it is: memory, a block device.
        case size
        /// The limit that it was opened with.
        case limit
        /// What its filesystem has left beyond the reserve, in bytes when it was last seen.
        case filesystem(UInt64)
    }

    private static let lowByteCount: UInt64 = 16 << 20

    /// Bytes of each extent.
    package let extentByteCount: UInt64
    /// Bytes the source may grow to.
    package let limit: UInt64
    /// Bytes that exist now, usable in whole extents.
    package private(set) var capacity: UInt64
    /// Bytes in granted extents.
    package private(set) var grantedByteCount: UInt64 = 0
    /// Bytes of the next growth step: doubled by one that succeeds, halved by one that falls short.
    package private(set) var growthStep: UInt64
    /// Extents that could not be erased: they are not granted again.
    package private(set) var unclean: [UInt64] = []

    /// 0: the source does not grow.
    private let growthStepMax: UInt64
    /// The source reaches to here; what lies below was allocated once.
    private var end: UInt64
    private var untouched: UInt64 = 0
    private var ready: [UInt64] = []
    private var holes: [UInt64] = []
    private var dirty: [UInt64] = []
    private var erasingByteCount: UInt64 = 0
    private var isErasing = false
    private var isGrowing = false
    private var isExhausted = false
    private var isGrowthWanted = false
    private var wasUncleanRetried = false
    private var lowAnnounced = false
    /// What the filesystem had beyond its reserve at the last look; nil when it did not say.
    private var room: UInt64?

    /// A source that has `byteCount` bytes and no more: memory, a block device.
    package init(fixed byteCount: UInt64, extentByteCount: UInt64) {
        self.extentByteCount = extentByteCount
        limit = byteCount
        capacity = byteCount / extentByteCount * extentByteCount
        end = capacity
        growthStep = 0
        growthStepMax = 0
    }

    /// A source that begins empty and grows up to `limit`: a file. The first step has at most
    /// `firstStep` bytes, the others at most `growthStepMax`.
    package init(
        growingTo limit: UInt64, firstStep: UInt64, growthStepMax: UInt64, extentByteCount: UInt64
    ) {
        self.extentByteCount = extentByteCount
        self.limit = limit
        capacity = 0
        end = 0
        let most = max(growthStepMax / extentByteCount * extentByteCount, extentByteCount)
        self.growthStepMax = most
        growthStep = min(max(firstStep / extentByteCount * extentByteCount, extentByteCount), most)
    }

    private var canGrow: Bool { growthStepMax > 0 }

    /// Reserved, clean and not granted.
    private var readyByteCount: UInt64 {
        UInt64(ready.count) * extentByteCount + (end - untouched)
    }

    /// Bytes that may still be added, as far as is known.
    private var growableByteCount: UInt64 {
        guard canGrow, !isExhausted else { return 0 }
        let wholeLimit = limit / extentByteCount * extentByteCount
        return min(wholeLimit - min(capacity, wholeLimit), room ?? .max)
    }

    /// Bytes that can still be granted, growth and erasure included.
    package var availableByteCount: UInt64 {
        readyByteCount + UInt64(dirty.count) * extentByteCount + erasingByteCount
            + growableByteCount
    }

    /// What would have to be raised for more room.
    package var bound: Bound {
        guard canGrow else { return .size }
        if capacity + extentByteCount > limit { return .limit }
        if isExhausted { return .filesystem(room ?? 0) }
        guard let room, room < limit - capacity else { return .limit }
        return .filesystem(room)
    }

    // MARK: Extents

    /// A device wants an extent.
    package mutating func extentWanted(for purpose: StoragePurpose) -> Answer {
        answer(purpose, mayGrow: true)
    }

    /// The same for a device that waited: growth or erasure has ended. When nothing came of it the
    /// source is full.
    package mutating func extentAwaited(for purpose: StoragePurpose) -> Answer {
        answer(purpose, mayGrow: !isExhausted)
    }

    private mutating func answer(_ purpose: StoragePurpose, mayGrow: Bool) -> Answer {
        if purpose == .overlay {
            let available = availableByteCount
            if available < (grantedByteCount + available) / 10 + extentByteCount { return .full }
        }
        if let offset = ready.popLast() {
            grantedByteCount += extentByteCount
            return .granted(byteOffset: offset)
        }
        if untouched < end {
            let offset = untouched
            untouched += extentByteCount
            grantedByteCount += extentByteCount
            return .granted(byteOffset: offset)
        }
        if isGrowing || isErasing || isGrowthWanted || !dirty.isEmpty { return .coming }
        guard canGrow, mayGrow, capacity + extentByteCount <= limit else { return .full }
        isGrowthWanted = true
        return .coming
    }

    /// The extent came back. A file keeps a step's worth reserved as it is; the rest is erased.
    package mutating func extentReleased(byteOffset: UInt64) {
        precondition(byteOffset < untouched, "a released extent was granted")
        grantedByteCount -= extentByteCount
        if canGrow, readyByteCount < growthStep {
            ready.append(byteOffset)
        } else {
            dirty.append(byteOffset)
        }
    }

    /// True once when less than a tenth of the available space is left; small storage, which is
    /// used up soon, says so earlier: at 16 MiB or a quarter.
    package mutating func lowSpaceDue() -> Bool {
        let available = availableByteCount
        let reach = grantedByteCount + available
        let isLow = available < max(reach / 10, min(Self.lowByteCount, reach / 4))
        if !isLow { lowAnnounced = false }
        guard isLow, !lowAnnounced else { return false }
        lowAnnounced = true
        return true
    }

    // MARK: Growth

    /// What to add now, ahead of need; nil when no growth is due. The caller performs the run and
    /// says `growthEnded`, or `growthPutOff` when it could not begin.
    package mutating func growthDue() -> GrowthRun? {
        guard canGrow, !isGrowing, capacity + extentByteCount <= limit else { return nil }
        // A step that was just doubled is not due at once.
        let ahead = growthStep == growthStepMax ? growthStep / 2 : growthStep / 4
        guard isGrowthWanted || !isExhausted && readyByteCount < ahead else { return nil }
        isGrowthWanted = false
        isGrowing = true
        let wanted = min(growthStep, limit - capacity) / extentByteCount * extentByteCount
        var pieces: [GrowthRun.Piece] = []
        var planned: UInt64 = 0
        while planned < wanted, let hole = holes.popLast() {
            pieces.append(GrowthRun.Piece(byteOffset: hole, byteCount: extentByteCount))
            planned += extentByteCount
        }
        if planned < wanted {
            pieces.append(
                GrowthRun.Piece(byteOffset: end, byteCount: wanted - planned, isTail: true))
        }
        return GrowthRun(pieces, extentByteCount: extentByteCount)
    }

    /// The run is over; what it got is used.
    package mutating func growthEnded(_ run: GrowthRun) {
        isGrowing = false
        ready.append(contentsOf: run.filledHoles)
        holes.append(contentsOf: run.missedHoles)
        end += run.tailByteCount
        let got = run.tailByteCount + UInt64(run.filledHoles.count) * extentByteCount
        capacity += got
        room = run.room ?? room
        if run.isShort {
            growthStep = max(
                growthStep / 2 / extentByteCount * extentByteCount, extentByteCount)
            isExhausted = got == 0
        } else if got > 0 {
            growthStep = min(growthStep * 2, growthStepMax)
            isExhausted = false
        }
    }

    /// No thread could be started for the run: it is due again, and nothing is known to be full.
    package mutating func growthPutOff(_ run: GrowthRun) {
        isGrowing = false
        isGrowthWanted = true
        holes.append(contentsOf: run.missedHoles)
    }

    // MARK: Erasure

    /// Extents to erase now; nil when there are none, or an erasure is under way. The caller says
    /// `erased` for every piece of an `ErasurePlan`, then `erasureEnded`, or `erasurePutOff` when
    /// it could not begin.
    package mutating func erasureDue() -> [UInt64]? {
        guard !isErasing, !dirty.isEmpty else { return nil }
        isErasing = true
        let offsets = dirty
        dirty = []
        erasingByteCount = UInt64(offsets.count) * extentByteCount
        return offsets
    }

    /// Once, at the end: what could not be erased, to be tried again.
    package mutating func lastErasureDue() -> [UInt64]? {
        guard !wasUncleanRetried, !unclean.isEmpty else { return nil }
        wasUncleanRetried = true
        dirty.append(contentsOf: unclean)
        unclean = []
        return erasureDue()
    }

    /// A piece of an erasure is done, or could not be.
    package mutating func erased(_ piece: ByteRange, isClean: Bool) {
        erasingByteCount -= piece.length
        let offsets = stride(from: piece.offset, to: piece.end, by: Int(extentByteCount))
        if !canGrow, isClean {
            ready.append(contentsOf: offsets)
        } else if !canGrow {
            unclean.append(contentsOf: offsets)
        } else if isClean {
            holes.append(contentsOf: offsets)
            capacity -= piece.length
        } else {
            // A file is gone with its last descriptor: what was not punched is still reserved.
            ready.append(contentsOf: offsets)
        }
    }

    /// All pieces were reported.
    package mutating func erasureEnded() {
        precondition(erasingByteCount == 0, "an erasure ends with its last piece")
        isErasing = false
    }

    /// No thread could be started for the erasure: it is due again.
    package mutating func erasurePutOff(_ offsets: [UInt64]) {
        erasingByteCount -= UInt64(offsets.count) * extentByteCount
        // Most often nothing came meanwhile: then nothing is copied.
        if dirty.isEmpty { dirty = offsets } else { dirty.append(contentsOf: offsets) }
        erasureEnded()
    }

    /// A growth step or an erasure is under way: who waits for an extent will be answered.
    package var isWorking: Bool { isGrowing || isErasing }
}
