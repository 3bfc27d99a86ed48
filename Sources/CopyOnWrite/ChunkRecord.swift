// What a difference layer knows about one touched chunk: 32 bytes, plus a 64-byte side record
// while its data blocks do not lie one behind the other on storage.
//
// Invariants
// - `zero` is part of `preserved`; `preserved` and `copying` share no block.
// - Data blocks are the preserved ones that are not zero; exactly these have a place.
// - Not scattered: the place of data block p is base + (number of data blocks before p), and a
//   base in memory stands for a single block.

/// One touched chunk of a layer.
package struct ChunkRecord: BitwiseCopyable {
    /// The chunk on the device.
    package internal(set) var chunk: UInt64
    /// The change map's entry as of the layer's cut.
    package var savedEntry: UInt64
    package internal(set) var preserved: UInt16
    /// Blocks whose old data is being read from the origin.
    package var copying: UInt16
    package internal(set) var zero: UInt16
    var isScattered: Bool
    /// The chunk's blocks went to the next older layer: this record is spent.
    package internal(set) var isMerged: Bool
    /// Next record of the same bucket.
    var next: UInt32
    /// A `BlockPlace` of the base, or the index of the side record.
    var base: UInt32

    /// Preserved blocks that have a place.
    package var data: UInt16 { preserved & ~zero }
}
