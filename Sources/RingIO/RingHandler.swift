/// What the loop tells when an operation it submitted has completed.
///
/// Public because only `open` classes may be subclassed by other rooms. Confined to one loop. A
/// handler is registered with `EventLoop.register(_:)` and may be removed only when none of its
/// operations is in the kernel: buffers that an operation names must stay valid until its
/// completion has been seen.
open class RingHandler {
    /// Slot in the loop's table; set while registered.
    package fileprivate(set) var slot: HandlerSlot = .none
    /// Operations submitted and not yet completed.
    package fileprivate(set) var operationsInFlight = 0
    /// True between `register` and `remove`.
    package var isRegistered: Bool { slot != HandlerSlot.none }
    /// True while the handler waits in the loop's end-of-turn list.
    var isDeferred = false
    /// True while the handler waits for room in the pools of the loop.
    var isWaitingForRoom = false

    public init() {}

    /// The operation submitted with `tag` and `token` completed: `result` is what the system call
    /// would have returned, a negative errno on failure; `flags` are those of the completion.
    open func completed(tag: UInt8, token: UInt32, result: Int32, flags: UInt32) {
        preconditionFailure("a ring handler must handle its completions")
    }

    /// The turn ends: everything that completed in it has been handed out. Asked for with
    /// `EventLoop.callAtEndOfTurn(_:)`, once for each call.
    open func turnEnded() {
        preconditionFailure("a ring handler that asks for the end of a turn must handle it")
    }

    /// The time asked for with `EventLoop.schedule` has come.
    open func timerFired(token: UInt32) {
        preconditionFailure("a ring handler that sets a timer must handle it")
    }

    /// A pool of the loop has room again; asked for with `EventLoop.callWhenRoom(_:)`.
    open func roomMade() {
        preconditionFailure("a ring handler that waits for room must handle it")
    }
}

/// Index of a handler in its loop's table.
package struct HandlerSlot: Equatable, Sendable {
    let rawValue: UInt16

    package init(rawValue: UInt16) { self.rawValue = rawValue }

    static let none = HandlerSlot(rawValue: .max)
}

/// The table of a loop's handlers.
///
/// Invariants
/// - A slot holds a handler from `add` to `remove`; the table keeps it alive from `add` until
///   `releaseRemoved`, which no handler is inside of: one that leaves while it handles a
///   completion does not end under its own feet.
/// - A slot is given away again only after its handler's last operation completed.
struct HandlerTable {
    /// Most handlers of one loop: connections, devices, images and the loop's own.
    static let capacity = 8192

    private let entries: UnsafeMutablePointer<Unmanaged<RingHandler>?>
    private var freeSlots: [UInt16]
    private var removed: [Unmanaged<RingHandler>] = []
    /// In `user_data`: the operation is one of a file or disk.
    static let ofFile: UInt64 = 1 << 32
    /// Above that bit: its group in `OperationAges`.
    private static let groupShift: UInt64 = 33

    /// What an operation of a file or disk has in `user_data` beside its name.
    @inline(__always)
    static func ofFile(inGroup group: Int) -> UInt64 { ofFile | UInt64(group) << groupShift }

    /// The group of an operation of a file or disk.
    @inline(__always)
    static func group(ofUserData userData: UInt64) -> Int {
        Int(userData >> groupShift) & (OperationAges.groupCount - 1)
    }

    init() {
        entries = .allocate(capacity: Self.capacity)
        entries.initialize(repeating: nil, count: Self.capacity)
        freeSlots = (0..<UInt16(Self.capacity)).reversed()
        removed.reserveCapacity(64)
    }

    func deallocate() {
        for index in 0..<Self.capacity { entries[index]?.release() }
        for entry in removed { entry.release() }
        entries.deallocate()
    }

    /// Lets go of the handlers that were removed; at the end of a turn.
    mutating func releaseRemoved() {
        guard !removed.isEmpty else { return }
        // One that ends may take others out.
        let leaving = removed
        removed.removeAll(keepingCapacity: true)
        for entry in leaving { entry.release() }
    }

    /// False when the table is full.
    mutating func add(_ handler: RingHandler) -> Bool {
        precondition(handler.slot == .none, "a handler is registered twice")
        guard let slot = freeSlots.popLast() else { return false }
        // SAFETY: `releaseRemoved` gives the reference back.
        entries[Int(slot)] = Unmanaged.passRetained(handler)
        handler.slot = HandlerSlot(rawValue: slot)
        return true
    }

    mutating func remove(_ handler: RingHandler) {
        precondition(handler.operationsInFlight == 0, "a handler leaves with operations in flight")
        let slot = handler.slot
        precondition(slot != .none, "a handler that is not registered leaves")
        handler.slot = .none
        freeSlots.append(slot.rawValue)
        if let entry = entries[Int(slot.rawValue)] { removed.append(entry) }
        entries[Int(slot.rawValue)] = nil
    }

    /// Counts an operation in, for `user_data`.
    @inline(__always)
    func submitted(_ handler: RingHandler, tag: UInt8, token: UInt32) -> UInt64 {
        handler.operationsInFlight += 1
        return Self.userData(handler, tag: tag, token: token)
    }

    /// What names an operation in the ring: slot (16 bits), tag (8), nothing (3), the group of one of
    /// a file (4), whether it is one of a file (1), token (32).
    @inline(__always)
    static func userData(_ handler: RingHandler, tag: UInt8, token: UInt32) -> UInt64 {
        precondition(handler.slot != .none, "a handler must be registered before it submits")
        return UInt64(handler.slot.rawValue) << 48 | UInt64(tag) << 40 | UInt64(token)
    }

    /// Hands a completion to its handler.
    @inline(__always)
    func dispatch(userData: UInt64, result: Int32, flags: UInt32, isLast: Bool) {
        guard let entry = entries[Int(userData >> 48)] else {
            preconditionFailure("a completion names a handler that has left")
        }
        entry._withUnsafeGuaranteedRef { handler in
            if isLast { handler.operationsInFlight -= 1 }
            handler.completed(
                tag: UInt8(truncatingIfNeeded: userData >> 40),
                token: UInt32(truncatingIfNeeded: userData), result: result, flags: flags)
        }
    }

    /// True when no handler is registered.
    var isEmpty: Bool { freeSlots.count == Self.capacity }

    func handler(at slot: HandlerSlot) -> RingHandler? {
        entries[Int(slot.rawValue)]?.takeUnretainedValue()
    }
}
