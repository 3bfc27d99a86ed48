// Fixed-size elements named by index in slabs that never move: growth allocates one slab, and
// now and then a longer directory of pointers, never copies elements.
//
// What other rooms reach for each request is inlinable: else each call copies the pool's owner.

/// A growing pool of trivial elements. Freed explicitly; not thread safe.
@usableFromInline package struct SlabPool<Element: BitwiseCopyable> {
    @usableFromInline
    private(set) var directory: UnsafeMutablePointer<UnsafeMutablePointer<Element>>
    private var directoryCapacity: Int
    private var slabCount = 0
    @usableFromInline let shift: Int
    /// Elements handed out so far, freed ones included.
    @usableFromInline package private(set) var count: UInt32 = 0

    /// The index of no element, for links between elements and to the first of them.
    @inlinable package static var none: UInt32 { .max }

    /// `slabShift`: a slab holds 1 << slabShift elements.
    package init(slabShift: Int) {
        shift = slabShift
        directoryCapacity = 8
        directory = .allocate(capacity: 8)
    }

    /// Appends `element` and returns its index.
    package mutating func append(_ element: Element) -> UInt32 {
        precondition(count < UInt32.max >> 1, "a pool holds less than 2^31 elements")
        if Int(count) == slabCount << shift { grow() }
        let index = count
        count += 1
        pointer(to: index).initialize(to: element)
        return index
    }

    /// The element's address, valid until `deallocate` or `shrink`.
    @inlinable @inline(__always)
    package func pointer(to index: UInt32) -> UnsafeMutablePointer<Element> {
        assert(index < count, "a pool's index was handed out")
        return directory[Int(index) >> shift] + (Int(index) & (1 << shift - 1))
    }

    /// Gives up to `limit` slabs back, newest first. Returns true when none is left.
    package mutating func shrink(slabs limit: Int) -> Bool {
        var left = limit
        while slabCount > 0 && left > 0 {
            slabCount -= 1
            left -= 1
            directory[slabCount].deallocate()
        }
        count = min(count, UInt32(slabCount << shift))
        return slabCount == 0
    }

    /// Frees everything. The pool must not be used afterwards.
    package mutating func deallocate() {
        _ = shrink(slabs: slabCount)
        directory.deallocate()
        directoryCapacity = 0
    }

    private mutating func grow() {
        if slabCount == directoryCapacity {
            let longer = UnsafeMutablePointer<UnsafeMutablePointer<Element>>.allocate(
                capacity: directoryCapacity * 2)
            longer.initialize(from: directory, count: slabCount)
            directory.deallocate()
            directory = longer
            directoryCapacity *= 2
        }
        let slab = UnsafeMutablePointer<Element>.allocate(capacity: 1 << shift)
        (directory + slabCount).initialize(to: slab)
        slabCount += 1
    }
}
