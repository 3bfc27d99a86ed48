public import BlockModel
internal import Glibc

/// A record for each request slot of a loop, of which a device uses few: the memory is zero at first,
/// and resident only where a slot was used.
@usableFromInline package struct RequestRecords<Record: BitwiseCopyable> {
    @usableFromInline let memory: UnsafeMutablePointer<Record>

    /// `capacity` records whose bytes are zero. A record is read only after it was written, except
    /// for a member that is valid with zero bytes, such as a false `isUsed`.
    package init(capacity: Int) {
        guard let memory = calloc(capacity, MemoryLayout<Record>.stride) else {
            preconditionFailure("no address space for the records of requests")
        }
        // SAFETY: calloc aligned the memory for any type and gave it room for `capacity` records,
        // which as bitwise copyable ones need no initialization.
        self.memory = memory.bindMemory(to: Record.self, capacity: capacity)
    }

    /// Frees the memory; the records must not be used afterwards.
    package func deallocate() { free(memory) }

    /// The record of a slot.
    @inlinable package subscript(index: RequestIndex) -> Record {
        unsafeAddress { UnsafePointer(memory + Int(index.rawValue)) }
        nonmutating unsafeMutableAddress { memory + Int(index.rawValue) }
    }

    /// Address of a slot's record, stable as long as the records.
    @inlinable package func pointer(to index: RequestIndex) -> UnsafeMutablePointer<Record> {
        memory + Int(index.rawValue)
    }
}
