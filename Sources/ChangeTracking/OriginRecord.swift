package import BlockModel

// What is remembered of an origin in order to tell, later, whether it is the same one and whether
// somebody wrote to it meanwhile. Both are read by the data plane; here they are only compared.
//
//     offset  bytes  field, from the place where the record lies in its page
//          0      4  kind: 1 file, 2 block device
//          4      4  bytes of the stable id
//          8      8  id of the filesystem, or disk sequence number
//         16      8  inode
//         24      8  birth time, seconds
//         32      4  birth time, nanoseconds
//         36      4  state: 0 unknown, 1 known
//         40      8  origin bytes
//         48      8  modification time, seconds
//         56      8  change time, seconds
//         64      4  modification time, nanoseconds
//         68      4  change time, nanoseconds
//         72     16  sectors written to the block device, and discarded
//         88     16  the same of its whole disk
//        104     16  token of the marks of a live device; zero: it was served
//        120      8  digest of a live device at rest; zero: it may have been in use
//        128      8  reserved, zero
//        136    256  stable id, UTF-8
//
// Invariants
// - Fields that the kind does not use are zero, and are checked to be.

/// Which file or block device an origin is.
package enum OriginIdentity: Equatable, Sendable {
    /// `filesystem`: its id, or its device number where it has none; `birth` is zero where it does
    /// not keep it.
    case file(filesystem: UInt64, inode: UInt64, birth: FileTime)
    /// `stableID`: what the hardware or the volume calls itself, empty when it has no name that
    /// outlives a restart of the machine. `sequence`: the kernel's number of the disk, which no
    /// other disk has before the next restart.
    case blockDevice(stableID: String, sequence: UInt64)

    /// Most bytes of a stable id.
    package static let stableIDByteCountMax = 256
}

/// A time as filesystems keep it.
package struct FileTime: Equatable, Sendable {
    package var seconds: Int64
    /// Below 1,000,000,000.
    package var nanoseconds: UInt32

    package init(seconds: Int64, nanoseconds: UInt32) {
        precondition(nanoseconds < 1_000_000_000, "nanoseconds are a fraction of a second")
        self.seconds = seconds
        self.nanoseconds = nanoseconds
    }

    package static let zero = FileTime(seconds: 0, nanoseconds: 0)
}

/// What the kernel has counted on a block device since the machine started. Sectors, not requests:
/// flushes are counted as writes without any.
package struct WriteCounters: Equatable, Sendable {
    package var writtenSectors: UInt64
    package var discardedSectors: UInt64

    package init(writtenSectors: UInt64, discardedSectors: UInt64) {
        self.writtenSectors = writtenSectors
        self.discardedSectors = discardedSectors
    }
}

/// How an origin stood at a moment when nobody was writing.
package enum OriginState: Equatable, Sendable {
    /// Nothing there tells whether it is written to, or it could not be read.
    case unknown(size: UInt64)
    case file(size: UInt64, modified: FileTime, changed: FileTime)
    /// `disk`: the counters of the whole disk, the device's own when it is one.
    case blockDevice(size: UInt64, own: WriteCounters, disk: WriteCounters)

    /// Bytes.
    package var size: UInt64 {
        switch self {
        case .unknown(let size), .file(let size, _, _), .blockDevice(let size, _, _): size
        }
    }

    /// Something tells whether it is written to.
    package var isKnown: Bool {
        switch self {
        case .unknown: false
        case .file, .blockDevice: true
        }
    }
}

