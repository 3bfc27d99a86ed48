public import BlockModel
public import CopyOnWrite

/// What the data plane has to do, in the order in which it is given. Memory effects
/// (`copyFromMemory`, `fillZero`) are done completely before the next effect is looked at: a
/// buffer named in one effect may be refilled by a later one.
@usableFromInline package enum Effect: Sendable {
    /// Give the whole request to the origin, then say `originWriteFinished`.
    case issue(RequestIndex)
    /// Give these bytes of a discard or zeroing to the origin, then say `originWriteFinished`.
    case issuePart(RequestIndex, offset: UInt64, length: UInt64)
    /// Find out what the origin has from `offset` on, a hole or not, off the loop; then say
    /// `originScanned`.
    case findHoles(RequestIndex, offset: UInt64, length: UInt64)
    /// The request is done: tell its owner.
    case finish(RequestIndex, Fault?)

    /// Read old data into `buffers(of:)`, zero-filled to whole blocks behind `length`; then say
    /// `copyReadFinished`.
    case readOrigin(CopyIndex, offset: UInt64, length: UInt64)
    /// Write `buffers(of:)` one behind the other; then say `storageWriteFinished`.
    case writeStorage(BatchIndex, SourceIndex, byteOffset: UInt64, blockCount: Int)

    /// Image request: read device bytes into its target; then say `imageOriginReadFinished`.
    case readOriginForImage(RequestIndex, offset: UInt64, length: UInt64)
    /// Image request: read whole blocks, check nothing, put what belongs to `firstBlock...` of
    /// the device into its target; then say `imageStorageReadFinished` with their checksums.
    case readStorageForImage(
        RequestIndex, SourceIndex, byteOffset: UInt64, slot: StorageSlot, firstBlock: UInt64,
        blockCount: Int)
    /// Image request: this buffer holds device block `block`; copy what belongs to the target.
    case copyFromMemory(RequestIndex, BufferIndex, block: UInt64, into: ImageTarget)
    /// Image request: these blocks are zero in the target.
    case fillZero(RequestIndex, firstBlock: UInt64, blockCount: Int, into: ImageTarget)
    /// Image write: lay the payload (zeroes for a zeroing) over the buffers of `firstBuffer(of:)`;
    /// then say `imageBlocksFilled`.
    case fillBlocks(RequestIndex)

    /// An extent is wanted; answer with `extentGranted` or `extentRefused`.
    case requestExtent(SourceIndex, StoragePurpose)
    /// The extent holds nothing any more: discard or zero it where needed, give it back.
    case releaseExtent(SourceIndex, byteOffset: UInt64)
    /// The source's snapshot goes: nothing more is wanted of it, and what is asked for may be
    /// refused.
    case sourceClosed(SourceIndex)
    /// The source's snapshot is gone and so is its last block: close it.
    case sourceDrained(SourceIndex)

    /// Make this page of the change map resident; then say `mapPageReserved` or
    /// `mapPageRefused`.
    case reserveMapPage(UInt64)
    /// The gate is closed and no origin request is under way.
    case gateDrained
    /// The snapshot lost data of this device: its image fails from now on.
    case snapshotCorrupted(SnapshotIndex, Fault)
    /// The writable image lost data written through it; the read-only one is not concerned.
    case overlayCorrupted(SnapshotIndex, Fault)
    /// Destroyed and everything not handed over is free.
    case snapshotGone(SnapshotIndex)
    /// Say `timeReached` at this monotonic time; replaces an earlier time. Nil: never.
    case timer(at: UInt64?)
}

/// Where the bytes of an image request's read go.
@usableFromInline package enum ImageTarget: Equatable, Sendable {
    /// The request's payload.
    case payload
    /// This buffer, which holds one block; zero-filled behind what is read.
    case buffer(BufferIndex)
}
