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
