// The extents one device got from its difference storage, and the blocks in them.
//
// Invariants
// - A slot is free, in use, or freed but still being read ("resting"); never two of them.
// - Resting slots of an extent become free when its last reader is gone.
// - An extent without used slots, resting slots, readers and appender is released at once.
// - The checksum of a slot is set before the slot's place is known to a layer.
// - An extent whose slots are all in use has no bits: most extents are like that.
// - Small sources have small extents: those use the first of the 1024 numbers that each extent has.

/// Index of a storage source of a device's engine.
@usableFromInline package struct SourceIndex: Hashable, Sendable {
    @usableFromInline package let rawValue: UInt16

    @inlinable package init(_ rawValue: UInt16) { self.rawValue = rawValue }
}

/// Slots, readers and checksums of a device's extents. Confined to one loop.
package struct ExtentTable {
    /// Numbers of slots that each extent has: the blocks of the largest one, 4 MiB.
    package static let slotsPerExtent: UInt32 = 1024
    /// Bytes in the largest extent.
    package static let extentByteCount: UInt64 = 4 << 20
    /// Most extents: slots have 31 bits, and those that were asked for must find a number too.
    package static let extentCountMax = (1 << 21) - 1024

    private struct Extent: BitwiseCopyable {
        var source: UInt16
        var slotCount: UInt16
        var isLive: Bool
        var isOpen: Bool
        var readers: UInt32
        var usedCount: UInt32
        var freeCount: UInt32
        var byteOffset: UInt64
        /// CRC32C of each slot.
        var checksums: UnsafeMutablePointer<UInt32>
        /// Index of its bits, `none` when all slots are in use.
        var bits: UInt32
        var nextFree: UInt32

        var restingCount: UInt32 { UInt32(slotCount) - usedCount - freeCount }
    }

    /// Which slots are free, in 16 words, and which are resting, in 16 more.
    private typealias Bits = InlineArray<32, UInt64>

    private var extents = SlabPool<Extent>(slabShift: 8)
    private var freeExtent = SlabPool<Extent>.none
    private var bits = SlabPool<Bits>(slabShift: 4)
    private var freeBits = SlabPool<Bits>.none
    /// Extents held now.
    package private(set) var extentCount = 0
    /// Slots in use now.
    package private(set) var usedCount: UInt64 = 0

    package init() {}

    /// An extent of `slotCount` blocks at `byteOffset` of `source` was granted. It is open: it
    /// stays although unused.
    package mutating func add(
        source: SourceIndex, byteOffset: UInt64, slotCount: UInt32 = slotsPerExtent
    ) -> UInt32 {
        precondition(
            slotCount > 0 && slotCount <= Self.slotsPerExtent, "an extent has 1 to 1024 blocks")
        let checksums = UnsafeMutablePointer<UInt32>.allocate(capacity: Int(slotCount))
        checksums.initialize(repeating: 0, count: Int(slotCount))
        let bits = takeBits()
        for slot in stride(from: 0, to: Int(slotCount), by: 64) {
            let count = min(Int(slotCount) - slot, 64)
            self.bits.pointer(to: bits).pointee[slot >> 6] = .max >> UInt64(64 - count)
        }
        let extent = Extent(
            source: source.rawValue, slotCount: UInt16(slotCount), isLive: true, isOpen: true,
            readers: 0, usedCount: 0, freeCount: slotCount, byteOffset: byteOffset,
            checksums: checksums, bits: bits, nextFree: SlabPool<Extent>.none)
        extentCount += 1
        guard freeExtent != SlabPool<Extent>.none else { return extents.append(extent) }
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
        let words = bits.pointer(to: extent.pointee.bits)
        var first = 0
        while words.pointee[first >> 6] == 0 { first += 64 }
        first += words.pointee[first >> 6].trailingZeroBitCount
        var count = 0
        while count < limit, first + count < Int(extent.pointee.slotCount),
            words.pointee[(first + count) >> 6] & 1 << UInt64((first + count) & 63) != 0
        {
            words.pointee[(first + count) >> 6] &= ~(1 << UInt64((first + count) & 63))
            count += 1
        }
        extent.pointee.freeCount -= UInt32(count)
        extent.pointee.usedCount += UInt32(count)
        usedCount += UInt64(count)
        if extent.pointee.usedCount == UInt32(extent.pointee.slotCount) { dropBits(of: extent) }
        return (StorageSlot(index * Self.slotsPerExtent + UInt32(first)), count)
    }

    /// Free slots of an extent.
    package func freeCount(of index: UInt32) -> UInt32 {
        extents.pointer(to: index).pointee.freeCount
    }

    /// True when hardly any block of an open extent is free: the next one is to be asked for.
    package func isNearlyFull(_ index: UInt32) -> Bool {
        let extent = extents.pointer(to: index).pointee
        return extent.freeCount < UInt32(extent.slotCount) / 4
    }

    /// The slot's block is no longer needed. Returns true when its extent can be released.
    package mutating func free(_ slot: StorageSlot) -> Bool {
        let extent = extents.pointer(to: Self.extent(of: slot))
        precondition(extent.pointee.isLive, "a used slot lies in a live extent")
        let bit = Int(slot.rawValue % Self.slotsPerExtent)
        let mask: UInt64 = 1 << UInt64(bit & 63)
        if extent.pointee.bits == SlabPool<Bits>.none { extent.pointee.bits = takeBits() }
        let words = bits.pointer(to: extent.pointee.bits)
        precondition(words.pointee[bit >> 6] & mask == 0, "a free slot is not freed again")
        precondition(
            words.pointee[16 + (bit >> 6)] & mask == 0, "a resting slot is not freed again")
        extent.pointee.usedCount -= 1
        usedCount -= 1
        if extent.pointee.readers > 0 {
            words.pointee[16 + (bit >> 6)] |= mask
        } else {
            words.pointee[bit >> 6] |= mask
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
        if extent.pointee.restingCount > 0 {
            let words = bits.pointer(to: extent.pointee.bits)
            for word in 0..<16 {
                words.pointee[word] |= words.pointee[16 + word]
                words.pointee[16 + word] = 0
            }
            extent.pointee.freeCount += extent.pointee.restingCount
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
        extent.pointee.checksums.deallocate()
        dropBits(of: extent)
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
        let extent = extents.pointer(to: Self.extent(of: slot))
        return extent.pointee.checksums[Int(slot.rawValue % Self.slotsPerExtent)]
    }

    /// Keeps the CRC32C of the slot's block.
    package func setChecksum(_ checksum: UInt32, of slot: StorageSlot) {
        let extent = extents.pointer(to: Self.extent(of: slot))
        extent.pointee.checksums[Int(slot.rawValue % Self.slotsPerExtent)] = checksum
    }

    /// The extent that holds `slot`.
    package static func extent(of slot: StorageSlot) -> UInt32 { slot.rawValue / slotsPerExtent }

    private func isReleasable(_ extent: Extent) -> Bool {
        extent.isLive && !extent.isOpen && extent.usedCount == 0 && extent.readers == 0
    }

    /// Frees everything. The table must not be used afterwards.
    package mutating func deallocate() {
        for index in 0..<extents.count where extents.pointer(to: index).pointee.isLive {
            extents.pointer(to: index).pointee.checksums.deallocate()
        }
        extents.deallocate()
        bits.deallocate()
    }

    // MARK: Bits

    /// Bits of an extent whose slots are all in use.
    private mutating func takeBits() -> UInt32 {
        guard freeBits != SlabPool<Bits>.none else {
            return bits.append(Bits(repeating: 0))
        }
        let index = freeBits
        freeBits = UInt32(truncatingIfNeeded: bits.pointer(to: index).pointee[0])
        bits.pointer(to: index).pointee = Bits(repeating: 0)
        return index
    }

    private mutating func dropBits(of extent: UnsafeMutablePointer<Extent>) {
        bits.pointer(to: extent.pointee.bits).pointee[0] = UInt64(freeBits)
        freeBits = extent.pointee.bits
        extent.pointee.bits = SlabPool<Bits>.none
    }
}
