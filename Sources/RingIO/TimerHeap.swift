/// Timers of a loop: a binary heap by deadline over a pool of entries, so that setting and
/// cancelling cost O(log n) and allocate only when more timers run than ever before.
///
/// Invariants
/// - `heap[positions[id]] == id` for every running timer.
/// - No timer's deadline is before its parent's.
package struct TimerHeap {
    private struct Entry {
        var deadline: UInt64
        var slot: HandlerSlot
        var token: UInt32
        /// Place in `heap`, or -1 while free.
        var position: Int
        /// Tells a timer from an earlier one in the same entry.
        var round: UInt32
    }

    private var entries: [Entry] = []
    private var freeEntries: [Int] = []
    private var heap: [Int] = []

    package init() {}

    /// Deadline of the timer that fires next.
    package var nextDeadline: UInt64? { heap.first.map { entries[$0].deadline } }

    /// Starts a timer.
    package mutating func add(deadline: UInt64, slot: HandlerSlot, token: UInt32) -> TimerID {
        let index: Int
        if let free = freeEntries.popLast() {
            index = free
        } else {
            index = entries.count
            entries.append(Entry(deadline: 0, slot: .none, token: 0, position: -1, round: 0))
        }
        entries[index].deadline = deadline
        entries[index].slot = slot
        entries[index].token = token
        entries[index].position = heap.count
        heap.append(index)
        siftUp(heap.count - 1)
        return TimerID(entry: UInt32(index), round: entries[index].round)
    }

    /// Does nothing when the timer has fired or was cancelled.
    package mutating func cancel(_ timer: TimerID) {
        let index = Int(timer.entry)
        guard entries[index].round == timer.round, entries[index].position >= 0 else { return }
        remove(at: entries[index].position)
    }

    /// Takes out a timer whose deadline is at or before `now`.
    package mutating func popExpired(now: UInt64) -> (slot: HandlerSlot, token: UInt32)? {
        guard let first = heap.first, entries[first].deadline <= now else { return nil }
        let result = (entries[first].slot, entries[first].token)
        remove(at: 0)
        return result
    }

    private mutating func remove(at position: Int) {
        let index = heap[position]
        let last = heap.count - 1
        if position != last {
            heap.swapAt(position, last)
            entries[heap[position]].position = position
        }
        heap.removeLast()
        if position < heap.count {
            siftDown(position)
            siftUp(position)
        }
        entries[index].position = -1
        entries[index].round &+= 1
        freeEntries.append(index)
    }

    private mutating func siftUp(_ start: Int) {
        var child = start
        while child > 0 {
            let parent = (child - 1) / 2
            guard entries[heap[child]].deadline < entries[heap[parent]].deadline else { return }
            swap(child, parent)
            child = parent
        }
    }

    private mutating func siftDown(_ start: Int) {
        var parent = start
        while true {
            var smallest = parent
            for child in (2 * parent + 1)...(2 * parent + 2) where child < heap.count {
                if entries[heap[child]].deadline < entries[heap[smallest]].deadline {
                    smallest = child
                }
            }
            guard smallest != parent else { return }
            swap(parent, smallest)
            parent = smallest
        }
    }

    private mutating func swap(_ left: Int, _ right: Int) {
        heap.swapAt(left, right)
        entries[heap[left]].position = left
        entries[heap[right]].position = right
    }
}

/// Names a running timer of a loop.
package struct TimerID: Equatable, Sendable {
    let entry: UInt32
    let round: UInt32
}
