internal import BlockModel
internal import RingIO

/// A request of a connection, from its header to the last byte of its reply.
///
/// Invariants
/// - A slot is in one of four places: free, receiving its payload, with the device, or in the
///   connection's reply queue.
/// - `request` is leased and the device's while the slot is with the device.
struct ConnectionSlot {
    var cookie: UInt64 = 0
    /// Offset and flags as the header said them, for the reply.
    var offset: UInt64 = 0
    var length: UInt64 = 0
    var operation = RequestOperation.flush
    var flags = RequestFlags(rawValue: 0)
    /// The payload that is being received selects meta contexts.
    var isStatusSubset = false
    var holdsRequest = false
    var request = RequestIndex.none
    var lease: BufferLease?
    /// First byte of the payload, inside the lease.
    var payload: UnsafeMutableRawPointer?
    /// Bytes of the reply: header, then payload.
    var headerByteCount = 0
    var payloadByteCount = 0
    /// Meta contexts still to be answered, as bits over the session's list.
    var contextsLeft: UInt64 = 0
}

/// The slots of a connection, its reply queue, and the memory a send needs. Fixed size.
///
/// Invariants
/// - The queue holds each slot once at most, so it cannot overflow.
struct ConnectionSlots: ~Copyable {
    let capacity: Int
    private let slots: UnsafeMutablePointer<ConnectionSlot>
    private let headers: UnsafeMutableRawPointer
    private let freeSlots: UnsafeMutablePointer<UInt16>
    private let queue: UnsafeMutablePointer<UInt16>
    private(set) var freeCount: Int
    private var queueHead = 0
    private(set) var queuedCount = 0

    init(capacity: Int) {
        precondition(capacity > 0 && capacity <= 512, "a connection has a sensible limit")
        self.capacity = capacity
        slots = .allocate(capacity: capacity)
        headers = .allocate(
            byteCount: capacity * NBDReplyEncoder.headerByteCountMax, alignment: 16)
        freeSlots = .allocate(capacity: capacity)
        queue = .allocate(capacity: capacity)
        for index in 0..<capacity { freeSlots[index] = UInt16(capacity - 1 - index) }
        freeCount = capacity
    }

    deinit {
        slots.deallocate()
        headers.deallocate()
        freeSlots.deallocate()
        queue.deallocate()
    }

    /// Slots that hold a request.
    var usedCount: Int { capacity - freeCount }

    /// A fresh slot, or nil when the connection has as many unanswered requests as it may.
    mutating func take() -> Int? {
        guard freeCount > 0 else { return nil }
        freeCount -= 1
        let index = Int(freeSlots[freeCount])
        (slots + index).initialize(to: ConnectionSlot())
        return index
    }

    mutating func giveBack(_ index: Int) {
        precondition(freeCount < capacity, "a slot of a connection is given back twice")
        freeSlots[freeCount] = UInt16(index)
        freeCount += 1
    }

    func pointer(_ index: Int) -> UnsafeMutablePointer<ConnectionSlot> { slots + index }

    func header(_ index: Int) -> UnsafeMutableRawPointer {
        headers + index * NBDReplyEncoder.headerByteCountMax
    }

    /// Queues a slot whose reply is ready.
    mutating func enqueue(_ index: Int) {
        precondition(queuedCount < capacity, "a reply is queued twice")
        queue[(queueHead + queuedCount) % capacity] = UInt16(index)
        queuedCount += 1
    }

    /// The slot at `position` of the queue, 0 being the next to be sent.
    func queued(_ position: Int) -> Int { Int(queue[(queueHead + position) % capacity]) }

    mutating func dequeue() -> Int {
        precondition(queuedCount > 0, "an empty queue has no first reply")
        let index = Int(queue[queueHead])
        queueHead = (queueHead + 1) % capacity
        queuedCount -= 1
        return index
    }
}
