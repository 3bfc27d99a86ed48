internal import CLinux
internal import CRing
internal import Glibc

/// Buffers that the kernel fills on its own choice: an idle connection waits for data without
/// owning one.
///
/// Invariants
/// - A buffer is in the ring (the kernel may fill it) or with the handler whose completion named
///   it, until that gives it back with `release`.
package final class ReceiveBuffers {
    static let group: UInt16 = 0

    /// Bytes of one buffer.
    package let bufferBytes: Int
    /// Counts what was given back, so that the loop sees when room was made.
    private(set) var releaseCount: UInt64 = 0

    private let count: Int
    private let entries: UnsafeMutablePointer<io_uring_buf_ring>
    private let entriesByteCount: Int
    private let memory: UnsafeMutableRawPointer

    /// `count` is a power of two.
    init(ring: UnsafeMutablePointer<io_uring>, bufferBytes: Int, count: Int) throws(RingError) {
        precondition(count > 0 && count & (count - 1) == 0, "a buffer ring has 2^n entries")
        self.bufferBytes = bufferBytes
        self.count = count
        let pageBytes = 4096
        entriesByteCount =
            (count * MemoryLayout<io_uring_buf>.stride + pageBytes - 1) / pageBytes * pageBytes
        let flags = MAP_PRIVATE | MAP_ANONYMOUS
        guard
            let entriesMapping = mmap(
                nil, entriesByteCount, PROT_READ | PROT_WRITE, flags, -1, 0),
            entriesMapping != MAP_FAILED,
            let mapping = mmap(
                nil, bufferBytes * count, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, -1, 0),
            mapping != MAP_FAILED
        else { throw RingError(operation: .mapBuffers, errnoValue: errno) }
        memory = mapping
        // SAFETY: the kernel takes the mapping for a ring of `count` entries, for which it has
        // room.
        entries = entriesMapping.bindMemory(to: io_uring_buf_ring.self, capacity: 1)
        let result = cl_register_buffer_ring(ring, entries, UInt32(count), Self.group)
        guard result == 0 else {
            throw RingError(operation: .registerBuffers, errnoValue: -result)
        }
        cl_buffer_ring_init(entries)
        for id in 0..<count { offer(UInt16(id)) }
    }

    func deallocate() {
        munmap(memory, bufferBytes * count)
        munmap(entries, entriesByteCount)
    }

    /// The buffer named by a completion's flags, or nil when none was used.
    package static func buffer(in flags: UInt32) -> UInt16? {
        guard flags & UInt32(cl_cqe_f_buffer) != 0 else { return nil }
        return UInt16(truncatingIfNeeded: flags >> UInt32(cl_cqe_buffer_shift))
    }

    /// First byte of a buffer.
    package func address(of id: UInt16) -> UnsafeMutableRawPointer {
        memory + Int(id) * bufferBytes
    }

    /// Gives a buffer back to the kernel.
    package func release(_ id: UInt16) {
        releaseCount &+= 1
        offer(id)
    }

    private func offer(_ id: UInt16) {
        precondition(Int(id) < count, "a receive buffer that does not exist")
        cl_buffer_ring_add(entries, address(of: id), UInt32(bufferBytes), id, UInt32(count))
    }
}
