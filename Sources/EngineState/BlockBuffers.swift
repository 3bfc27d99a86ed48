package import CopyOnWrite

// The block buffers of a loop by index; the bytes are the data plane's (or the simulator's).
//
// Invariants
// - A buffer is free or belongs to one engine; `records` says what for.
// - One account (a snapshot) holds at most half of the buffers.
// - Image writes hold at most an eighth, and only while more than half of all are free: origin
//   writers come first.

/// What an engine notes about a buffer it holds.
@usableFromInline package struct BufferRecord {
    /// What the engine does with the buffer.
    @usableFromInline package enum State: UInt8 {
        case free, copying, queued, writing, orphaned, imageWrite
    }

    @usableFromInline package var state: State = .free
    @usableFromInline package var position: UInt8 = 0
    @usableFromInline package var account: UInt16 = 0
    @usableFromInline package var layer: UInt16 = 0
    @usableFromInline package var record: UInt32 = 0
    @usableFromInline package var checksum: UInt32 = 0
    @usableFromInline package var next: UInt32 = .max
    @usableFromInline package var previous: UInt32 = .max
}

/// The bounded pool of block buffers that the engines of one loop share.
@usableFromInline package final class BlockBuffers {
    /// Buffers in the pool.
    package let capacity: Int
    /// Buffers nobody holds.
    package private(set) var freeCount: Int
    /// The notes by buffer index.
    package let records: UnsafeMutablePointer<BufferRecord>
    private let accounts: UnsafeMutablePointer<UInt32>
    private static let accountCount = 1024
    private var imageCount = 0
    private var freeHead: UInt32

    /// `capacity` buffers of 4 KiB; the default is 64 MiB.
    package init(capacity: Int = 16384) {
        precondition(capacity >= 256, "image writes need room in an eighth of the pool")
        self.capacity = capacity
        freeCount = capacity
        records = .allocate(capacity: capacity)
        records.initialize(repeating: BufferRecord(), count: capacity)
        for index in 0..<capacity - 1 { records[index].next = UInt32(index + 1) }
        freeHead = 0
        accounts = .allocate(capacity: Self.accountCount)
        accounts.initialize(repeating: 0, count: Self.accountCount)
    }

    deinit {
        records.deallocate()
        accounts.deallocate()
    }

    /// Whether the account may have another buffer.
    package func canTake(account: UInt16) -> Bool {
        freeCount > 0 && Int(accounts[Int(account)]) < capacity / 2
    }

    /// A buffer for a copy; nil when the account may have none now.
    package func take(account: UInt16) -> BufferIndex? {
        guard canTake(account: account) else { return nil }
        accounts[Int(account)] += 1
        return pop(state: .copying, account: account)
    }

    /// Whether image writes may have `count` more.
    package func canTakeForImage(_ count: Int) -> Bool {
        freeCount - count >= capacity / 2 && imageCount + count <= capacity / 8
    }

    /// A buffer for an image write, which `canTakeForImage` was asked about.
    package func takeForImage() -> BufferIndex {
        precondition(canTakeForImage(1), "image writes ask before they take")
        imageCount += 1
        return pop(state: .imageWrite, account: .max)
    }

    /// Gives a buffer back.
    package func free(_ index: BufferIndex) {
        let record = records + Int(index.rawValue)
        precondition(record.pointee.state != .free, "a buffer is freed once")
        if record.pointee.account == .max {
            imageCount -= 1
        } else {
            accounts[Int(record.pointee.account)] -= 1
        }
        record.pointee.state = .free
        record.pointee.next = freeHead
        freeHead = index.rawValue
        freeCount += 1
    }

    private func pop(state: BufferRecord.State, account: UInt16) -> BufferIndex {
        let index = freeHead
        let record = records + Int(index)
        freeHead = record.pointee.next
        record.pointee = BufferRecord()
        record.pointee.state = state
        record.pointee.account = account
        freeCount -= 1
        return BufferIndex(index)
    }
}
