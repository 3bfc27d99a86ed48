/// Effects in order. Grows by doubling to what its engine's pools can ask for, then never again.
@usableFromInline package struct EffectQueue {
    @usableFromInline var storage: UnsafeMutablePointer<Effect>
    @usableFromInline var capacity: Int
    @usableFromInline var head = 0
    /// Effects that wait.
    @usableFromInline package internal(set) var count = 0

    /// `capacity`: a power of two.
    package init(capacity: Int) {
        precondition(capacity & (capacity - 1) == 0, "a ring's capacity is a power of two")
        self.capacity = capacity
        storage = .allocate(capacity: capacity)
    }

    /// Adds an effect at the end.
    @inlinable package mutating func append(_ effect: Effect) {
        if count == capacity { grow() }
        (storage + (head &+ count) & (capacity &- 1)).initialize(to: effect)
        count &+= 1
    }

    /// Takes the first one out.
    @inlinable package mutating func next() -> Effect? {
        guard count > 0 else { return nil }
        let effect = storage[head]
        head = (head &+ 1) & (capacity &- 1)
        count &-= 1
        return effect
    }

    @usableFromInline mutating func grow() {
        let larger = UnsafeMutablePointer<Effect>.allocate(capacity: capacity * 2)
        for index in 0..<count {
            (larger + index).initialize(to: storage[(head + index) & (capacity - 1)])
        }
        storage.deallocate()
        storage = larger
        capacity *= 2
        head = 0
    }

    /// Frees the memory; the queue must not be used afterwards.
    package func deallocate() { storage.deallocate() }
}
