/// Which operations of files hang, and how many: the kernel works on those that would block it with
/// a few threads for each loop, and as many operations that hang, of one dead disk, would keep all
/// others from them. Operations are counted in groups that began about the same time.
///
/// Invariants
/// - An operation is in the group that was current when it began, until it ends.
/// - A group that is not current takes no more operations; it becomes current again once it is
///   empty.
package struct OperationAges {
    /// Groups; their number goes into four bits.
    package static let groupCount = 16
    /// Time between two looks, nanoseconds. An operation hangs that was seen by a look and has not
    /// ended at the next one but one at the latest.
    package static let interval: UInt64 = 250_000_000

    private var counts: InlineArray<16, Int32> = .init(repeating: 0)
    private var current = 0
    /// Operations that have begun and not ended.
    package private(set) var count = 0
    /// Of these, so many hang, as of the last look.
    package private(set) var hangingCount = 0
    /// When to look again, monotonic nanoseconds.
    package private(set) var nextLook: UInt64 = 0

    package init() {}

    /// An operation begins; returns its group.
    @inline(__always)
    package mutating func began() -> Int {
        count += 1
        counts[current] += 1
        return current
    }

    /// An operation of `group` has ended.
    @inline(__always)
    package mutating func ended(_ group: Int) {
        count -= 1
        counts[group] -= 1
    }

    /// Looks at the operations under way, at `nextLook` or later. True when the number of those that
    /// hang is another one now.
    package mutating func look(now: UInt64) -> Bool {
        nextLook = now + Self.interval
        let before = hangingCount
        hangingCount = count - Int(counts[current])
        if counts[current] > 0 {
            if let free = (0..<Self.groupCount).first(where: { counts[$0] == 0 }) {
                current = free
            } else {
                // What hangs is not told apart from what does not any more.
                hangingCount = count
            }
        }
        return hangingCount != before
    }
}
