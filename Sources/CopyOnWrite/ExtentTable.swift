// The extents one device got from its difference storage, and the blocks in them.
//
// Invariants
// - A slot is free, in use, or freed but still being read ("resting"); never two of them.
// - Resting slots of an extent become free when its last reader is gone.
// - An extent without used slots, resting slots, readers and appender is released at once.
// - The checksum of a slot is set before the slot's place is known to a layer.

/// Index of a storage source of a device's engine.
package struct SourceIndex: Hashable, Sendable {
    package let rawValue: UInt16

    package init(_ rawValue: UInt16) { self.rawValue = rawValue }
}

/// Slots, readers and checksums of a device's extents. Confined to one loop.
package struct ExtentTable {
    /// Blocks in an extent of 4 MiB.
    package static let slotsPerExtent: UInt32 = 1024
    /// Bytes in an extent.
    package static let extentByteCount: UInt64 = 4 << 20

    private struct Extent: BitwiseCopyable {
        var source: UInt16
        var isLive: Bool
        var isOpen: Bool
        var readers: UInt32
        var usedCount: UInt32
        var freeCount: UInt32
        var byteOffset: UInt64
        /// 16 words of free bits, 16 of resting bits, 512 words of checksums.
        var words: UnsafeMutablePointer<UInt64>
        var nextFree: UInt32
    }

    private var extents = SlabPool<Extent>(slabShift: 8)
    private var freeExtent = UInt32.max
    /// Extents held now.
    package private(set) var extentCount = 0
    /// Slots in use now.
    package private(set) var usedCount: UInt64 = 0

    package init() {}

    /// An extent at `byteOffset` of `source` was granted. It is open: it stays although unused.
    package mutating func add(source: SourceIndex, byteOffset: UInt64) -> UInt32 {
        let words = UnsafeMutablePointer<UInt64>.allocate(capacity: 16 + 16 + 512)
        words.initialize(repeating: .max, count: 16)
        (words + 16).initialize(repeating: 0, count: 16 + 512)
        let extent = Extent(
            source: source.rawValue, isLive: true, isOpen: true, readers: 0, usedCount: 0,
            freeCount: Self.slotsPerExtent, byteOffset: byteOffset, words: words, nextFree: .max)
        extentCount += 1
        guard freeExtent != .max else { return extents.append(extent) }
        let index = freeExtent
        freeExtent = extents.pointer(to: index).pointee.nextFree
        extents.pointer(to: index).pointee = extent
        return index
    }

    /// Takes up to `limit` neighbouring free slots of an open extent; nil when none is free.
    package mutating func take(upTo limit: Int, of index: UInt32) -> (StorageSlot, Int)? {
        let extent = extents.pointer(to: index)
        precondition(extent.pointee.isOpen, "slots are taken from an open extent")
        guard extent.pointee.freeCount > 0, limit > 0 else { return nil }
        let words = extent.pointee.words
        var first = 0
        while words[first >> 6] >> UInt64(first & 63) == 0 { first = ((first >> 6) + 1) << 6 }
        first += (words[first >> 6] >> UInt64(first & 63)).trailingZeroBitCount
        var count = 0
        while count < limit, first + count < Int(Self.slotsPerExtent),
            words[(first + count) >> 6] & 1 << UInt64((first + count) & 63) != 0
        {
            words[(first + count) >> 6] &= ~(1 << UInt64((first + count) & 63))
            count += 1
        }
        extent.pointee.freeCount -= UInt32(count)
        extent.pointee.usedCount += UInt32(count)
        usedCount += UInt64(count)
        return (StorageSlot(index * Self.slotsPerExtent + UInt32(first)), count)
    }

    /// Free slots of an extent.
    package func freeCount(of index: UInt32) -> UInt32 {
        extents.pointer(to: index).pointee.freeCount
    }

    /// The slot's block is no longer needed. Returns true when its extent can be released.
    package mutating func free(_ slot: StorageSlot) -> Bool {
        let extent = extents.pointer(to: Self.extent(of: slot))
        precondition(extent.pointee.isLive, "a used slot lies in a live extent")
        let bit = Int(slot.rawValue % Self.slotsPerExtent)
        let mask: UInt64 = 1 << UInt64(bit & 63)
        let words = extent.pointee.words
        precondition(words[bit >> 6] & mask == 0, "a free slot is not freed again")
        precondition(words[16 + (bit >> 6)] & mask == 0, "a resting slot is not freed again")
        extent.pointee.usedCount -= 1
        usedCount -= 1
        if extent.pointee.readers > 0 {
            words[16 + (bit >> 6)] |= mask
        } else {
            words[bit >> 6] |= mask
            extent.pointee.freeCount += 1
        }
        return isReleasable(extent.pointee)
    }

    /// A read of slots of this extent begins.
    package mutating func readBegan(_ slot: StorageSlot) {
        extents.pointer(to: Self.extent(of: slot)).pointee.readers += 1
    }

    /// A read ended. Returns true when the extent can be released.
    package mutating func readEnded(_ slot: StorageSlot) -> Bool {
        let extent = extents.pointer(to: Self.extent(of: slot))
        precondition(extent.pointee.readers > 0, "a read ends once")
        extent.pointee.readers -= 1
        guard extent.pointee.readers == 0 else { return false }
        for word in 0..<16 {
            let resting = extent.pointee.words[16 + word]
            extent.pointee.words[word] |= resting
            extent.pointee.words[16 + word] = 0
            extent.pointee.freeCount += UInt32(resting.nonzeroBitCount)
        }
        return isReleasable(extent.pointee)
    }

    /// The extent is no longer (or again) appended to. Returns true when it can be released.
    package mutating func setOpen(_ isOpen: Bool, _ index: UInt32) -> Bool {
        let extent = extents.pointer(to: index)
        precondition(extent.pointee.isLive, "an open extent is live")
        extent.pointee.isOpen = isOpen
        return isReleasable(extent.pointee)
    }

    /// An extent of `source` that is not open and has free slots; nil when there is none.
    package func findReusable(source: SourceIndex) -> UInt32? {
        for index in 0..<extents.count {
            let extent = extents.pointer(to: index).pointee
            if extent.isLive, !extent.isOpen, extent.source == source.rawValue,
                extent.freeCount > 0
            {
                return index
            }
        }
        return nil
    }

    /// Forgets a releasable extent; returns where it was.
    package mutating func release(_ index: UInt32) -> (source: SourceIndex, byteOffset: UInt64) {
        let extent = extents.pointer(to: index)
        precondition(isReleasable(extent.pointee), "only an idle extent is released")
        extent.pointee.words.deallocate()
        extent.pointee.isLive = false
        extent.pointee.nextFree = freeExtent
        freeExtent = index
        extentCount -= 1
        return (SourceIndex(extent.pointee.source), extent.pointee.byteOffset)
    }

    /// Where the slot's bytes are.
    package func address(of slot: StorageSlot) -> (source: SourceIndex, byteOffset: UInt64) {
        let extent = extents.pointer(to: Self.extent(of: slot)).pointee
        precondition(extent.isLive, "a used slot lies in a live extent")
        return (
            SourceIndex(extent.source),
            extent.byteOffset + UInt64(slot.rawValue % Self.slotsPerExtent) * 4096
        )
    }

    /// CRC32C of the slot's block.
    package func checksum(of slot: StorageSlot) -> UInt32 {
        let extent = extents.pointer(to: Self.extent(of: slot)).pointee
        let position = Int(slot.rawValue % Self.slotsPerExtent)
        let word = extent.words[32 + (position >> 1)]
        return UInt32(truncatingIfNeeded: word >> (UInt64(position & 1) * 32))
    }

    /// Keeps the CRC32C of the slot's block.
    package func setChecksum(_ checksum: UInt32, of slot: StorageSlot) {
        let extent = extents.pointer(to: Self.extent(of: slot)).pointee
        let position = Int(slot.rawValue % Self.slotsPerExtent)
        let shift = UInt64(position & 1) * 32
        let word = extent.words + (32 + (position >> 1))
        word.pointee = word.pointee & ~(0xFFFF_FFFF << shift) | UInt64(checksum) << shift
    }

    /// The extent that holds `slot`.
    package static func extent(of slot: StorageSlot) -> UInt32 { slot.rawValue / slotsPerExtent }

    private func isReleasable(_ extent: Extent) -> Bool {
        extent.isLive && !extent.isOpen && extent.usedCount == 0 && extent.readers == 0
    }

    /// Frees everything. The table must not be used afterwards.
    package mutating func deallocate() {
        for index in 0..<extents.count where extents.pointer(to: index).pointee.isLive {
            extents.pointer(to: index).pointee.words.deallocate()
        }
        extents.deallocate()
    }
}
