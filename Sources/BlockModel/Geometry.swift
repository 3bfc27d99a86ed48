// The units in which a device is described. docs/architecture.md defines the words.
//
// Invariants
// - A `ByteRange` never wraps: `offset + length` fits in 64 bits.
// - A block is 4 KiB, a chunk 16 blocks; both divide every power-of-two sector size used here.

// What other rooms compute for each request is inlinable: else a constant is a variable behind a
// call for them, and dividing by it a division.

/// Bytes in a block, the unit that is copied before it is overwritten.
@inlinable package var blockByteCount: UInt64 { 4096 }

/// Bytes in a chunk, the unit of bookkeeping.
@inlinable package var chunkByteCount: UInt64 { 65536 }

/// Blocks in a chunk.
@inlinable package var blocksPerChunk: UInt64 { chunkByteCount / blockByteCount }

/// Position of a block on its device, counted from 0.
package struct BlockIndex: Hashable, Comparable, Sendable {
    package let rawValue: UInt64

    package init(_ rawValue: UInt64) { self.rawValue = rawValue }

    /// The block that holds the byte at `byteOffset`.
    package init(containing byteOffset: UInt64) {
        rawValue = byteOffset / blockByteCount
    }

    /// Offset of the block's first byte.
    package var byteOffset: UInt64 { rawValue * blockByteCount }

    /// The chunk this block lies in.
    package var chunk: ChunkIndex { ChunkIndex(rawValue / blocksPerChunk) }

    /// Position inside its chunk, 0 to 15.
    package var positionInChunk: Int { Int(rawValue % blocksPerChunk) }

    package static func < (left: BlockIndex, right: BlockIndex) -> Bool {
        left.rawValue < right.rawValue
    }
}

/// Position of a chunk on its device, counted from 0.
package struct ChunkIndex: Hashable, Comparable, Sendable {
    package let rawValue: UInt64

    package init(_ rawValue: UInt64) { self.rawValue = rawValue }

    /// The chunk that holds the byte at `byteOffset`.
    package init(containing byteOffset: UInt64) {
        rawValue = byteOffset / chunkByteCount
    }

    /// Offset of the chunk's first byte.
    package var byteOffset: UInt64 { rawValue * chunkByteCount }

    /// The chunk's first block.
    package var firstBlock: BlockIndex { BlockIndex(rawValue * blocksPerChunk) }

    package static func < (left: ChunkIndex, right: ChunkIndex) -> Bool {
        left.rawValue < right.rawValue
    }
}

/// A run of bytes on a device: `offset ..< offset + length`.
public struct ByteRange: Hashable, Sendable {
    package let offset: UInt64
    package let length: UInt64

    /// Traps when the end does not fit in 64 bits: whatever comes from outside is checked with
    /// `init(checking:length:within:)` first.
    package init(offset: UInt64, length: UInt64) {
        precondition(!offset.addingReportingOverflow(length).overflow, "a byte range wraps")
        self.offset = offset
        self.length = length
    }

    /// The range, or nil when it reaches beyond `size` bytes or wraps.
    package init?(checking offset: UInt64, length: UInt64, within size: UInt64) {
        guard offset <= size, length <= size - offset else { return nil }
        self.offset = offset
        self.length = length
    }

    /// Offset of the first byte behind the range.
    package var end: UInt64 { offset &+ length }

    package var isEmpty: Bool { length == 0 }

    /// True when the two ranges share a byte.
    package func overlaps(_ other: ByteRange) -> Bool {
        max(offset, other.offset) < min(end, other.end)
    }

    /// True when both ends are multiples of `alignment`, a power of two.
    package func isAligned(to alignment: UInt64) -> Bool {
        (offset | length) & (alignment &- 1) == 0
    }

    /// The smallest range aligned to `alignment`, a power of two, that holds this one.
    package func roundedOutward(to alignment: UInt64) -> ByteRange {
        let start = offset & ~(alignment &- 1)
        let end = (self.end &+ (alignment &- 1)) & ~(alignment &- 1)
        return ByteRange(offset: start, length: end - start)
    }

    /// The largest range aligned to `alignment`, a power of two, inside this one; empty when
    /// there is none.
    package func roundedInward(to alignment: UInt64) -> ByteRange {
        let start = (offset &+ (alignment &- 1)) & ~(alignment &- 1)
        let end = self.end & ~(alignment &- 1)
        return start < end
            ? ByteRange(offset: start, length: end - start) : ByteRange(offset: start, length: 0)
    }
}

/// Returns the blocks that `range` touches, partly touched ones included.
package func blocks(touching range: ByteRange) -> Range<UInt64> {
    guard !range.isEmpty else { return 0..<0 }
    return range.offset / blockByteCount..<(range.end - 1) / blockByteCount + 1
}

/// Returns the chunks that `range` touches, partly touched ones included.
package func chunks(touching range: ByteRange) -> Range<UInt64> {
    guard !range.isEmpty else { return 0..<0 }
    return range.offset / chunkByteCount..<(range.end - 1) / chunkByteCount + 1
}
