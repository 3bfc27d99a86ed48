public import BlockModel

/// Which kind of record a request slot uses.
@usableFromInline package enum RequestKind: UInt8, BitwiseCopyable {
    /// A write, zeroing or discard of the device: `WriteRequest`.
    case write
    /// A read, write or zeroing of an image: `ImageRequest`.
    case image
}

/// The places of a request in its lists.
@usableFromInline package struct RequestLinks: BitwiseCopyable {
    @usableFromInline var next = RequestIndex.none
    @usableFromInline var previous = RequestIndex.none
    @usableFromInline var nextByArrival = RequestIndex.none
    @usableFromInline var previousByArrival = RequestIndex.none
    @usableFromInline var kind = RequestKind.write

    @inlinable init() {}
}

/// A list through the request slots.
@usableFromInline package struct RequestList: BitwiseCopyable {
    /// The first request, `none` in an empty list.
    @usableFromInline package internal(set) var head = RequestIndex.none
    @usableFromInline package internal(set) var tail = RequestIndex.none

    @inlinable package init() {}

    /// It has no request.
    @inlinable package var isEmpty: Bool { head == .none }
}

/// The lists of a loop's request slots.
///
/// Invariants
/// - A request is on at most one list, and on at most one list by arrival.
@usableFromInline package struct RequestLists {
    @usableFromInline let links: RequestRecords<RequestLinks>

    /// Lists of up to `capacity` slots.
    package init(capacity: Int) { links = RequestRecords(capacity: capacity) }

    /// Frees the memory; the lists must not be used afterwards.
    package func deallocate() { links.deallocate() }

    /// The kind of record that the slot uses, as it was set last.
    @inlinable package func kind(of index: RequestIndex) -> RequestKind { links[index].kind }

    /// Sets the kind of record that the slot uses.
    @inlinable package func setKind(_ kind: RequestKind, of index: RequestIndex) {
        links[index].kind = kind
    }

    /// The request behind `index` in its list, `none` at the end.
    @inlinable package func next(after index: RequestIndex) -> RequestIndex { links[index].next }

    /// Adds a request at the end.
    @inlinable package func append(_ index: RequestIndex, to list: inout RequestList) {
        links[index].next = .none
        links[index].previous = list.tail
        if list.tail == .none {
            list.head = index
        } else {
            links[list.tail].next = index
        }
        list.tail = index
    }

    /// Adds a request at the front.
    @inlinable package func prepend(_ index: RequestIndex, to list: inout RequestList) {
        links[index].previous = .none
        links[index].next = list.head
        if list.head == .none {
            list.tail = index
        } else {
            links[list.head].previous = index
        }
        list.head = index
    }

    /// Takes a request out of the list that it is on.
    @inlinable package func remove(_ index: RequestIndex, from list: inout RequestList) {
        let (next, previous) = (links[index].next, links[index].previous)
        if previous == .none {
            list.head = next
        } else {
            links[previous].next = next
        }
        if next == .none {
            list.tail = previous
        } else {
            links[next].previous = previous
        }
    }

    /// Takes the first request out.
    @inlinable package func pop(_ list: inout RequestList) -> RequestIndex? {
        let index = list.head
        guard index != .none else { return nil }
        remove(index, from: &list)
        return index
    }

    // MARK: Lists by arrival

    // A request that waits on a list may be on a second one, of those whose time runs or of the
    // writers of an image, which has links of its own.

    /// The request behind `index` in its list by arrival, `none` at the end.
    @inlinable package func nextByArrival(after index: RequestIndex) -> RequestIndex {
        links[index].nextByArrival
    }

    /// Adds a request at the end of a list by arrival.
    @inlinable package func appendByArrival(_ index: RequestIndex, to list: inout RequestList) {
        links[index].nextByArrival = .none
        links[index].previousByArrival = list.tail
        if list.tail == .none {
            list.head = index
        } else {
            links[list.tail].nextByArrival = index
        }
        list.tail = index
    }

    /// Takes a request out of the list by arrival that it is on.
    @inlinable package func removeByArrival(_ index: RequestIndex, from list: inout RequestList) {
        let (next, previous) = (links[index].nextByArrival, links[index].previousByArrival)
        if previous == .none {
            list.head = next
        } else {
            links[previous].nextByArrival = next
        }
        if next == .none {
            list.tail = previous
        } else {
            links[next].previousByArrival = previous
        }
    }
}