/// An origin as it was seen.
package struct OriginRecord: Equatable, Sendable {
    package var identity: OriginIdentity
    package var state: OriginState
    /// Of a live device: names the marks that its generation continues with.
    package var liveToken: UniqueID?
    /// Of a live device that was at rest: a digest of its first bytes. Nil when the device was in use, or
    /// when nobody looked.
    package var restDigest: UInt64?

    /// The state must be of the identity's kind, and the stable id within its bound; a token and a digest
    /// are a block device's, and not zero.
    package init(
        identity: OriginIdentity, state: OriginState, liveToken: UniqueID? = nil,
        restDigest: UInt64? = nil
    ) {
        precondition(liveToken != UniqueID(high: 0, low: 0), "a token is not zero")
        precondition(restDigest != 0, "a digest is not zero")
        switch (identity, state) {
        case (.file, .blockDevice), (.blockDevice, .file):
            preconditionFailure("a file has no counters, a block device no times")
        case (.file, _): break
        case (.blockDevice(let stableID, _), _):
            precondition(
                stableID.utf8.count <= OriginIdentity.stableIDByteCountMax,
                "a stable id is cut to its bound before it is recorded")
        }
        self.identity = identity
        self.state = state
        self.liveToken = liveToken
        self.restDigest = restDigest
    }

    /// Bytes of an encoded record.
    static let byteCount = 392

    /// Writes the record into zeroed bytes.
    func encode(into bytes: inout MutableRawSpan, at start: Int) {
        switch identity {
        case .file(let filesystem, let inode, let birth):
            bytes.setHalf(1, at: start)
            bytes.setWord(filesystem, at: start + 8)
            bytes.setWord(inode, at: start + 16)
            bytes.setWord(UInt64(bitPattern: birth.seconds), at: start + 24)
            bytes.setHalf(birth.nanoseconds, at: start + 32)
        case .blockDevice(let stableID, let sequence):
            bytes.setHalf(2, at: start)
            bytes.setHalf(UInt32(stableID.utf8.count), at: start + 4)
            bytes.setWord(sequence, at: start + 8)
            bytes.setText(stableID, at: start + 136)
            if let liveToken { bytes.setUniqueID(liveToken, at: start + 104) }
            bytes.setWord(restDigest ?? 0, at: start + 120)
        }
        bytes.setHalf(state.isKnown ? 1 : 0, at: start + 36)
        bytes.setWord(state.size, at: start + 40)
        switch state {
        case .unknown: break
        case .file(_, let modified, let changed):
            bytes.setWord(UInt64(bitPattern: modified.seconds), at: start + 48)
            bytes.setWord(UInt64(bitPattern: changed.seconds), at: start + 56)
            bytes.setHalf(modified.nanoseconds, at: start + 64)
            bytes.setHalf(changed.nanoseconds, at: start + 68)
        case .blockDevice(_, let own, let disk):
            own.encode(into: &bytes, at: start + 72)
            disk.encode(into: &bytes, at: start + 88)
        }
    }

    /// Reads a record out of a page whose checksum agreed.
    init(decoding bytes: RawSpan, at start: Int) throws(MapFileHeader.Damage) {
        guard bytes.byteCount >= start + Self.byteCount else { throw .truncated }
        let kind = bytes.half(at: start)
        let textCount = Int(bytes.half(at: start + 4))
        let isKnown = bytes.half(at: start + 36)
        guard kind == 1 || kind == 2, isKnown <= 1,
            textCount <= (kind == 1 ? 0 : OriginIdentity.stableIDByteCountMax),
            bytes.isZero(from: start + 136 + textCount, to: start + Self.byteCount)
        else { throw .impossible }
        let size = bytes.word(at: start + 40)
        if kind == 1 {
            guard bytes.isZero(from: start + 72, to: start + 136) else { throw .impossible }
            liveToken = nil
            restDigest = nil
            identity = .file(
                filesystem: bytes.word(at: start + 8), inode: bytes.word(at: start + 16),
                birth: try bytes.time(secondsAt: start + 24, nanosecondsAt: start + 32))
            let modified = try bytes.time(secondsAt: start + 48, nanosecondsAt: start + 64)
            let changed = try bytes.time(secondsAt: start + 56, nanosecondsAt: start + 68)
            guard isKnown == 1 || (modified == .zero && changed == .zero) else {
                throw .impossible
            }
            state =
                isKnown == 1
                ? .file(size: size, modified: modified, changed: changed) : .unknown(size: size)
        } else {
            guard bytes.isZero(from: start + 16, to: start + 36),
                bytes.isZero(from: start + 48, to: start + 72),
                isKnown == 1 || bytes.isZero(from: start + 72, to: start + 104),
                bytes.isZero(from: start + 128, to: start + 136)
            else { throw .impossible }
            let token = bytes.uniqueID(at: start + 104)
            liveToken = token == UniqueID(high: 0, low: 0) ? nil : token
            let digest = bytes.word(at: start + 120)
            restDigest = digest == 0 ? nil : digest
            identity = .blockDevice(
                stableID: try bytes.text(at: start + 136, byteCount: textCount),
                sequence: bytes.word(at: start + 8))
            state =
                isKnown == 1
                ? .blockDevice(
                    size: size, own: WriteCounters(decoding: bytes, at: start + 72),
                    disk: WriteCounters(decoding: bytes, at: start + 88))
                : .unknown(size: size)
        }
    }
}

extension WriteCounters {
    fileprivate func encode(into bytes: inout MutableRawSpan, at start: Int) {
        bytes.setWord(writtenSectors, at: start)
        bytes.setWord(discardedSectors, at: start + 8)
    }

    fileprivate init(decoding bytes: RawSpan, at start: Int) {
        writtenSectors = bytes.word(at: start)
        discardedSectors = bytes.word(at: start + 8)
    }
}

extension RawSpan {
    fileprivate func time(
        secondsAt seconds: Int, nanosecondsAt nanoseconds: Int
    ) throws(MapFileHeader.Damage) -> FileTime {
        let fraction = half(at: nanoseconds)
        guard fraction < 1_000_000_000 else { throw .impossible }
        return FileTime(seconds: Int64(bitPattern: word(at: seconds)), nanoseconds: fraction)
    }
}
