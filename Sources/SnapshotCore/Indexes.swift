package import BlockModel
internal import CopyOnWrite

/// Index of a snapshot of one device, reused after `snapshotGone`.
package struct SnapshotIndex: Hashable, Sendable {
    package let rawValue: UInt16

    package init(_ rawValue: UInt16) { self.rawValue = rawValue }
}

/// Index of a copy in progress: old data of neighbouring blocks of one chunk on its way to memory.
package struct CopyIndex: Hashable, Sendable {
    package let rawValue: UInt32

    package init(_ rawValue: UInt32) { self.rawValue = rawValue }
}

/// Index of a storage write in progress: block buffers that go to neighbouring slots.
package struct BatchIndex: Hashable, Sendable {
    package let rawValue: UInt32

    package init(_ rawValue: UInt32) { self.rawValue = rawValue }
}

/// What to do when preserved data finds no room in time.
package struct OverflowPolicy: Equatable, Sendable {
    package enum Kind: UInt8, Sendable {
        /// Corrupted at once when storage is full or failing, after the limit when it is slow.
        case `break`
        /// Writers wait up to the limit in every case.
        case throttle
    }

    package let kind: Kind
    /// Longest time a writer waits for a copy or for memory.
    package let limitNanoseconds: UInt64

    package init(kind: Kind, limitNanoseconds: UInt64) {
        self.kind = kind
        self.limitNanoseconds = limitNanoseconds
    }

    /// The default: `break`, slow for at most 2 s.
    package static let standard = OverflowPolicy(kind: .break, limitNanoseconds: 2_000_000_000)
}

/// The answer to an arriving request.
package enum Admission: Equatable, Sendable {
    /// Marked and preserved: give it to the origin now, then say `originWriteFinished`.
    case issue
    /// The engine holds it; effects follow.
    case taken
    /// Finished with this fault, nothing was done.
    case refused(Fault)
}

/// The answer to a finished origin request.
package enum Completion: Equatable, Sendable {
    /// Tell its owner, with the fault if there is one.
    case finish(Fault?)
    /// The engine continues with it; effects follow.
    case taken
}

/// Bounds of an engine, fixed at its start.
package struct EngineLimits: Sendable {
    /// Request slots of the loop: indexes are below.
    package var requestCount: Int
    /// Copies in progress at a time.
    package var copyCount: Int
    /// Storage writes in progress at a time.
    package var batchCount: Int
    /// Snapshots held on the device.
    package var snapshotCount: Int
    /// Storage sources of the device's snapshots together.
    package var sourceCount: Int
    /// Bytes of layer metadata of a snapshot.
    package var layerByteCountMax: UInt64
    /// Bytes of a zeroing or discard from which on the origin is asked for its holes.
    package var scannedByteCountMin: UInt64 = 1 << 20
    /// Most bytes of a zeroing or discard that are marked and preserved at a time, a whole number
    /// of chunks: with a snapshot held, and without or in a hole.
    package var heldPieceByteCount: UInt64 = 1 << 20
    package var freePieceByteCount: UInt64 = 1 << 28
    /// Chunks of the origin's holes that are marked after a cut, while its snapshot is held.
    package var heldHoleChunkCountMax = 1 << 16
    /// Pieces of a discard that are passed over in a turn, because snapshots need all of them.
    package var piecesPerTurn = 8
    /// Chunks of a write whose copies are begun in a turn: each may take a system call or two.
    package var chunksPerTurn: UInt64 = 16
    /// Requests that yielded which continue in a turn.
    package var resumedPerTurn = 2
    /// Blocks of an image read that are worked on at a time, at most 256.
    package var imageWindowBlockCount: UInt64 = 256
    /// Blocks of image reads, and storage writes of preserved blocks, that are begun in a turn.
    package var imageBlocksPerTurn = 512
    package var batchesPerTurn = 8

    package init(
        requestCount: Int = 4096, copyCount: Int = 1024, batchCount: Int = 32,
        snapshotCount: Int = 64, sourceCount: Int = 256, layerByteCountMax: UInt64 = 256 << 20
    ) {
        precondition(requestCount > 0, "an engine has request slots")
        precondition(copyCount > 0 && batchCount > 1, "an engine can copy and store")
        precondition(snapshotCount <= 1024 && sourceCount <= 4096, "indexes have 16 bits")
        self.requestCount = requestCount
        self.copyCount = copyCount
        self.batchCount = batchCount
        self.snapshotCount = snapshotCount
        self.sourceCount = sourceCount
        self.layerByteCountMax = layerByteCountMax
    }
}
