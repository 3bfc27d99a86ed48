public import BlockModel

/// The engine's record of a write, zeroing or discard of the device.
@usableFromInline package struct WriteRequest: BitwiseCopyable {
    /// Why the request waits, or who has it.
    @usableFromInline package enum Phase: BitwiseCopyable {
        /// The engine works on it in this call.
        case running
        /// On the ready list.
        case ready
        /// Given to the origin: the whole of a write, what begins at `pieceStart` of the others.
        case issued(end: UInt64)
        /// Behind the closed gate.
        case parked
        /// Until the page of the change map is reserved.
        case waitingForMap(page: UInt64)
        /// Until the origin has said where its holes are.
        case waitingForScan
        /// Until the next turn, for others to have theirs.
        case yielded
        /// Until a buffer or a copy slot is free.
        case waitingForMemory
        /// Until a copy is in memory.
        case waitingForCopy
    }

    /// What the origin said about its holes, from `pieceStart` on.
    @usableFromInline package struct ScannedRange: BitwiseCopyable {
        /// The bytes before `end` are a hole.
        @usableFromInline package var isHole = false
        /// Nothing is known from here on.
        @usableFromInline package var end: UInt64 = 0
        /// Gates closed before the origin was asked: an answer holds until the next cut.
        @usableFromInline package var gateCount: UInt64 = 0

        @inlinable init() {}
    }

    /// False before a request has the slot and after it left the engine: nothing else is valid then.
    @usableFromInline package var isUsed = false
    @usableFromInline package var operation = RequestOperation.write
    /// Part of the request reached the origin: a closing gate waits for the rest.
    @usableFromInline package var isUnderWay = false
    /// Times that the origin did less than it was given.
    @usableFromInline package var attempts: UInt8 = 0
    @usableFromInline package var phase = Phase.running
    @usableFromInline package var offset: UInt64 = 0
    @usableFromInline package var length: UInt64 = 0
    /// When it began to wait because of a snapshot; nil when it does not.
    @usableFromInline package var delayedSince: UInt64?

    /// What was marked and is being preserved or issued now, in bytes of the device.
    @usableFromInline package var pieceStart: UInt64 = 0
    @usableFromInline package var pieceEnd: UInt64 = 0
    /// Copies of the blocks below were started.
    @usableFromInline package var startCursor: UInt64 = 0
    /// The blocks below are preserved.
    @usableFromInline package var waitCursor: UInt64 = 0
    @usableFromInline package var scanned = ScannedRange()

    /// A request that has done nothing yet.
    @inlinable package init(operation: RequestOperation, offset: UInt64, length: UInt64) {
        isUsed = true
        self.operation = operation
        self.offset = offset
        self.length = length
        pieceStart = offset
        pieceEnd = offset
    }

    /// The slot gets a write that is given to the origin at once. What only waiting requests use is
    /// left as it was.
    @inlinable package mutating func beginIssued(offset: UInt64, length: UInt64) {
        isUsed = true
        operation = .write
        isUnderWay = true
        attempts = 0
        phase = .issued(end: offset + length)
        self.offset = offset
        self.length = length
        delayedSince = nil
    }

    /// End of the request in bytes of the device.
    @inlinable package var end: UInt64 { offset + length }
}
