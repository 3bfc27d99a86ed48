internal import CLinux
internal import Glibc

// The payload memory of a loop: one mapping, handed out as power-of-two runs of 4 KiB pages by a
// buddy system. Pages are touched on first use only.
//
// Invariants
// - A run of order n covers 2^n pages and starts at a multiple of 2^n.
// - The states of all pages add up: free bytes + bytes handed out = capacity.
// - `hot` holds single pages that count as free but are not merged with their buddies; they are
//   merged before a request is refused.

/// A leased run of payload memory: whole pages, aligned to 4 KiB at least.
package struct BufferLease: Equatable {
    /// First page of the run.
    package let page: UInt32
    /// The run covers 2^order pages.
    package let order: UInt8

    /// The run that was named by these numbers before.
    package init(page: UInt32, order: UInt8) {
        self.page = page
        self.order = order
    }

    /// Bytes in the run.
    package var byteCount: Int { BufferPool.pageByteCount << Int(order) }
}

/// The bounded pool of payload buffers of one loop.
package final class BufferPool {
    static let pageByteCount = 4096
    private static let orderMax = 14
    private static let hotCountMax = 256
    private static let residentRunByteCount = 256 << 10
    /// Runs that are made resident in a call: each takes the kernel some 100 us.
    private static let residentRunsPerCall = 2
    private static let returnedSliceByteCount = 2 << 20
    private static let none = UInt32.max
    /// State of a page that is not the first of a free run.
    private static let notFree: UInt8 = 0xFF

    /// Bytes the pool may hand out.
    package let capacityBytes: Int
    /// Bytes not handed out.
    package private(set) var freeBytes: Int

    /// Counts what was given back, so that the loop sees when room was made.
    private(set) var releaseCount: UInt64 = 0

    /// What each asker may have.
    package let shares: PoolShares

    private let memory: UnsafeMutableRawPointer
    private let pageCount: Int
    /// Per page: order of the free run it heads, or `notFree`.
    private let freeOrder: UnsafeMutablePointer<UInt8>
    private let nextFree: UnsafeMutablePointer<UInt32>
    private let previousFree: UnsafeMutablePointer<UInt32>
    private let heads: UnsafeMutablePointer<UInt32>
    private let hot: UnsafeMutablePointer<UInt32>
    private var hotCount = 0
    /// Runs of this size and more go back to the kernel: one burst of 32 MiB requests must not stay
    /// resident forever.
    private static let returnedByteCountMin = 8 << 20
    /// Those that are on their way back, and pages of the first one that are back. They go in slices,
    /// one a turn: for 32 MiB the kernel takes some 2 ms.
    private var returning: [BufferLease] = []
    private var returnedPageCount: UInt32 = 0
    /// Per 256 KiB: made resident since they were given back to the kernel.
    private let isResident: UnsafeMutablePointer<Bool>

    /// `capacityBytes` is rounded down to a multiple of the largest run (64 MiB, at least
    /// one); fails with ENOMEM when no address space is left.
    package init(capacityBytes requested: Int) throws(RingError) {
        let largest = Self.pageByteCount << Self.orderMax
        capacityBytes = max(requested / largest, 1) * largest
        freeBytes = capacityBytes
        shares = PoolShares(
            capacity: capacityBytes, reserveDivisor: 3, unit: Self.pageByteCount)
        pageCount = capacityBytes / Self.pageByteCount
        let mapping = mmap(
            nil, capacityBytes, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let mapping, mapping != MAP_FAILED else {
            throw RingError(operation: .mapBuffers, errnoValue: errno)
        }
        memory = mapping
        freeOrder = .allocate(capacity: pageCount)
        freeOrder.initialize(repeating: Self.notFree, count: pageCount)
        nextFree = .allocate(capacity: pageCount)
        previousFree = .allocate(capacity: pageCount)
        heads = .allocate(capacity: Self.orderMax + 1)
        heads.initialize(repeating: Self.none, count: Self.orderMax + 1)
        hot = .allocate(capacity: Self.hotCountMax)
        isResident = .allocate(capacity: capacityBytes / Self.residentRunByteCount)
        isResident.initialize(
            repeating: false, count: capacityBytes / Self.residentRunByteCount)
        returning.reserveCapacity(capacityBytes / Self.returnedByteCountMin)
        for page in stride(from: 0, to: pageCount, by: 1 << Self.orderMax).reversed() {
            link(UInt32(page), order: Self.orderMax)
        }
    }

    deinit {
        munmap(memory, capacityBytes)
        freeOrder.deallocate()
        nextFree.deallocate()
        previousFree.deallocate()
        heads.deallocate()
        hot.deallocate()
        isResident.deallocate()
    }

    /// The run's first byte.
    package func address(of lease: BufferLease) -> UnsafeMutableRawPointer {
        memory + Int(lease.page) * Self.pageByteCount
    }

    /// A run of at least `byteCount` bytes, or nil when none is free now.
    ///
    /// `heldBytes` is what the asker holds already, `earnedBytes` what it has given back since it
    /// came; `PoolShares` says what that entitles it to.
    package func lease(
        byteCount: Int, heldBytes: Int, earnedBytes: Int = .max
    ) -> BufferLease? {
        let order = Self.order(for: byteCount)
        precondition(order <= Self.orderMax, "a buffer larger than the pool's largest run")
        let runBytes = Self.pageByteCount << order
        guard
            shares.allow(runBytes, held: heldBytes, earned: earnedBytes, free: freeBytes)
        else { return nil }
        if order == 0, hotCount > 0 {
            hotCount -= 1
            freeBytes -= runBytes
            return BufferLease(page: hot[hotCount], order: 0)
        }
        var page = takeRun(order: order)
        if page == Self.none, hotCount > 0 {
            mergeHotPages()
            page = takeRun(order: order)
        }
        guard page != Self.none else { return nil }
        freeBytes -= runBytes
        return BufferLease(page: page, order: UInt8(order))
    }

    /// Makes the first `byteCount` bytes of a run resident, so that nothing which the kernel copies to
    /// them has to wait for a page: a copy that is killed while it waits fails. Does some of it in a
    /// call; true when nothing is left to do.
    package func makeResident(_ lease: BufferLease, byteCount: Int) -> Bool {
        precondition(byteCount <= lease.byteCount, "bytes of the run")
        var left = Self.residentRunsPerCall
        for run in residentRuns(of: lease, byteCount: byteCount) where !isResident[run] {
            if left == 0 { return false }
            left -= 1
            isResident[run] = true
            let start = memory + run * Self.residentRunByteCount
            if cl_populate(start, Self.residentRunByteCount) == 0 { continue }
            for page in stride(from: 0, to: Self.residentRunByteCount, by: Self.pageByteCount) {
                start.storeBytes(of: 0, toByteOffset: page, as: UInt8.self)
            }
        }
        return true
    }

    private func residentRuns(of lease: BufferLease, byteCount: Int) -> Range<Int> {
        precondition(lease.byteCount >= Self.residentRunByteCount, "a run of whole 256 KiB")
        let first = Int(lease.page) * Self.pageByteCount / Self.residentRunByteCount
        return first..<first + (byteCount - 1) / Self.residentRunByteCount + 1
    }

    /// Gives a run back. One of 8 MiB and more is free once `returnSlice` has given all of it to the
    /// kernel.
    package func release(_ lease: BufferLease) {
        if lease.byteCount >= Self.returnedByteCountMin { return returning.append(lease) }
        releaseCount &+= 1
        freeBytes += lease.byteCount
        precondition(freeBytes <= capacityBytes, "a buffer is given back twice")
        precondition(freeOrder[Int(lease.page)] == Self.notFree, "a buffer is given back twice")
        if lease.order == 0, hotCount < Self.hotCountMax {
            hot[hotCount] = lease.page
            hotCount += 1
            return
        }
        merge(lease.page, order: Int(lease.order))
    }

    /// Large runs are on their way back to the kernel: `returnSlice` has work.
    package var isReturning: Bool { !returning.isEmpty }

    /// Gives 2 MiB of a large run back to the kernel and frees them.
    package func returnSlice() {
        guard let lease = returning.first else { return }
        let slice = BufferLease(
            page: lease.page + returnedPageCount,
            order: UInt8(Self.order(for: Self.returnedSliceByteCount)))
        for run in residentRuns(of: slice, byteCount: slice.byteCount) { isResident[run] = false }
        if madvise(address(of: slice), slice.byteCount, MADV_FREE) != 0 {
            // Memory is locked (`lockMemory`): pages that are only marked would stay.
            _ = cl_drop_pages(address(of: slice), slice.byteCount)
        }
        returnedPageCount += 1 << UInt32(slice.order)
        if returnedPageCount == 1 << UInt32(lease.order) {
            returning.removeFirst()
            returnedPageCount = 0
        }
        release(slice)
    }

    private static func order(for byteCount: Int) -> Int {
        let pages = max((byteCount + pageByteCount - 1) / pageByteCount, 1)
        return Int.bitWidth - (pages - 1).leadingZeroBitCount
    }

    private func takeRun(order: Int) -> UInt32 {
        var found = order
        while found <= Self.orderMax, heads[found] == Self.none { found += 1 }
        guard found <= Self.orderMax else { return Self.none }
        let page = heads[found]
        unlink(page, order: found)
        while found > order {
            found -= 1
            link(page + UInt32(1 << found), order: found)
        }
        return page
    }

    private func merge(_ start: UInt32, order startOrder: Int) {
        var page = start
        var order = startOrder
        while order < Self.orderMax {
            let buddy = page ^ UInt32(1 << order)
            guard Int(buddy) < pageCount, freeOrder[Int(buddy)] == UInt8(order) else { break }
            unlink(buddy, order: order)
            page = min(page, buddy)
            order += 1
        }
        link(page, order: order)
    }

    private func mergeHotPages() {
        for index in 0..<hotCount { merge(hot[index], order: 0) }
        hotCount = 0
    }

    private func link(_ page: UInt32, order: Int) {
        let head = heads[order]
        nextFree[Int(page)] = head
        previousFree[Int(page)] = Self.none
        if head != Self.none { previousFree[Int(head)] = page }
        heads[order] = page
        freeOrder[Int(page)] = UInt8(order)
    }

    private func unlink(_ page: UInt32, order: Int) {
        let next = nextFree[Int(page)]
        let previous = previousFree[Int(page)]
        if next != Self.none { previousFree[Int(next)] = previous }
        if previous == Self.none {
            heads[order] = next
        } else {
            nextFree[Int(previous)] = next
        }
        freeOrder[Int(page)] = Self.notFree
    }
}
