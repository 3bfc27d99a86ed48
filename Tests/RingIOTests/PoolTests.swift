import BlockModel
import Testing

import RingIO

@Suite struct `The buffer pool` {
    @Test(arguments: [1, 2, 3])
    func `hands out runs that never overlap, and merges them when all are back`(
        seed: UInt64
    ) throws {
        let pool = try BufferPool(capacityBytes: 128 << 20)
        var random = SeededGenerator(seed: seed)
        var held: [BufferLease] = []
        var pages = Set<UInt32>()
        // Pages of large runs that go back to the kernel, in order.
        var returning: [UInt32] = []
        func returnSlice() {
            #expect(pool.isReturning == !returning.isEmpty)
            pool.returnSlice()
            for page in returning.prefix(512) { pages.remove(page) }
            returning.removeFirst(min(512, returning.count))
        }
        func release(_ lease: BufferLease) {
            let own = lease.page..<lease.page + UInt32(1 << lease.order)
            if lease.byteCount < 8 << 20 {
                own.forEach { pages.remove($0) }
            } else {
                returning += own
            }
            pool.release(lease)
        }
        for _ in 0..<20_000 {
            if held.isEmpty || Bool.random(using: &random) {
                let byteCount = 1 << Int.random(in: 0...25, using: &random)
                guard let lease = pool.lease(byteCount: byteCount, heldBytes: 0) else {
                    returnSlice()
                    continue
                }
                #expect(lease.byteCount >= byteCount)
                for page in lease.page..<lease.page + UInt32(1 << lease.order) {
                    #expect(pages.insert(page).inserted, "page \(page) is handed out twice")
                }
                held.append(lease)
            } else {
                release(held.remove(at: Int.random(in: 0..<held.count, using: &random)))
            }
            #expect(pool.freeBytes == pool.capacityBytes - pages.count * 4096)
        }
        held.forEach(release)
        while pool.isReturning { returnSlice() }
        #expect(pool.freeBytes == pool.capacityBytes)
        // All of it in one piece again.
        let largest = try #require(pool.lease(byteCount: 64 << 20, heldBytes: 0))
        pool.release(largest)
    }

    @Test func `an asker that holds much leaves room for others`() throws {
        let pool = try BufferPool(capacityBytes: 128 << 20)
        var heldBytes = 0
        while let lease = pool.lease(byteCount: 1 << 20, heldBytes: heldBytes) {
            heldBytes += lease.byteCount
        }
        #expect(heldBytes == 43 << 20)
        #expect(pool.lease(byteCount: 32 << 20, heldBytes: 0) != nil)
    }
}

@Suite struct `The request pool` {
    @Test func `gives each slot to one asker at a time`() {
        let pool = RequestPool(capacity: 4000)
        let owner = RequestOwner()
        let request = BlockRequest(operation: .read, owner: Unmanaged.passUnretained(owner))
        let leased = (0..<4000).compactMap { pool.lease(request, heldCount: $0 % 2) }
        #expect(Set(leased).count == 4000)
        #expect(pool.lease(request, heldCount: 0) == nil)
        leased.forEach(pool.release)
        #expect(pool.leasedCount == 0)
    }

    @Test func `an asker that holds as many slots as it leaves to others gets no more`() {
        let pool = RequestPool(capacity: 16)
        let owner = RequestOwner()
        let request = BlockRequest(operation: .read, owner: Unmanaged.passUnretained(owner))
        var held = 0
        while pool.lease(request, heldCount: held) != nil { held += 1 }
        #expect(held == 4)
        #expect(pool.lease(request, heldCount: 0) != nil)
    }
}

@Suite struct `Timers` {
    @Test func `fire in the order of their deadlines, and not when cancelled`() {
        var heap = TimerHeap()
        var random = SeededGenerator(seed: 7)
        let slot = HandlerSlot(rawValue: 0)
        var expected: [UInt64] = []
        for token in 0..<500 {
            let deadline = UInt64.random(in: 0..<10_000, using: &random)
            let timer = heap.add(deadline: deadline, slot: slot, token: UInt32(token))
            if token % 3 == 0 {
                heap.cancel(timer)
                heap.cancel(timer)
            } else {
                expected.append(deadline)
            }
        }
        expected.sort()
        for deadline in expected {
            #expect(heap.nextDeadline == deadline)
            if deadline > 0 { #expect(heap.popExpired(now: deadline - 1) == nil) }
            #expect(heap.popExpired(now: deadline) != nil)
        }
        #expect(heap.nextDeadline == nil)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small and repeatable.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }
}
