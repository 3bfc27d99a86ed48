package import BlockModel

// The first page of a change map: of the file that a clean stop writes and an attach reads, and of
// the shared memory that a service uses while it runs (which holds two copies, written in turn).
//
//     offset  bytes  field
//          0      8  magic "STILLMAP"
//          8      4  version, 1
//         12      4  state: 0 invalid, 1 clean, 2 running
//         16     16  generation
//         32      8  device bytes
//         40      8  chunks
//         48      4  epoch
//         52      4  newest base
//         56      8  sequence number: of two valid copies the higher one counts
//         64     16  boot id of the machine
//         80     16  instance: of a running map, so that a death record finds its own
//         96      8  device bytes when the generation began
//        104      8  last cut, seconds since 1970; 0: none yet
//        112      4  bytes of the device's name
//        116      4  reserved, zero
//        120     64  name of the device
//        184    392  origin, see `OriginRecord`
//        576   3516  reserved, zero
//       4092      4  CRC32C of the bytes before
//
// Behind it the body, see `MapFileBody`. All integers are little-endian.
//
// Invariants
// - Nothing read is used before magic, version, checksum, reserved bytes and every range agree.

/// The first page of a change map at rest.
package struct MapFileHeader: Equatable, Sendable {
    /// Why a map is not used. The caller begins a new generation and says so.
    package enum Damage: Error, Equatable, Sendable {
        case truncated
        /// Not a map file.
        case foreign
        case unknownVersion(UInt32)
        case checksum
        /// A field or an entry that cannot be.
        case impossible
        /// The system could not read it: an errno value.
        case unreadable(Int32)
    }

    /// What may be believed of the map behind the header.
    package enum State: UInt32, Sendable {
        /// Nothing: it is in use, or something was not recorded.
        case invalid = 0
        /// Everything: written at a clean stop, not in use since.
        case clean = 1
        /// Everything, together with what the guardian recorded when the service died.
        case running = 2
    }

    /// Bytes of the header and of every other page.
    package static let byteCount = 4096
    private static let magic: UInt64 = 0x5041_4D4C_4C49_5453
    private static let version: UInt32 = 1

    package var state: State
    package let name: ObjectName
    package var generation: Generation
    package var size: UInt64
    /// Bytes of the device when its generation began: the size of the base before its first epoch.
    package var firstSize: UInt64
    package var epoch: Epoch
    package var newestBase: UInt32
    /// Seconds since 1970; 0 when the generation has no cut yet.
    package var lastCutSeconds: UInt64
    package var sequence: UInt64
    package var bootID: UniqueID
    package var instance: UniqueID
    package var origin: OriginRecord

    /// The header of a generation that begins now.
    package init(
        beginning generation: Generation, of name: ObjectName, state: State, size: UInt64,
        bootID: UniqueID, instance: UniqueID, origin: OriginRecord
    ) {
        self.state = state
        self.name = name
        self.generation = generation
        self.size = size
        firstSize = size
        epoch = .first
        newestBase = 0
        lastCutSeconds = 0
        sequence = 0
        self.bootID = bootID
        self.instance = instance
        self.origin = origin
    }

    /// Chunks of a device of `size` bytes.
    package var chunkCount: UInt64 { size / chunkByteCount + (size % chunkByteCount > 0 ? 1 : 0) }

    /// Reads a header from `bytes`, which may be anything. What its state allows is the caller's
    /// to decide.
    package init(decoding bytes: RawSpan) throws(Damage) {
        guard bytes.byteCount >= Self.byteCount else { throw .truncated }
        guard bytes.word(at: 0) == Self.magic else { throw .foreign }
        let version = bytes.half(at: 8)
        guard version == Self.version else { throw .unknownVersion(version) }
        guard bytes.checksum(Self.byteCount - 4) == bytes.half(at: Self.byteCount - 4) else {
            throw .checksum
        }
        let nameCount = Int(bytes.half(at: 112))
        guard let state = State(rawValue: bytes.half(at: 12)),
            nameCount <= ObjectName.byteCountMax, bytes.half(at: 116) == 0,
            bytes.isZero(from: 120 + nameCount, to: 184),
            bytes.isZero(from: 576, to: Self.byteCount - 4),
            let name = ObjectName(try bytes.text(at: 120, byteCount: nameCount))
        else { throw .impossible }
        self.state = state
        self.name = name
        generation = Generation(id: bytes.uniqueID(at: 16))
        size = bytes.word(at: 32)
        epoch = Epoch(bytes.half(at: 48))
        newestBase = bytes.half(at: 52)
        sequence = bytes.word(at: 56)
        bootID = bytes.uniqueID(at: 64)
        instance = bytes.uniqueID(at: 80)
        firstSize = bytes.word(at: 96)
        lastCutSeconds = bytes.word(at: 104)
        origin = try OriginRecord(decoding: bytes, at: 184)
        guard epoch >= .first, epoch <= .last, newestBase < epoch.rawValue,
            bytes.word(at: 40) == chunkCount, lastCutSeconds <= UInt64(Int64.max)
        else { throw .impossible }
    }

    /// Writes the header into the first 4096 bytes of `bytes`.
    package func encode(into bytes: inout MutableRawSpan) {
        precondition(bytes.byteCount >= Self.byteCount, "a header needs its page")
        bytes.clearPage()
        bytes.setWord(Self.magic, at: 0)
        bytes.setHalf(Self.version, at: 8)
        bytes.setHalf(state.rawValue, at: 12)
        bytes.setUniqueID(generation.id, at: 16)
        bytes.setWord(size, at: 32)
        bytes.setWord(chunkCount, at: 40)
        bytes.setHalf(epoch.rawValue, at: 48)
        bytes.setHalf(newestBase, at: 52)
        bytes.setWord(sequence, at: 56)
        bytes.setUniqueID(bootID, at: 64)
        bytes.setUniqueID(instance, at: 80)
        bytes.setWord(firstSize, at: 96)
        bytes.setWord(lastCutSeconds, at: 104)
        bytes.setHalf(UInt32(name.text.utf8.count), at: 112)
        bytes.setText(name.text, at: 120)
        origin.encode(into: &bytes, at: 184)
        bytes.sealPage()
    }
}
