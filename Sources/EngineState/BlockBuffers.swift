public import CopyOnWrite

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
    /// The account it is charged to, unless an image write holds it.
    @usableFromInline package var account: UInt16 = 0
    @usableFromInline package var isOfImageWrite = false
    @usableFromInline package var layer = LayerIndex(0)
    @usableFromInline package var record: UInt32 = 0
    @usableFromInline package var checksum: UInt32 = 0
    @usableFromInline var next = BufferIndex.none
    @usableFromInline var previous = BufferIndex.none

    @inlinable init() {}
}

/// A list through the buffers that engines hold.
@usableFromInline package struct BufferList: BitwiseCopyable {
    /// The first buffer, `none` in an empty list.
    @usableFromInline package internal(set) var head = BufferIndex.none
    @usableFromInline var tail = BufferIndex.none
    /// Buffers in the list.
    @usableFromInline package internal(set) var count = 0

    @inlinable package init() {}

    /// It has no buffer.
    @inlinable package var isEmpty: Bool { count == 0 }
}

/// The bounded pool of block buffers that the engines of one loop share.
@usableFromInline package final class BlockBuffers {
    /// Buffers in the pool.
    package let capacity: Int
    /// Buffers nobody holds.
    package private(set) var freeCount: Int
    @usableFromInline let records: UnsafeMutablePointer<BufferRecord>
    private let accounts: UnsafeMutablePointer<UInt32>
    private static let accountCount = 1024
    private var imageCount = 0
    private var freeHead: BufferIndex

    /// `capacity` buffers of 4 KiB; the default is 64 MiB.
    package init(capacity: Int = 16384) {
        precondition(capacity >= 256, "image writes need room in an eighth of the pool")
        self.capacity = capacity
        freeCount = capacity
        records = .allocate(capacity: capacity)
        records.initialize(repeating: BufferRecord(), count: capacity)
        for index in 0..<capacity - 1 { records[index].next = BufferIndex(UInt32(index + 1)) }
        freeHead = BufferIndex(0)
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
        let index = takeFree(state: .copying)
        self[index].account = account
        return index
    }

    /// Whether image writes may have `count` more.
    package func canTakeForImage(_ count: Int) -> Bool {
        freeCount - count >= capacity / 2 && imageCount + count <= capacity / 8
    }

    /// A buffer for an image write, which `canTakeForImage` was asked about.
    package func takeForImage() -> BufferIndex {
        precondition(canTakeForImage(1), "image writes ask before they take")
        imageCount += 1
        let index = takeFree(state: .imageWrite)
        self[index].isOfImageWrite = true
        return index
    }

    /// Gives a buffer back, which is on no list.
    package func free(_ index: BufferIndex) {
        let record = self[index]
        precondition(record.state != .free, "a buffer is freed once")
        if record.isOfImageWrite {
            imageCount -= 1
        } else {
            accounts[Int(record.account)] -= 1
        }
        self[index].state = .free
        self[index].next = freeHead
        freeHead = index
        freeCount += 1
    }

    private func takeFree(state: BufferRecord.State) -> BufferIndex {
        let index = freeHead
        freeHead = self[index].next
        self[index] = BufferRecord()
        self[index].state = state
        freeCount -= 1
        return index
    }

    /// What is noted about a buffer.
    @inlinable package subscript(index: BufferIndex) -> BufferRecord {
        unsafeAddress { UnsafePointer(records + Int(index.rawValue)) }
        unsafeMutableAddress { records + Int(index.rawValue) }
    }

    // MARK: Lists

    /// The buffer behind `index` in its list, `none` at the end.
    @inlinable package func next(after index: BufferIndex) -> BufferIndex { self[index].next }

    /// Adds a buffer that is on no list at the end.
    @inlinable package func append(_ index: BufferIndex, to list: inout BufferList) {
        self[index].next = .none
        self[index].previous = list.tail
        if list.isEmpty {
            list.head = index
        } else {
            self[list.tail].next = index
        }
        list.tail = index
        list.count += 1
    }

    /// Takes a buffer out of the list that it is on.
    @inlinable package func remove(_ index: BufferIndex, from list: inout BufferList) {
        let (next, previous) = (self[index].next, self[index].previous)
        if index == list.head {
            list.head = next
        } else {
            self[previous].next = next
        }
        if index == list.tail {
            list.tail = previous
        } else {
            self[next].previous = previous
        }
        list.count -= 1
    }

    /// Takes the first buffer out.
    @inlinable package func pop(_ list: inout BufferList) -> BufferIndex? {
        guard !list.isEmpty else { return nil }
        let index = list.head
        remove(index, from: &list)
        return index
    }
}
