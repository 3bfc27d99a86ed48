/// What to do when preserved data finds no room in time.
@usableFromInline package struct OverflowPolicy: Equatable, Sendable {
    /// When it overflows.
    @usableFromInline package enum Kind: UInt8, Sendable {
        /// Corrupted at once when storage is full or failing, after the limit when it is slow.
        case `break`
        /// Writers wait up to the limit in every case.
        case throttle
    }

    package let kind: Kind
    /// Longest time a writer waits for a copy or for memory.
    package let limitNanoseconds: UInt64

    package init(kind: Kind, limitNanoseconds: UInt64) {
        self.kind = kind
        self.limitNanoseconds = limitNanoseconds
    }

    /// The default: `break`, slow for at most 2 s.
    package static let standard = OverflowPolicy(kind: .break, limitNanoseconds: 2_000_000_000)
}
