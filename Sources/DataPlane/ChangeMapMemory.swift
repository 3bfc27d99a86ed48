internal import ChangeTracking
internal import CLinux
internal import Glibc

/// The memory of a change map: address space for every chunk, resident only where marked.
///
/// Pages are made resident off the loop before their first use, so that marking never faults
/// and a lack of memory is an answer instead of a signal.
final class ChangeMapMemory: @unchecked Sendable {
    // The loop marks and queries; other threads only make pages resident.
    private let entries: UnsafeMutablePointer<UInt64>
    private let reservedPages: UnsafeMutablePointer<UInt64>
    private let chunkCount: UInt64
    private let byteCount: Int

    /// Room for `chunkCount` chunks; nil when there is no address space.
    init?(chunkCount: UInt64) {
        self.chunkCount = chunkCount
        byteCount = Int(ChangeMap.pageCount(chunkCount: chunkCount)) * 4096
        let mapping = mmap(
            nil, byteCount, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let mapping, mapping != UnsafeMutableRawPointer(bitPattern: -1) else { return nil }
        entries = mapping.bindMemory(to: UInt64.self, capacity: byteCount / 8)
        let wordCount = ChangeMap.reservationWordCount(chunkCount: chunkCount)
        reservedPages = .allocate(capacity: wordCount)
        reservedPages.initialize(repeating: 0, count: wordCount)
    }

    deinit {
        munmap(entries, byteCount)
        reservedPages.deallocate()
    }

    /// A fresh map over the memory.
    func newMap() -> ChangeMap {
        ChangeMap(
            entries: entries, reservedPages: reservedPages, chunkCount: chunkCount,
            current: .first, newestBase: 0)
    }

    /// Makes a page resident; false when memory is short. Blocks.
    func reserve(page: UInt64) -> Bool {
        cl_populate(UnsafeMutableRawPointer(entries) + Int(page) * 4096, 4096) == 0
    }
}
