// Who gets what of a pool that many share, some of whom never give back.
//
//   0                    capacity/2 or /3          -1/24        -1/8                 capacity
//   | kept for guarantees                | trusted | proven     | all                |
//
// A pool is lent from the right: as long as it is full enough to be right of a mark, those named
// there may borrow beyond their guarantee. What lies left of the marks is not lent to a borrower
// that holds more than the guarantee.
//
// Invariants
// - A user whose holding stays within `guarantee` is never refused, while there are at most
//   `userCountMax` users.
// - Users that take and never give back leave the part right of the guarantees to those who have
//   given back `provenFactor` times what they ask for.
// - When nothing is lent, everything may be.

/// The shares of a pool; decides, and keeps no account.
package struct PoolShares: Sendable {
    /// Units in the pool.
    package let capacity: Int
    /// What a user may hold at any time.
    package let guarantee: Int
    /// What only those who stay within their guarantee, or were proven, may take from.
    private let reserve: Int
    private let provenFloor: Int
    private let commonFloor: Int

    /// How many times what it borrows a user must have given back before it is proven: more than
    /// the sockets of a client that reads nothing take in before they are full.
    package static let provenFactor = 64
    /// Most users for whom the guarantee holds: an NBD server's connections.
    package static let userCountMax = 1000

    /// One `reserveDivisor`-th of the capacity is kept for the guarantees; each is a multiple of
    /// `unit`.
    package init(capacity: Int, reserveDivisor: Int, unit: Int = 1) {
        self.capacity = capacity
        reserve = capacity / reserveDivisor
        guarantee = reserve / Self.userCountMax / unit * unit
        provenFloor = capacity / 24
        commonFloor = capacity / 8
    }

    /// Whether a user that holds `held` may take `amount` more of what is `free`, having given back
    /// `earned` since it came (`Int.max`: it is trusted to give back).
    package func allow(_ amount: Int, held: Int, earned: Int, free: Int) -> Bool {
        guard amount <= free else { return false }
        if held + amount <= guarantee || free == capacity { return true }
        let left = free - amount - reserve
        // Beside its first loan a user gets another only while it holds no more than what stays
        // (dynamic thresholds, Choudhury and Hahne 1998).
        guard left >= 0, held <= guarantee || held <= left else { return false }
        if left >= commonFloor || earned == .max { return true }
        return left >= provenFloor && held + amount - guarantee <= earned / Self.provenFactor
    }
}
