package import BlockModel

/// The request slots of one loop, named by index.
///
/// Invariants
/// - A slot is either in the free list or leased; `leasedCount` counts the leased ones.
package final class RequestPool {
    /// Slots in the pool.
    package let capacity: Int
    /// Slots handed out.
    package private(set) var leasedCount = 0

    /// Counts what was given back, so that the loop sees when room was made.
    private(set) var releaseCount: UInt64 = 0

    private let shares: PoolShares
    private let slots: UnsafeMutablePointer<BlockRequest>
    private let freeList: UnsafeMutablePointer<UInt32>
    private let isLeased: UnsafeMutablePointer<Bool>

    package init(capacity: Int) {
        precondition(capacity > 0 && capacity < Int(UInt32.max), "a pool has a sensible size")
        self.capacity = capacity
        shares = PoolShares(capacity: capacity, reserveDivisor: 2)
        slots = .allocate(capacity: capacity)
        freeList = .allocate(capacity: capacity)
        isLeased = .allocate(capacity: capacity)
        isLeased.initialize(repeating: false, count: capacity)
        for index in 0..<capacity { freeList[index] = UInt32(capacity - 1 - index) }
    }

    deinit {
        slots.deallocate()
        freeList.deallocate()
        isLeased.deallocate()
    }

    /// Whether `lease` would find a slot.
    package func hasRoom(heldCount: Int, earnedCount: Int = .max) -> Bool {
        shares.allow(1, held: heldCount, earned: earnedCount, free: capacity - leasedCount)
    }

    /// A slot holding `request`, or nil when none is free now. `heldCount` is what the asker
    /// holds already, `earnedCount` what it has given back since it came; `PoolShares` says what
    /// that entitles it to.
    package func lease(
        _ request: BlockRequest, heldCount: Int, earnedCount: Int = .max
    ) -> RequestIndex? {
        guard hasRoom(heldCount: heldCount, earnedCount: earnedCount) else { return nil }
        let index = freeList[capacity - leasedCount - 1]
        leasedCount += 1
        isLeased[Int(index)] = true
        (slots + Int(index)).initialize(to: request)
        return RequestIndex(index)
    }

    /// Gives a slot back.
    package func release(_ index: RequestIndex) {
        precondition(isLeased[Int(index.rawValue)], "a request slot is given back twice")
        isLeased[Int(index.rawValue)] = false
        leasedCount -= 1
        releaseCount &+= 1
        freeList[capacity - leasedCount - 1] = index.rawValue
    }

    /// The request in a leased slot.
    package subscript(index: RequestIndex) -> BlockRequest {
        unsafeAddress { UnsafePointer(slots + Int(index.rawValue)) }
        unsafeMutableAddress { slots + Int(index.rawValue) }
    }

    /// Address of a leased slot, stable until it is released.
    package func pointer(to index: RequestIndex) -> UnsafeMutablePointer<BlockRequest> {
        slots + Int(index.rawValue)
    }

    /// Sets the outcome and tells the owner.
    package func finish(_ index: RequestIndex, _ fault: Fault?) {
        let slot = slots + Int(index.rawValue)
        slot.pointee.fault = fault
        slot.pointee.owner._withUnsafeGuaranteedRef { $0.requestFinished(index) }
    }
}
