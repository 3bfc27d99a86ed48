// `BlockRequest` and `BlockTarget.submit` are the only door between exports and devices.
//
// Invariants
// - A request lies in a slot of its loop's pool, named by a `RequestIndex`, from `submit` until
//   the target has called `requestFinished` exactly once.
// - Between the two the target owns the slot's scratch fields and may read (write requests) or
//   write (read requests) the payload buffer; the owner touches neither.
// - All of it happens on the loop of the target.

/// What a request asks for.
@usableFromInline package enum RequestOperation: UInt8, CaseIterable, Sendable, BitwiseCopyable {
    case read
    case write
    /// Everything acknowledged before is on stable storage when this finishes.
    case flush
    /// The contents may be dropped; reads return zeroes afterwards where it was performed.
    case discard
    /// Reads return zeroes afterwards.
    case writeZeroes
    /// A hint that the range will be read.
    case prefetch
    /// Fills the buffer with `StatusExtent` records that describe the range from its start.
    case blockStatus
}

/// Modifiers of a request.
package struct RequestFlags: OptionSet, Sendable {
    package let rawValue: UInt8

    package init(rawValue: UInt8) { self.rawValue = rawValue }

    /// None.
    package init() { rawValue = 0 }

    /// True when all of `member` is set. What the option set gives is generic, and called as such
    /// from other modules: tens of nanoseconds a request.
    package func contains(_ member: RequestFlags) -> Bool {
        rawValue & member.rawValue == member.rawValue
    }

    /// The request's effect is on stable storage when it finishes.
    package static let forceUnitAccess = RequestFlags(rawValue: 1 << 0)
    /// Zeroes must stay allocated: no hole may be punched.
    package static let keepAllocated = RequestFlags(rawValue: 1 << 1)
    /// Zeroing that would be as slow as a write fails with `notSupported` instead.
    package static let onlyFast = RequestFlags(rawValue: 1 << 2)
    /// Block status: one extent is enough.
    package static let oneExtent = RequestFlags(rawValue: 1 << 3)
}

/// Index of a request's slot in the pool of its loop.
public struct RequestIndex: Hashable, Sendable, BitwiseCopyable {
    @usableFromInline package let rawValue: UInt32

    @inlinable package init(_ rawValue: UInt32) { self.rawValue = rawValue }

    /// No request: the end of an intrusive list.
    @inlinable package static var none: RequestIndex { RequestIndex(.max) }
}

/// One record of a block status answer. The records of an answer follow each other without gap.
public struct StatusExtent: Equatable, Sendable {
    /// Bytes, never 0.
    package var length: UInt64
    /// `AllocationFlags` or `ChangeFlags`, by what was asked.
    package var flags: UInt64

    package init(length: UInt64, flags: UInt64) {
        self.length = length
        self.flags = flags
    }
}

/// Flags of an allocation extent; the values are those of NBD's `base:allocation`.
package enum AllocationFlags {
    package static let data: UInt64 = 0
    package static let hole: UInt64 = 1
    package static let zero: UInt64 = 2
}

/// Flags of an extent that says what changed; the values are those of `qemu:dirty-bitmap`.
package enum ChangeFlags {
    package static let unchanged: UInt64 = 0
    package static let changed: UInt64 = 1
}

/// A request on its way through a device.
package struct BlockRequest {
    package var operation: RequestOperation
    package var flags: RequestFlags
    /// What a `blockStatus` request asks for: what changed since this cut, or allocation when nil.
    /// The request carries the cut itself, so the client means the same one forever, whatever
    /// becomes of the name it was found under.
    package var statusBase: TrackingBase?
    package var offset: UInt64
    package var length: UInt64
    /// The payload: `length` bytes for reads and writes, `bufferByteCount` bytes of room for
    /// `StatusExtent` records, nil otherwise. `BlockTarget.alignment` says how it is placed.
    package var buffer: UnsafeMutableRawPointer?
    package var bufferByteCount: Int
    /// Bytes the status records fill, set by the target.
    package var resultByteCount: Int
    /// Who is notified.
    // SAFETY: an owner lives until all its requests are finished.
    package var owner: Unmanaged<RequestOwner>
    /// The owner's own word for it.
    package var ownerToken: UInt64
    /// A second word of the owner's.
    package var ownerNote: UInt64
    /// The outcome, set by the target before it calls `requestFinished`.
    package var fault: Fault?

    // Scratch of the target that holds the request.
    /// The image the request came through, if any.
    package var image: Unmanaged<BlockTarget>?
    /// Intrusive list links.
    package var next: RequestIndex
    package var previous: RequestIndex
    /// What the origin works on now: the range, or a part of a zeroing or discard.
    package var part: ByteRange
    /// Bytes already done.
    package var progress: UInt64
    /// A state number private to the target.
    package var step: UInt8
    /// Times its operation was interrupted, or found no room in the kernel.
    package var attempts: UInt8
    /// Index of something the target keeps for the request.
    package var attachment: UInt32
    /// Monotonic nanoseconds at submission.
    package var submittedNanoseconds: UInt64

    package init(
        operation: RequestOperation, flags: RequestFlags = RequestFlags(), offset: UInt64 = 0,
        length: UInt64 = 0, owner: Unmanaged<RequestOwner>, ownerToken: UInt64 = 0
    ) {
        self.operation = operation
        self.flags = flags
        self.statusBase = nil
        self.offset = offset
        self.length = length
        self.buffer = nil
        self.bufferByteCount = 0
        self.resultByteCount = 0
        self.owner = owner
        self.ownerToken = ownerToken
        self.ownerNote = 0
        self.fault = nil
        self.image = nil
        self.next = .none
        self.previous = .none
        self.part = ByteRange(offset: offset, length: length)
        self.progress = 0
        self.step = 0
        self.attempts = 0
        self.attachment = .max
        self.submittedNanoseconds = 0
    }

    /// The bytes of the device the request is about.
    package var range: ByteRange { ByteRange(offset: offset, length: length) }
}

