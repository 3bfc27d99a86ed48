package import BlockModel
internal import CLinux
package import ChangeTracking
internal import Glibc

// The memory of a change map: address space for every chunk, resident only where marked, shared
// with the file that outlives a killed service.
//
// Invariants
// - The loop touches a page only after it was reserved: room for it allocated in the file and the
//   page made resident, off the loop. Then marking never faults, and a lack of memory is an answer
//   instead of a signal.
// - A page's bit is set before its first entry is. A page with content and no bit is stale.
// - Of the two headers the older one is overwritten, so a service killed while it writes leaves a
//   valid one. A header names an epoch before any entry does.

/// A change map's memory. Several may share one file: a device that grows has two for a moment.
package final class ChangeMapMemory: @unchecked Sendable {
    // SAFETY: the loop marks, queries and writes headers; other threads only make pages resident,
    // before the device is on its loop or in pages that the loop does not touch yet.
    /// The file whose memory it is.
    package let file: RunningMapFile
    /// Chunks that the map has entries for.
    package let chunkCount: UInt64
    private let base: UnsafeMutableRawPointer
    private let byteCount: Int
    /// Attempts at a page for which the kernel has no memory, a millisecond apart: as long as a
    /// request is tried.
    private static let attemptCountMax = 2000

    /// Maps `file` with room for `chunkCount` chunks, growing it where it is shorter. The errno
    /// value of what failed otherwise. Blocks.
    package static func map(
        _ file: RunningMapFile, chunkCount: UInt64
    ) -> Result<ChangeMapMemory, Fault> {
        let byteCount = MapLayout.byteCount(chunkCount: chunkCount)
        var facts = stat()
        guard fstat(file.descriptor, &facts) == 0 else {
            return .failure(Fault(errnoValue: errno))
        }
        if facts.st_size < byteCount, ftruncate(file.descriptor, off_t(byteCount)) != 0 {
            return .failure(Fault(errnoValue: errno))
        }
        let mapping = mmap(
            nil, byteCount, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file.descriptor, 0)
        guard let mapping, mapping != UnsafeMutableRawPointer(bitPattern: -1) else {
            return .failure(Fault(errnoValue: errno))
        }
        // A huge page would hold the entries of 16 GiB where a few are wanted. Kernels without
        // huge pages refuse, and mean the same.
        _ = madvise(mapping, byteCount, MADV_NOHUGEPAGE)
        let memory = ChangeMapMemory(
            file: file, chunkCount: chunkCount, base: mapping, byteCount: byteCount)
        let bitmapEnd =
            MapLayout.bitmapByteOffset + MapLayout.bitmapByteCount(chunkCount: chunkCount)
        if let fault = memory.makeResident(from: 0, byteCount: bitmapEnd) { return .failure(fault) }
        return .success(memory)
    }

    private init(
        file: RunningMapFile, chunkCount: UInt64, base: UnsafeMutableRawPointer, byteCount: Int
    ) {
        self.file = file
        self.chunkCount = chunkCount
        self.base = base
        self.byteCount = byteCount
    }

    deinit { munmap(base, byteCount) }

    // MARK: The map

    private var bitmap: UnsafeMutableBufferPointer<UInt64> {
        let count = ChangeMap.reservationWordCount(chunkCount: chunkCount)
        // SAFETY: the layout of the file puts the words there; the mapping is page-aligned and
        // covers them.
        return UnsafeMutableBufferPointer(
            start: (base + MapLayout.bitmapByteOffset).bindMemory(
                to: UInt64.self, capacity: count),
            count: count)
    }

    private var entries: UnsafeMutablePointer<UInt64> {
        // SAFETY: as for the words of the bitmap.
        (base + MapLayout.entriesByteOffset).bindMemory(
            to: UInt64.self, capacity: Int(chunkCount))
    }

    /// The map as it stands in the memory.
    package func changeMap(current: Epoch, newestBase: UInt32) -> ChangeMap {
        ChangeMap(
            entries: entries, reservedPages: bitmap.baseAddress.unsafelyUnwrapped,
            chunkCount: chunkCount, current: current, newestBase: newestBase)
    }

    /// Forgets all entries; their pages are emptied later. The header must be of the new
    /// generation already: a service killed here must not leave an old one without entries.
    func forgetAll() {
        file.becomeStale(UnsafeBufferPointer(bitmap))
        bitmap.update(repeating: 0)
    }

    /// Entries of one page, fewer in the last one.
    func pageEntries(_ page: UInt64) -> UnsafeMutableBufferPointer<UInt64> {
        let first = page * ChangeMap.entriesPerPage
        let count = min(ChangeMap.entriesPerPage, chunkCount - first)
        return UnsafeMutableBufferPointer(start: entries + Int(first), count: Int(count))
    }

    // MARK: Reserving

    /// Makes a page resident; false with errno when there is no room. Blocks.
    package func reserve(page: UInt64) -> Bool {
        guard file.emptyIfStale(page: page) else { return false }
        let fault = makeResident(
            from: MapLayout.entriesByteOffset + Int(page) * MapLayout.pageByteCount,
            byteCount: MapLayout.pageByteCount)
        guard let fault else { return true }
        errno = fault.errnoValue
        return false
    }

    private func makeResident(from offset: Int, byteCount: Int) -> Fault? {
        while cl_allocate(file.descriptor, UInt64(offset), UInt64(byteCount)) != 0 {
            let failure = errno
            if failure == EINTR { continue }
            guard failure == EOPNOTSUPP else { return Fault(errnoValue: failure) }
            // Without fallocate a page is allocated by writing what it holds.
            guard let bytes = readBytes(byteCount, of: file.descriptor, at: offset),
                writeAll(bytes, to: file.descriptor, at: offset)
            else { return Fault(errnoValue: errno) }
            break
        }
        var attemptCount = 0
        while cl_populate(base + offset, byteCount) != 0 {
            let failure = errno
            if failure == EINTR { continue }
            // The kernel has no memory at the moment; the writer that waits may not wait for long.
            attemptCount += 1
            guard failure == EAGAIN, attemptCount < Self.attemptCountMax else {
                return Fault(errnoValue: failure)
            }
            usleep(1000)
        }
        return nil
    }

    // MARK: Found again

    /// Checks the memory that a killed service left, and makes its pages resident. Pages with
    /// content and without a bit are emptied. Blocks.
    func recover(epoch: Epoch) throws(MapFileHeader.Damage) {
        let pageCount = ChangeMap.pageCount(chunkCount: chunkCount)
        for index in Int((pageCount + 63) / 64)..<bitmap.count where bitmap[index] != 0 {
            throw .impossible
        }
        try checkContent(pageCount: pageCount)
        for page in 0..<pageCount where isReserved(page) {
            if let fault = makeResident(
                from: MapLayout.entriesByteOffset + Int(page) * MapLayout.pageByteCount,
                byteCount: MapLayout.pageByteCount)
            {
                throw .unreadable(fault.errnoValue)
            }
            for entry in pageEntries(page)
            where !ChangeEntry(rawValue: entry).isPossible(atEpoch: epoch.rawValue) {
                throw .impossible
            }
        }
    }

    private func isReserved(_ page: UInt64) -> Bool {
        bitmap[Int(page / 64)] & (1 << (page % 64)) != 0
    }

    /// A reserved page has content, even if it is all zero; one that is a hole was lost.
    private func checkContent(pageCount: UInt64) throws(MapFileHeader.Damage) {
        let end = MapLayout.entriesByteOffset + Int(pageCount) * MapLayout.pageByteCount
        var position = MapLayout.entriesByteOffset
        while position < end {
            let data = lseek(file.descriptor, off_t(position), cl_seek_data)
            if data < 0 && errno != ENXIO { throw .unreadable(errno) }
            let start = data < 0 ? end : min(Int(data) / 4096 * 4096, end)
            for page in pages(from: position, to: start) where isReserved(page) {
                throw .truncated
            }
            guard start < end else { return }
            let hole = lseek(file.descriptor, off_t(start), cl_seek_hole)
            if hole < 0 { throw .unreadable(errno) }
            let stop = min(max((Int(hole) + 4095) / 4096 * 4096, start + 4096), end)
            for page in pages(from: start, to: stop) where !isReserved(page) {
                let offset = MapLayout.entriesByteOffset + Int(page) * MapLayout.pageByteCount
                if cl_punch_hole(file.descriptor, UInt64(offset), 4096) != 0 {
                    throw .unreadable(errno)
                }
            }
            position = stop
        }
    }

    private func pages(from start: Int, to end: Int) -> Range<UInt64> {
        let first = UInt64((start - MapLayout.entriesByteOffset) / MapLayout.pageByteCount)
        return first..<UInt64((end - MapLayout.entriesByteOffset) / MapLayout.pageByteCount)
    }

    // MARK: Headers

    /// Writes the header over the older one of the two: its sequence number says which.
    func write(_ header: MapFileHeader) {
        let place = base + Int(header.sequence % 2) * MapLayout.pageByteCount
        var bytes = MutableRawSpan(_unsafeStart: place, byteCount: MapLayout.pageByteCount)
        header.encode(into: &bytes)
        // Entries of a new epoch must not be stored before the header that allows them.
        cl_fence()
    }

    /// Empties the guardian's page: what it says is used up.
    func clearDeathRecord() {
        memset(base + MapLayout.deathRecordByteOffset, 0, MapLayout.pageByteCount)
    }

    /// Reads the newest valid header of a file that a killed service left.
    static func header(
        in descriptor: Int32
    ) throws(MapFileHeader.Damage) -> MapFileHeader {
        var newest: MapFileHeader?
        var damage = MapFileHeader.Damage.truncated
        for slot in 0..<2 {
            guard
                let bytes = readBytes(
                    MapLayout.pageByteCount, of: descriptor, at: slot * MapLayout.pageByteCount)
            else { throw .unreadable(errno) }
            do {
                let header = try MapFileHeader(decoding: bytes.span.bytes)
                guard header.sequence % 2 == UInt64(slot) else {
                    damage = .impossible
                    continue
                }
                if newest.map({ $0.sequence < header.sequence }) ?? true { newest = header }
            } catch { damage = error }
        }
        guard let newest else { throw damage }
        return newest
    }

    /// Reads what the guardian left.
    static func deathRecord(
        in descriptor: Int32
    ) throws(MapFileHeader.Damage) -> DeathRecord? {
        guard
            let bytes = readBytes(
                MapLayout.pageByteCount, of: descriptor, at: MapLayout.deathRecordByteOffset)
        else { throw .unreadable(errno) }
        return try DeathRecord.decode(bytes.span.bytes)
    }
}
