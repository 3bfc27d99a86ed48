public import BlockModel
internal import Glibc

/// The records of a loop's request slots, by index, and the lists through them.
///
/// Invariants
/// - A request is on at most one list that uses `next` and `previous`.
@usableFromInline package struct RequestTable {
    @usableFromInline let records: UnsafeMutablePointer<RequestRecord>

    /// Records for all slots of the loop, of which a device uses few: zero bytes are an idle
    /// record, so memory is resident only where a slot was used.
    package init(capacity: Int) {
        precondition(RequestRecord.Phase.idle.rawValue == 0, "zero bytes are an idle record")
        guard let memory = calloc(capacity, MemoryLayout<RequestRecord>.stride) else {
            preconditionFailure("no address space for the records of requests")
        }
        // SAFETY: `capacity` records lie in the memory; that zero bytes are one was checked.
        records = memory.bindMemory(to: RequestRecord.self, capacity: capacity)
    }

    /// Frees the memory; the table must not be used afterwards.
    package func deallocate() { free(records) }

    /// The record of a slot.
    @inlinable package subscript(index: RequestIndex) -> RequestRecord {
        unsafeAddress { UnsafePointer(records + Int(index.rawValue)) }
        nonmutating unsafeMutableAddress { records + Int(index.rawValue) }
    }

    /// Address of a slot's record, stable as long as the table.
    @inlinable package func pointer(to index: RequestIndex) -> UnsafeMutablePointer<RequestRecord> {
        records + Int(index.rawValue)
    }

    // MARK: Lists

    /// Adds a request at the end.
    @inlinable package func append(_ index: RequestIndex, to list: inout RequestList) {
        self[index].next = .none
        self[index].previous = list.tail
        if list.tail == .none {
            list.head = index
        } else {
            self[list.tail].next = index
        }
        list.tail = index
    }

    /// Adds a request at the front.
    @inlinable package func prepend(_ index: RequestIndex, to list: inout RequestList) {
        self[index].previous = .none
        self[index].next = list.head
        if list.head == .none {
            list.tail = index
        } else {
            self[list.head].previous = index
        }
        list.head = index
    }

    /// Takes a request out of the list that it is on.
    @inlinable package func remove(_ index: RequestIndex, from list: inout RequestList) {
        let (next, previous) = (self[index].next, self[index].previous)
        if previous == .none {
            list.head = next
        } else {
            self[previous].next = next
        }
        if next == .none {
            list.tail = previous
        } else {
            self[next].previous = previous
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

    /// Adds a request at the end of a list by arrival.
    @inlinable package func appendByArrival(_ index: RequestIndex, to list: inout RequestList) {
        self[index].delayNext = .none
        self[index].delayPrevious = list.tail
        if list.tail == .none {
            list.head = index
        } else {
            self[list.tail].delayNext = index
        }
        list.tail = index
    }

    /// Takes a request out of the list by arrival that it is on.
    @inlinable package func removeByArrival(_ index: RequestIndex, from list: inout RequestList) {
        let (next, previous) = (self[index].delayNext, self[index].delayPrevious)
        if previous == .none {
            list.head = next
        } else {
            self[previous].delayNext = next
        }
        if next == .none {
            list.tail = previous
        } else {
            self[next].delayPrevious = previous
        }
    }
}
