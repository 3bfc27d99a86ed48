// What a difference layer knows about one touched chunk: 24 bytes, plus a 64-byte side record
// while its data blocks do not lie one behind the other on storage.
//
//     63                30    29        28     27    0
//     | chunk (34 bits) | scattered | merged | next  |
//
// Invariants
// - A block is untouched, being copied, preserved data or preserved zero: two bits, of which the
//   second means "being copied" while the first, `preserved`, is clear, and "zero" when it is set.
// - Data blocks are the preserved ones that are not zero; exactly these have a place.
// - Not scattered: the place of data block p is base + (number of data blocks before p), and a
//   base in memory stands for a single block.
// - What a search reads lies in the first 16 bytes, so that seven records of eight need one line
//   of the processor's cache.

/// One touched chunk of a layer.
@usableFromInline package struct ChunkRecord: BitwiseCopyable {
    /// Most chunks of a device, 1 PiB of them.
    package static let chunkCountMax: UInt64 = 1 << 34
    /// No record: the end of a bucket's chain. Indexes are below.
    @inlinable static var none: UInt32 { 1 << 28 - 1 }

    @usableFromInline private(set) var identity: UInt64
    @usableFromInline package private(set) var preserved: UInt16 = 0
    @usableFromInline var detail: UInt16 = 0
    /// A `BlockPlace` of the base, or the index of the side record.
    var base: UInt32 = 0
    /// The change map's entry as of the layer's cut.
    package var savedEntry: UInt64

    /// No block is known yet. Traps beyond `chunkCountMax`, which no device has.
    init(chunk: UInt64, savedEntry: UInt64, next: UInt32) {
        precondition(chunk < Self.chunkCountMax, "a device has at most 1 PiB")
        identity = chunk << 30 | UInt64(next)
        self.savedEntry = savedEntry
    }

    /// The chunk on the device.
    @inlinable package var chunk: UInt64 { identity >> 30 }

    /// Next record of the same bucket.
    @usableFromInline var next: UInt32 {
        @inlinable get { UInt32(truncatingIfNeeded: identity) & Self.none }
        set { identity = identity & ~UInt64(Self.none) | UInt64(newValue) }
    }

    var isScattered: Bool {
        get { identity & 1 << 29 != 0 }
        set { identity = identity & ~(1 << 29) | (newValue ? 1 << 29 : 0) }
    }

    /// The chunk's blocks went to the next older layer: this record is spent.
    package internal(set) var isMerged: Bool {
        get { identity & 1 << 28 != 0 }
        set { identity = identity & ~(1 << 28) | (newValue ? 1 << 28 : 0) }
    }

    /// Blocks whose old data is being read from the origin. What is preserved is no longer copied:
    /// such blocks of a new value are left out.
    @inlinable package var copying: UInt16 {
        get { detail & ~preserved }
        set { detail = detail & preserved | newValue & ~preserved }
    }

    /// Preserved blocks that are all zero.
    @inlinable package var zero: UInt16 { detail & preserved }

    /// Preserved blocks that have a place.
    @inlinable package var data: UInt16 { preserved & ~detail }

    /// The blocks are preserved now, as data.
    mutating func becomeData(_ blocks: UInt16) {
        preserved |= blocks
        detail &= ~blocks
    }

    /// The blocks are preserved now, as zeroes.
    mutating func becomeZero(_ blocks: UInt16) {
        preserved |= blocks
        detail |= blocks
    }

    /// The blocks are untouched now.
    mutating func becomeUntouched(_ blocks: UInt16) {
        preserved &= ~blocks
        detail &= ~blocks
    }
}
