package import BlockModel
package import RingIO

// Keeps partial-sector writes apart. A write whose ends are not aligned reads sectors, changes
// part of them and writes them back: no other write may touch these sectors meanwhile. Aligned
// writes only exclude such writes, not each other: clients order their own overlaps.
//
// Invariants
// - A write is in `holders` from admission until `finished`; exclusive ones are counted.
// - Waiters are admitted in order of arrival; nobody overtakes a waiter it conflicts with.
// - Each exclusive holder has a scratch slot; when all slots are taken, the next one waits.
// - Both lists run through the `next`/`previous` links of the request slots.

/// The ranges of an origin's writes that hold, or wait for, each other off.
package struct RangeLocks {
    private struct List {
        var first = RequestIndex.none
        var last = RequestIndex.none
    }

    private let requests: RequestPool
    private var holders = List()
    private var waiters = List()
    private var exclusiveCount = 0
    private var freeSlots: [UInt32]

    // `BlockRequest.attachment` of a request in one of the lists: shared, exclusive and waiting,
    // or the scratch slot of an exclusive holder.
    private static let shared = UInt32.max
    private static let exclusiveWaiting = UInt32.max - 1

    /// Nobody holds anything. `requests`: of the loop.
    package init(requests: RequestPool) {
        self.requests = requests
        freeSlots = (0..<UInt32(SectorScratch.slotCount)).reversed()
    }

    /// The scratch slot of an exclusive holder.
    package func scratchSlot(of index: RequestIndex) -> Int {
        let slot = requests[index].attachment
        precondition(slot < SectorScratch.slotCount, "only exclusive holders have scratch")
        return Int(slot)
    }

    private var noneWaits: Bool { waiters.first == .none }

    /// Admits a write (true), or queues it until `nextAdmitted` returns it.
    package mutating func arrived(_ index: RequestIndex, isExclusive: Bool) -> Bool {
        requests[index].attachment = isExclusive ? Self.exclusiveWaiting : Self.shared
        if exclusiveCount == 0, !isExclusive, noneWaits {
            append(index, to: \.holders)
            return true
        }
        guard mayHold(index), !conflicts(index, with: holders, before: .none),
            !conflicts(index, with: waiters, before: .none)
        else {
            append(index, to: \.waiters)
            return false
        }
        admit(index)
        return true
    }

    /// A write is done: its range is free.
    package mutating func finished(_ index: RequestIndex) {
        unlink(index, from: \.holders)
        let slot = requests[index].attachment
        guard slot != Self.shared else { return }
        exclusiveCount -= 1
        freeSlots.append(slot)
    }

    /// Takes out the first waiter that may go now.
    package mutating func nextAdmitted() -> RequestIndex? {
        var candidate = waiters.first
        while candidate != .none {
            let following = requests[candidate].next
            if mayHold(candidate), !conflicts(candidate, with: holders, before: .none),
                !conflicts(candidate, with: waiters, before: candidate)
            {
                unlink(candidate, from: \.waiters)
                admit(candidate)
                return candidate
            }
            candidate = following
        }
        return nil
    }

    private mutating func admit(_ index: RequestIndex) {
        append(index, to: \.holders)
        guard requests[index].attachment != Self.shared else { return }
        guard let slot = freeSlots.popLast() else {
            preconditionFailure("an exclusive range lock is granted without scratch")
        }
        requests[index].attachment = slot
        exclusiveCount += 1
    }

    private func mayHold(_ index: RequestIndex) -> Bool {
        requests[index].attachment == Self.shared || !freeSlots.isEmpty
    }

    private func conflicts(
        _ index: RequestIndex, with list: List, before end: RequestIndex
    ) -> Bool {
        let isExclusive = requests[index].attachment != Self.shared
        let range = requests[index].part.roundedOutward(to: blockByteCount)
        var other = list.first
        while other != end {
            let record = requests.pointer(to: other)
            if isExclusive || record.pointee.attachment != Self.shared,
                range.overlaps(record.pointee.part.roundedOutward(to: blockByteCount))
            {
                return true
            }
            other = record.pointee.next
        }
        return false
    }

    private mutating func append(_ index: RequestIndex, to path: WritableKeyPath<Self, List>) {
        let last = self[keyPath: path].last
        requests[index].previous = last
        requests[index].next = .none
        if last == .none {
            self[keyPath: path].first = index
        } else {
            requests[last].next = index
        }
        self[keyPath: path].last = index
    }

    private mutating func unlink(_ index: RequestIndex, from path: WritableKeyPath<Self, List>) {
        let (next, previous) = (requests[index].next, requests[index].previous)
        if previous == .none {
            self[keyPath: path].first = next
        } else {
            requests[previous].next = next
        }
        if next == .none {
            self[keyPath: path].last = previous
        } else {
            requests[next].previous = previous
        }
    }
}
