public import BlockModel
public import CopyOnWrite

/// The engine's record of a read, write or zeroing of an image.
@usableFromInline package struct ImageRequest: BitwiseCopyable {
    /// Why the request waits.
    @usableFromInline package enum Phase: BitwiseCopyable {
        /// The engine works on it in this call.
        case running
        /// On the ready list.
        case ready
        /// Until the next turn, for others to have theirs.
        case yielded
        /// Until the reads of its window ended: all blocks of a read, a partial one of a write.
        case reading
        /// Behind an earlier write of the same blocks.
        case blocked
        /// A write, until buffers are free; it has waited since that time.
        case waitingForMemory(since: UInt64)
        /// A write, until storage has room.
        case waitingForSpace
        /// A write, until its payload lies in the buffers.
        case filling
        /// A write, until its buffers are stored.
        case storing
    }

    /// How far a write is with its window, which is a chunk of the image.
    @usableFromInline package enum WriteStep: BitwiseCopyable {
        /// The next window begins.
        case window
        /// Blocks that are written in part are read into their buffers: these are still to be, and
        /// `buffer` is the one whose read is under way.
        case reading(partialBlocks: UInt16, buffer: BufferIndex?)
        case filling
        case storing
    }

    /// Neighbouring blocks of the image that are read together, at most 256.
    @usableFromInline package struct Window: BitwiseCopyable {
        @usableFromInline package var firstBlock: UInt64 = 0
        @usableFromInline package var blockCount: UInt32 = 0
        /// A bit for each block that was read from the origin and has to be looked at again.
        @usableFromInline package var fromOrigin = InlineArray<4, UInt64>(repeating: 0)

        @inlinable init() {}
    }

    /// False before a request has the slot and after it left the engine: nothing else is valid then.
    @usableFromInline package var isUsed = false
    @usableFromInline package var operation = RequestOperation.read
    /// It is one of the writable image.
    @usableFromInline package var isOverlay = false
    /// Times that a read of the window came back short.
    @usableFromInline package var attempts: UInt8 = 0
    @usableFromInline package var snapshot = SnapshotIndex(0)
    @usableFromInline package var phase = Phase.running
    @usableFromInline package var offset: UInt64 = 0
    @usableFromInline package var length: UInt64 = 0
    /// The first failure.
    @usableFromInline package var fault: Fault?
    /// Reads or storage writes under way.
    @usableFromInline package var outstanding: UInt32 = 0
    /// The blocks below are done.
    @usableFromInline package var cursor: UInt64 = 0
    @usableFromInline package var window = Window()

    @usableFromInline package var step = WriteStep.window
    /// Blocks that the window of a write touches.
    @usableFromInline package var touchedCount: UInt64 = 0
    /// Buffers of the window of a write, in block order.
    @usableFromInline package var buffers = BufferList()

    /// A request that has done nothing yet.
    @inlinable package init(
        operation: RequestOperation, snapshot: SnapshotIndex, isOverlay: Bool, offset: UInt64,
        length: UInt64
    ) {
        isUsed = true
        self.operation = operation
        self.isOverlay = isOverlay
        self.snapshot = snapshot
        self.offset = offset
        self.length = length
        cursor = offset / blockByteCount
    }

    /// End of the request in bytes of the image.
    @inlinable package var end: UInt64 { offset + length }
}
