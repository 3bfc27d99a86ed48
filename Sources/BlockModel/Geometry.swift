// The units in which a device is described. design.md section 1 defines the words.
//
// Invariants
// - A `ByteRange` never wraps: `offset + length` fits in 64 bits.
// - A block is 4 KiB, a chunk 16 blocks; both divide every power-of-two sector size used here.

/// Bytes in a block, the unit that is copied before it is overwritten.
package let blockByteCount: UInt64 = 4096

/// Bytes in a chunk, the unit of bookkeeping.
package let chunkByteCount: UInt64 = 65536

/// Blocks in a chunk.
package let blocksPerChunk: UInt64 = chunkByteCount / blockByteCount

/// Position of a block on its device, counted from 0.
package struct BlockIndex: Hashable, Comparable, Sendable {
    package let rawValue: UInt64

    @inlinable package init(_ rawValue: UInt64) { self.rawValue = rawValue }

    /// The block that holds the byte at `byteOffset`.
    @inlinable package init(containing byteOffset: UInt64) {
        rawValue = byteOffset / blockByteCount
    }

    /// Offset of the block's first byte.
    @inlinable package var byteOffset: UInt64 { rawValue * blockByteCount }

    /// The chunk this block lies in.
    @inlinable package var chunk: ChunkIndex { ChunkIndex(rawValue / blocksPerChunk) }

    /// Position inside its chunk, 0 to 15.
    @inlinable package var positionInChunk: Int { Int(rawValue % blocksPerChunk) }

    @inlinable package static func < (left: BlockIndex, right: BlockIndex) -> Bool {
        left.rawValue < right.rawValue
    }
}

/// Position of a chunk on its device, counted from 0.
package struct ChunkIndex: Hashable, Comparable, Sendable {
    package let rawValue: UInt64

    @inlinable package init(_ rawValue: UInt64) { self.rawValue = rawValue }

    /// The chunk that holds the byte at `byteOffset`.
    @inlinable package init(containing byteOffset: UInt64) {
        rawValue = byteOffset / chunkByteCount
    }

    /// Offset of the chunk's first byte.
    @inlinable package var byteOffset: UInt64 { rawValue * chunkByteCount }

    /// The chunk's first block.
    @inlinable package var firstBlock: BlockIndex { BlockIndex(rawValue * blocksPerChunk) }

    @inlinable package static func < (left: ChunkIndex, right: ChunkIndex) -> Bool {
        left.rawValue < right.rawValue
    }
}

/// A run of bytes on a device: `offset ..< offset + length`.
package struct ByteRange: Hashable, Sendable {
    package let offset: UInt64
    package let length: UInt64

    /// Traps when the end does not fit in 64 bits: whatever comes from outside is checked with
    /// `init(checking:length:within:)` first.
    @inlinable package init(offset: UInt64, length: UInt64) {
        precondition(!offset.addingReportingOverflow(length).overflow, "a byte range wraps")
        self.offset = offset
        self.length = length
    }

    /// The range, or nil when it reaches beyond `size` bytes or wraps.
    @inlinable package init?(checking offset: UInt64, length: UInt64, within size: UInt64) {
        guard offset <= size, length <= size - offset else { return nil }
        self.offset = offset
        self.length = length
    }

    /// Offset of the first byte behind the range.
    @inlinable package var end: UInt64 { offset &+ length }

    @inlinable package var isEmpty: Bool { length == 0 }

    /// True when the two ranges share a byte.
    @inlinable package func overlaps(_ other: ByteRange) -> Bool {
        offset < other.end && other.offset < end
    }

    /// True when both ends are multiples of `alignment`, a power of two.
    @inlinable package func isAligned(to alignment: UInt64) -> Bool {
        (offset | length) & (alignment &- 1) == 0
    }

    /// The smallest range aligned to `alignment`, a power of two, that holds this one.
    @inlinable package func roundedOutward(to alignment: UInt64) -> ByteRange {
        let start = offset & ~(alignment &- 1)
        let end = (self.end &+ (alignment &- 1)) & ~(alignment &- 1)
        return ByteRange(offset: start, length: end - start)
    }

    /// The largest range aligned to `alignment`, a power of two, inside this one; empty when
    /// there is none.
    @inlinable package func roundedInward(to alignment: UInt64) -> ByteRange {
        let start = (offset &+ (alignment &- 1)) & ~(alignment &- 1)
        let end = self.end & ~(alignment &- 1)
        return start < end
            ? ByteRange(offset: start, length: end - start) : ByteRange(offset: start, length: 0)
    }
}

/// Returns the blocks that `range` touches, partly touched ones included.
@inlinable package func blocks(touching range: ByteRange) -> Range<UInt64> {
    guard !range.isEmpty else { return 0..<0 }
    return range.offset / blockByteCount..<(range.end - 1) / blockByteCount + 1
}

/// Returns the chunks that `range` touches, partly touched ones included.
@inlinable package func chunks(touching range: ByteRange) -> Range<UInt64> {
    guard !range.isEmpty else { return 0..<0 }
    return range.offset / chunkByteCount..<(range.end - 1) / chunkByteCount + 1
}
