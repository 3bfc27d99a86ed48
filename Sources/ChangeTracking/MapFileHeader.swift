package import BlockModel

// The change map at rest: what a clean stop writes and an attach reads.
//
//     offset  bytes  field
//          0      8  magic "STILLMAP"
//          8      4  version, 1
//         12      4  state: 0 invalid, 1 clean
//         16     16  generation
//         32      8  device bytes
//         40      8  chunks
//         48      4  epoch
//         52      4  newest base
//         56   4036  reserved, zero
//       4092      4  CRC32C of the bytes before
//
// Behind it the body, see `MapFileBody`. All integers are little-endian.
//
// Invariants
// - Nothing read is used before magic, version, checksum, reserved bytes and every range agree.

/// The first page of a map file.
package struct MapFileHeader: Equatable, Sendable {
    /// Why a map file is not used. The caller begins a new generation and says so.
    package enum Damage: Error, Equatable, Sendable {
        case truncated
        /// Not a map file.
        case foreign
        case unknownVersion(UInt32)
        case checksum
        /// Not written at a clean stop.
        case notClean
        /// A field that cannot be.
        case impossible
    }

    /// Bytes of the header and of every other page.
    package static let byteCount = 4096
    private static let magic: UInt64 = 0x5041_4D4C_4C49_5453
    private static let version: UInt32 = 1

    package let isClean: Bool
    package let generation: Generation
    package let size: UInt64
    package let epoch: Epoch
    package let newestBase: UInt32

    package init(
        isClean: Bool, generation: Generation, size: UInt64, epoch: Epoch, newestBase: UInt32
    ) {
        self.isClean = isClean
        self.generation = generation
        self.size = size
        self.epoch = epoch
        self.newestBase = newestBase
    }

    /// Chunks of a device of `size` bytes.
    package var chunkCount: UInt64 { size / chunkByteCount + (size % chunkByteCount > 0 ? 1 : 0) }

    /// Reads a header from `bytes`, which may be anything. The clean mark is the caller's to
    /// demand.
    package init(decoding bytes: RawSpan) throws(Damage) {
        guard bytes.byteCount >= Self.byteCount else { throw .truncated }
        guard bytes.word(at: 0) == Self.magic else { throw .foreign }
        let version = bytes.half(at: 8)
        guard version == Self.version else { throw .unknownVersion(version) }
        guard bytes.checksum(Self.byteCount - 4) == bytes.half(at: Self.byteCount - 4) else {
            throw .checksum
        }
        for offset in stride(from: 56, to: Self.byteCount - 8, by: 8)
        where bytes.word(at: offset) != 0 {
            throw .impossible
        }
        guard bytes.half(at: Self.byteCount - 8) == 0 else { throw .impossible }
        let state = bytes.half(at: 12)
        guard state <= 1 else { throw .impossible }
        isClean = state == 1
        generation = Generation(id: UniqueID(high: bytes.word(at: 16), low: bytes.word(at: 24)))
        size = bytes.word(at: 32)
        epoch = Epoch(bytes.half(at: 48))
        newestBase = bytes.half(at: 52)
        guard epoch >= .first, epoch <= .last, newestBase < epoch.rawValue,
            bytes.word(at: 40) == chunkCount
        else { throw .impossible }
    }

    /// Writes the header into the first 4096 bytes of `bytes`.
    package func encode(into bytes: inout MutableRawSpan) {
        precondition(bytes.byteCount >= Self.byteCount, "a header needs its page")
        for offset in stride(from: 0, to: Self.byteCount, by: 8) { bytes.setWord(0, at: offset) }
        bytes.setWord(Self.magic, at: 0)
        bytes.setHalf(Self.version, at: 8)
        bytes.setHalf(isClean ? 1 : 0, at: 12)
        bytes.setWord(generation.id.high, at: 16)
        bytes.setWord(generation.id.low, at: 24)
        bytes.setWord(size, at: 32)
        bytes.setWord(chunkCount, at: 40)
        bytes.setHalf(epoch.rawValue, at: 48)
        bytes.setHalf(newestBase, at: 52)
        bytes.setHalf(bytes.bytes.checksum(Self.byteCount - 4), at: Self.byteCount - 4)
    }
}
