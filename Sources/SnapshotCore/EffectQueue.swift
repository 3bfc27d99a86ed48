/// Effects in order. Grows by doubling to what its engine's pools can ask for, then never again.
struct EffectQueue {
    private var storage: UnsafeMutablePointer<Effect>
    private var capacity: Int
    private var head = 0
    private(set) var count = 0

    init(capacity: Int) {
        precondition(capacity & (capacity - 1) == 0, "a ring's capacity is a power of two")
        self.capacity = capacity
        storage = .allocate(capacity: capacity)
    }

    mutating func append(_ effect: Effect) {
        if count == capacity { grow() }
        (storage + (head &+ count) & (capacity &- 1)).initialize(to: effect)
        count &+= 1
    }

    mutating func next() -> Effect? {
        guard count > 0 else { return nil }
        let effect = storage[head]
        head = (head &+ 1) & (capacity &- 1)
        count &-= 1
        return effect
    }

    private mutating func grow() {
        let larger = UnsafeMutablePointer<Effect>.allocate(capacity: capacity * 2)
        for index in 0..<count {
            (larger + index).initialize(to: storage[(head + index) & (capacity - 1)])
        }
        storage.deallocate()
        storage = larger
        capacity *= 2
        head = 0
    }

    func deallocate() { storage.deallocate() }
}
