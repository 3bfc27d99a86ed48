public import BlockModel

/// The engine's note about a request it was given.
@usableFromInline package struct RequestRecord {
    /// Why the request waits, or who has it.
    @usableFromInline package enum Phase: UInt8 {
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
        /// Until a copy is in memory.
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
    @usableFromInline package enum WriteStep: UInt8 { case window, reading, filling, storing }

    @usableFromInline package var phase = Phase.idle
    @usableFromInline package var operation = RequestOperation.read
    /// Part of the request reached the origin: a closing gate waits for the rest.
    @usableFromInline package var isUnderWay = false
    @usableFromInline package var isImage = false
    @usableFromInline package var isOverlay = false
    @usableFromInline package var isDelayed = false
    /// The piece of a zeroing or discard is a hole of the origin.
    @usableFromInline package var isHole = false
    @usableFromInline package var attempts: UInt8 = 0
    @usableFromInline package var snapshot: UInt16 = .max
    /// Partial blocks of an image write's window still to be read.
    @usableFromInline package var partialBlocks: UInt16 = 0
    @usableFromInline package var outstanding: UInt32 = 0
    @usableFromInline package var fault: Int32 = 0

    @usableFromInline package var offset: UInt64 = 0
    @usableFromInline package var length: UInt64 = 0
    /// End of what was marked and is being preserved or issued now, in bytes.
    @usableFromInline package var pieceEnd: UInt64 = 0
    @usableFromInline package var pieceStart: UInt64 = 0
    /// Copies of the blocks below were started.
    @usableFromInline package var startCursor: UInt64 = 0
    /// The blocks below are preserved.
    @usableFromInline package var waitCursor: UInt64 = 0
    @usableFromInline package var partEnd: UInt64 = 0
    /// Up to where `isHole` is known.
    @usableFromInline package var knownEnd: UInt64 = 0
    /// Gates closed before the origin was asked for holes.
    @usableFromInline package var scanGateCount: UInt64 = 0
    @usableFromInline package var waitedSince: UInt64 = 0
    @usableFromInline package var waitedPage: UInt64 = 0

    @usableFromInline package var next: RequestIndex = .none
    @usableFromInline package var previous: RequestIndex = .none
    @usableFromInline package var delayNext: RequestIndex = .none
    @usableFromInline package var delayPrevious: RequestIndex = .none

    // Image requests: the window of blocks being worked on.
    @usableFromInline package var step = WriteStep.window
    @usableFromInline package var windowStart: UInt64 = 0
    @usableFromInline package var windowCount: UInt32 = 0
    @usableFromInline package var targetBuffer: UInt32 = .max
    @usableFromInline package var firstBuffer: UInt32 = .max
    @usableFromInline package var lastBuffer: UInt32 = .max
    @usableFromInline package var fromOrigin: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)

    @inlinable package init() {}
}

/// A list through the request records.
@usableFromInline package struct RequestList {
    /// The first request, `none` in an empty list.
    @usableFromInline package var head = RequestIndex.none
    @usableFromInline package var tail = RequestIndex.none

    @inlinable package init() {}

    /// It has no request.
    @inlinable package var isEmpty: Bool { head == .none }
}
