/// Counts operations of files by age, to find those that hang. The kernel works on operations that
/// would block with a few threads for each loop. If a dead disk holds all of them, operations of other
/// files wait as well. Operations that begin about the same time are counted as one group.
///
/// Invariants
/// - An operation is in the group that was current when it began, until it ends.
/// - A group that is not current takes no more operations; it becomes current again once it is
///   empty.
package struct OperationAges {
    /// Groups; their number goes into four bits.
    package static let groupCount = 16
    /// Time between two looks, nanoseconds. An operation counts as hanging if two looks in a row find
    /// it under way.
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

    /// Looks at the operations under way, at `nextLook` or later. Returns whether the number of those
    /// that hang has changed.
    package mutating func look(now: UInt64) -> Bool {
        nextLook = now + Self.interval
        let before = hangingCount
        hangingCount = count - Int(counts[current])
        if counts[current] > 0 {
            if let free = (0..<Self.groupCount).first(where: { counts[$0] == 0 }) {
                current = free
            } else {
                // Old and new operations cannot be told apart until a group is empty.
                hangingCount = count
            }
        }
        return hangingCount != before
    }
}
