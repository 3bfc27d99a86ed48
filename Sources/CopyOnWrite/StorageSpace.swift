// The space of one source of difference storage: extents, growth in steps, limit, low space.
// Shared by all devices that use the source, so it lives where their requests meet.
//
// Invariants
// - An extent is free or granted; granted extents lie below the capacity.
// - Preserving may use everything; an overlay leaves a tenth of the limit alone.
// - At most one growth step is under way. Low space is announced once until it is over.

/// Who wants the space.
package enum StoragePurpose: UInt8, Sendable {
    /// Old data of an origin.
    case preserving
    /// Blocks written through an image.
    case overlay
}

/// Decides who gets the extents of a source, and when it grows. Pure.
package struct StorageSpace {
    /// Answer to a wish for an extent.
    package enum Answer: Equatable, Sendable {
        /// The extent at this offset.
        case granted(byteOffset: UInt64)
        /// Ask again when the growth under way has ended.
        case growing
        /// No room up to the limit.
        case full
    }

    /// Bytes that exist now, usable in whole extents.
    package private(set) var capacity: UInt64
    /// Bytes the source may grow to.
    package let limit: UInt64
    /// Bytes of a growth step; 0: the source does not grow.
    package let growthStep: UInt64
    private var returned: [UInt64] = []
    private var untouched: UInt64 = 0
    private var isGrowing = false
    private var growthFailed = false
    private var lowAnnounced = false
    /// Bytes in granted extents.
    package private(set) var grantedByteCount: UInt64 = 0

    package init(capacity: UInt64, limit: UInt64, growthStep: UInt64) {
        precondition(capacity <= limit, "a source begins within its limit")
        self.capacity = capacity
        self.limit = limit
        self.growthStep = growthStep
    }

    /// Bytes that can still be granted, growth included.
    package var availableByteCount: UInt64 {
        let size = ExtentTable.extentByteCount
        let end = growthFailed || growthStep == 0 ? capacity : limit
        return end / size * size - min(grantedByteCount, end / size * size)
    }

    /// A device wants an extent.
    package mutating func extentWanted(for purpose: StoragePurpose) -> Answer {
        let size = ExtentTable.extentByteCount
        if purpose == .overlay, availableByteCount < limit / 10 + size { return .full }
        if let offset = returned.popLast() {
            grantedByteCount += size
            return .granted(byteOffset: offset)
        }
        if untouched + size <= capacity {
            let offset = untouched
            untouched += size
            grantedByteCount += size
            return .granted(byteOffset: offset)
        }
        return availableByteCount >= size ? .growing : .full
    }

    /// The extent came back, discarded or zeroed where that is needed.
    package mutating func extentReleased(byteOffset: UInt64) {
        precondition(byteOffset < untouched, "a released extent was granted")
        returned.append(byteOffset)
        grantedByteCount -= ExtentTable.extentByteCount
    }

    /// How many bytes to add now, ahead of need; nil when no growth is due. The caller then
    /// grows the source and says `grown` or `growthRefused`.
    package mutating func growthDue() -> UInt64? {
        guard !isGrowing, !growthFailed, growthStep > 0, capacity < limit else { return nil }
        guard capacity - min(grantedByteCount, capacity) <= growthStep / 2 else { return nil }
        isGrowing = true
        return min(growthStep, limit - capacity)
    }

    /// The source has `byteCount` bytes more.
    package mutating func grown(by byteCount: UInt64) {
        capacity = min(capacity + byteCount, limit)
        isGrowing = false
        lowAnnounced = false
    }

    /// The source cannot grow any more: its capacity is what it has.
    package mutating func growthRefused() {
        isGrowing = false
        growthFailed = true
    }

    /// True once when less than a tenth of the limit or one growth step is left.
    package mutating func lowSpaceDue() -> Bool {
        let isLow = availableByteCount < max(limit / 10, growthStep)
        if !isLow { lowAnnounced = false }
        guard isLow, !lowAnnounced else { return false }
        lowAnnounced = true
        return true
    }
}