/// Submits requests and is notified when they finish. Confined to one loop.
open class RequestOwner {
    public init() {}

    /// `index` is finished: its `fault` and, for reads, its buffer are final; the slot is the
    /// owner's again. Called on the loop, never from inside `submit` of the same request's
    /// caller unless the target finished it at once; owners must bear that re-entry.
    open func requestFinished(_ index: RequestIndex) {
        preconditionFailure("a request owner must say what happens when a request finishes")
    }
}

/// Something that serves requests: a device or an image. Confined to one loop.
open class BlockTarget {
    /// Bytes. May change between two iterations of the loop, to less too.
    package final var size: UInt64
    /// A power of two. The buffer of a read or write request must cover the request's range
    /// rounded outward to this, and `BlockRequest.buffer` must lie `offset % alignment` bytes
    /// behind the start of an allocation that is itself aligned to it. 1: no rounding.
    package let alignment: UInt64
    private final var users: [TargetUser] = []
    /// From `closeUsers` on.
    private final var takesUsers = true

    package init(size: UInt64, alignment: UInt64) {
        precondition(
            alignment > 0 && alignment & (alignment - 1) == 0 && alignment <= blockByteCount,
            "an alignment is a power of two up to a block")
        self.size = size
        self.alignment = alignment
    }

    /// Takes over the request in slot `index`; its flags must fit the operation. Finishes it by
    /// `RequestPool.finish`. Exports check the range against `size` when they hear of a request,
    /// but it may lie beyond the end when it is submitted: a target fails it with `faultBeyondEnd`.
    open func submit(_ index: RequestIndex) {
        preconditionFailure("a block target must serve requests")
    }

    /// Why a request cannot be performed whose range reaches beyond the end, which may have moved
    /// since the range was checked: `noSpace` for what would write, `invalid` for the others. Nil
    /// when it lies within, or has no range.
    package final func faultBeyondEnd(of request: borrowing BlockRequest) -> Fault? {
        let (offset, length) = (request.offset, request.length)
        if length <= size, offset <= size - length { return nil }
        switch request.operation {
        case .flush: return nil
        case .write, .writeZeroes: return .noSpace
        case .read, .discard, .prefetch, .blockStatus: return .invalid
        }
    }

    /// A write at `offset` will be submitted next, once its payload is there: a chance to fetch
    /// into the processor's cache what it will touch. Promises nothing.
    open func writeExpected(at offset: UInt64) {}

    /// The same, one write earlier: a chance to prefetch the entries that locate it. Nobody has
    /// looked at `offset` yet: it may lie anywhere.
    open func writeForeseen(at offset: UInt64) {}

    /// Enters a user: an open connection or block attachment. False when the target is closing:
    /// nobody would send it away, and the end of the target would wait for it.
    package final func addUser(_ user: TargetUser) -> Bool {
        guard takesUsers else { return false }
        users.append(user)
        return true
    }

    /// Takes a user out.
    package final func removeUser(_ user: TargetUser) {
        users.removeAll { $0 === user }
        usersChanged()
    }

    /// A user has left.
    open func usersChanged() {}

    /// Users at this moment.
    package final var userCount: Int { users.count }

    /// Tells every user that the target is closing; each removes itself when its requests are
    /// finished. No user is taken from now on.
    package final func closeUsers() {
        takesUsers = false
        for user in users { user.targetIsClosing() }
    }
}

/// An open connection or block attachment, as its target sees it. Confined to the target's loop.
public protocol TargetUser: AnyObject {
    /// Take no more requests, let those under way finish, then leave with `removeUser`.
    func targetIsClosing()
}
