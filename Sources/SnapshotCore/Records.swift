internal import BlockModel
internal import CopyOnWrite

/// The engine's note about a request it was given.
struct RequestRecord {
    enum Phase: UInt8 {
        case idle
        /// Given to the origin, in whole or in part.
        case issued
        /// Behind the closed gate.
        case parked
        /// Until a page of the change map is reserved.
        case waitingForMap
        /// Until the origin has said where its holes are.
        case waitingForScan
        /// Until the next turn, for others to have theirs.
        case yielded
        /// Until a buffer or a copy slot is free.
        case waitingForMemory
        /// Until the copy in `waitedCopy` is in memory.
        case waitingForCopy
        /// On the ready list.
        case ready
        /// An image read with reads under way, or an image write reading its partial blocks.
        case imageReading
        /// An image write behind an earlier one of the same blocks.
        case imageBlocked
        case imageWaitingForMemory
        case imageWaitingForSpace
        case imageFilling
        case imageStoring
    }

    /// How far an image write is with its window.
    enum WriteStep: UInt8 { case window, reading, filling, storing }

    var phase = Phase.idle
    var operation = RequestOperation.read
    var flags = RequestFlags()
    /// Part of the request reached the origin: a closing gate waits for the rest.
    var isUnderWay = false
    var isImage = false
    var isOverlay = false
    var isDelayed = false
    /// The piece of a zeroing or discard is a hole of the origin.
    var isHole = false
    var attempts: UInt8 = 0
    var snapshot: UInt16 = .max
    /// Partial blocks of an image write's window still to be read.
    var partialBlocks: UInt16 = 0
    var outstanding: UInt32 = 0
    var fault: Int32 = 0

    var offset: UInt64 = 0
    var length: UInt64 = 0
    /// End of what was marked and is being preserved or issued now, in bytes.
    var pieceEnd: UInt64 = 0
    var pieceStart: UInt64 = 0
    /// Copies of the blocks below were started.
    var startCursor: UInt64 = 0
    /// The blocks below are preserved.
    var waitCursor: UInt64 = 0
    var partEnd: UInt64 = 0
    /// Up to where `isHole` is known.
    var knownEnd: UInt64 = 0
    /// Gates closed before the origin was asked for holes.
    var scanGateCount: UInt64 = 0
    var waitedSince: UInt64 = 0
    var waitedCopy: UInt32 = .max
    var waitedPage: UInt64 = 0

    var next: UInt32 = .max
    var previous: UInt32 = .max
    var delayNext: UInt32 = .max
    var delayPrevious: UInt32 = .max

    // Image requests: the window of blocks being worked on.
    var step = WriteStep.window
    var windowStart: UInt64 = 0
    var windowCount: UInt32 = 0
    var targetBuffer: UInt32 = .max
    var firstBuffer: UInt32 = .max
    var lastBuffer: UInt32 = .max
    var fromOrigin: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
}

/// A list through the request records.
struct RequestList {
    var head = UInt32.max
    var tail = UInt32.max

    var isEmpty: Bool { head == .max }
}

/// Old data of neighbouring blocks of one chunk on its way to memory.
struct CopyRecord {
    var isUsed = false
    /// Nobody needs the data any more: it is dropped on arrival.
    var isOrphaned = false
    var attempts: UInt8 = 0
    var first: UInt8 = 0
    var count: UInt8 = 0
    var layer: UInt16 = 0
    var record: UInt32 = 0
    var chunk: UInt64 = 0
    var waitersHead: UInt32 = .max
    var waitersTail: UInt32 = .max
    var next: UInt32 = .max

    var mask: UInt16 { UInt16(truncatingIfNeeded: (1 << UInt32(count)) - 1) << UInt16(first) }
}

/// Block buffers on their way to neighbouring slots.
struct BatchRecord {
    var isUsed = false
    var attempts: UInt8 = 0
    var purpose = StoragePurpose.preserving
    var count: UInt16 = 0
    var firstSlot: UInt32 = 0
    /// The image write it belongs to, for overlays.
    var request: UInt32 = .max
    var next: UInt32 = .max
}

/// A snapshot of this device.
struct SnapshotRecord {
    enum State: UInt8 { case free, prepared, held, corrupted, destroying }

    var state = State.free
    var layer: UInt16 = .max
    var overlay: UInt16 = .max
    var isOverlayLost = false
    var account: UInt16 = 0
    var policy = OverflowPolicy.Kind.break
    var limitNanoseconds: UInt64 = 0
    var cutEpoch: UInt32 = 0
    /// The epoch that ended at the newest cut before its own that was usable as a base.
    var baseBefore: UInt32 = 0
    /// Counts generations of the device; queries across two are refused.
    var generation: UInt32 = 0
    var size: UInt64 = 0
    /// Its first storage source; the others follow in the order in which they were added.
    var firstSource: UInt16 = .max
    /// Image requests not yet finished.
    var requestCount: UInt32 = 0
    var writersHead: UInt32 = .max
    var writersTail: UInt32 = .max
}

/// What a layer slot is for.
struct LayerUse {
    enum Role: UInt8 { case free, prepared, live, merging, freeing, overlay }

    var role = Role.free
    var snapshot: UInt16 = .max
    /// Next record to merge or free.
    var cursor: UInt32 = 0
    /// Copies in flight for it; those nobody needs any more are not counted.
    var copyCount: UInt32 = 0
}

/// A storage source as this engine sees it.
struct SourceRecord {
    enum State: UInt8 { case usable, full, failed }

    var isUsed = false
    var isClosed = false
    var state = State.usable
    /// It failed for want of space: a thin device, say.
    var isOutOfSpace = false
    var isOverlayFull = false
    /// Which it was added to. Another one may have that number once this is closed and asks for
    /// nothing.
    var snapshot: UInt16 = .max
    /// The next source of the same snapshot.
    var next: UInt16 = .max
    var extentCount: UInt32 = 0
    /// Blocks in each of its extents.
    var slotsPerExtent: UInt32 = 0
    /// By purpose: the extent appended to, the one handed ahead, and whether one is asked for.
    var open: (UInt32, UInt32) = (.max, .max)
    var ahead: (UInt32, UInt32) = (.max, .max)
    var isAsking: (Bool, Bool) = (false, false)

    var isAskingAny: Bool { isAsking.0 || isAsking.1 }
}
