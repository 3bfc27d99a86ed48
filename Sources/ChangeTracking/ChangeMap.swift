// ChangeTracking says which blocks of a device changed between two cuts.
//
// The change map is one entry per chunk in memory given from outside: a sparse shared-memory file
// while the service runs, so that it survives `kill -9`; plain memory in the simulator.
//
// Invariants
// - An entry is written with one aligned 64-bit store, which no reader can see halved.
// - Entries are touched only in reserved pages: a page holds 512 entries and is reserved (made
//   resident, off the loop) before its first use. What is not reserved was never changed.
// - The room never allocates while marking or querying.

public import BlockModel

/// The change map of one device and the epochs it counts in. Confined to one loop; a value of
/// pointers: the owner of the memory outlives it.
@usableFromInline package struct ChangeMap {
    /// Entries in a page of the map, the unit of reservation.
    @inlinable package static var entriesPerPage: UInt64 { 512 }

    // What a write passes through is inlinable: it is done in a few nanoseconds.
    @usableFromInline let entries: UnsafeMutablePointer<UInt64>
    @usableFromInline let reservedPages: UnsafeMutablePointer<UInt64>
    /// Chunks the map has room for.
    @usableFromInline package let chunkCount: UInt64
    /// The epoch in which changes are marked now.
    @usableFromInline package private(set) var current: Epoch
    /// The epoch that ended at the newest cut still usable as a base; 0 when there is none.
    @usableFromInline package private(set) var newestBase: UInt32

    /// A map over `entries` (`chunkCount` words) with one bit per page in `reservedPages`
    /// (`reservationWordCount(chunkCount:)` words); both stay the caller's.
    package init(
        entries: UnsafeMutablePointer<UInt64>, reservedPages: UnsafeMutablePointer<UInt64>,
        chunkCount: UInt64, current: Epoch, newestBase: UInt32
    ) {
        precondition(current.rawValue > 0, "epochs begin at 1")
        precondition(newestBase < current.rawValue, "a base is a cut of the past")
        self.entries = entries
        self.reservedPages = reservedPages
        self.chunkCount = chunkCount
        self.current = current
        self.newestBase = newestBase
    }

    /// Words of the reservation bitmap for a map of `chunkCount` chunks.
    package static func reservationWordCount(chunkCount: UInt64) -> Int {
        Int(pageCount(chunkCount: chunkCount) / 64 + 1)
    }

    /// Pages of a map of `chunkCount` chunks, the last one perhaps partly used.
    package static func pageCount(chunkCount: UInt64) -> UInt64 {
        (chunkCount + entriesPerPage - 1) / entriesPerPage
    }

    /// The page that holds `chunk`'s entry.
    @inlinable package static func page(of chunk: UInt64) -> UInt64 { chunk / entriesPerPage }

    /// True when the page may be touched.
    @inlinable package func isReserved(page: UInt64) -> Bool {
        reservedPages[Int(page / 64)] & (1 << (page % 64)) != 0
    }

    /// The page is resident now, or was found with content at attach.
    package func pageReserved(_ page: UInt64) {
        precondition(
            page < Self.pageCount(chunkCount: chunkCount), "a reserved page lies in the map")
        reservedPages[Int(page / 64)] |= 1 << (page % 64)
    }

    /// The entry of `chunk`; unchanged in pages never reserved.
    package func entry(of chunk: UInt64) -> ChangeEntry {
        precondition(chunk < chunkCount, "a chunk lies in the map")
        guard isReserved(page: Self.page(of: chunk)) else { return .unchanged }
        return ChangeEntry(rawValue: entries[Int(chunk)])
    }

    /// Where the entry of `chunk` lies, for a processor to fetch it early; nil when there is none,
    /// or it may not be touched yet.
    @inlinable package func address(ofEntry chunk: UInt64) -> UnsafeRawPointer? {
        guard chunk < chunkCount, isReserved(page: Self.page(of: chunk)) else { return nil }
        return UnsafeRawPointer(entries + Int(chunk))
    }

    /// `blocks` of `chunk` are about to change. The page must be reserved.
    @inlinable package func mark(_ blocks: UInt16, of chunk: UInt64) {
        precondition(chunk < chunkCount, "a chunk lies in the map")
        assert(isReserved(page: Self.page(of: chunk)), "a page is reserved before its first mark")
        let old = ChangeEntry(rawValue: entries[Int(chunk)])
        let new = old.marking(blocks, current: current.rawValue, newestBase: newestBase)
        // Rewrites of a hot chunk leave the cache line clean.
        if new != old { entries[Int(chunk)] = new.rawValue }
    }

    /// The current epoch ended with a cut. `isBase`: the cut can be named by later queries.
    /// Returns the epoch that ended. Not at `Epoch.last`: that cut begins a new generation.
    package mutating func cutMade(isBase: Bool) -> Epoch {
        precondition(current < .last, "the last epoch of a generation ends with a new map")
        let ended = current
        current = Epoch(ended.rawValue &+ 1)
        if isBase { newestBase = ended.rawValue }
        return ended
    }

    /// The newest usable base is another one: a checkpoint was deleted. 0: there is none.
    package mutating func newestBaseChanged(to base: UInt32) {
        precondition(base < current.rawValue, "a base is a cut of the past")
        newestBase = base
    }

    /// The first chunk at or after `chunk` whose page is reserved; `chunkCount` when none is.
    package func nextReserved(from chunk: UInt64) -> UInt64 {
        var page = Self.page(of: chunk)
        let pageCount = Self.pageCount(chunkCount: chunkCount)
        guard page < pageCount else { return chunkCount }
        if isReserved(page: page) { return chunk }
        while page < pageCount {
            let word = reservedPages[Int(page / 64)] >> (page % 64)
            if word != 0 {
                page += UInt64(word.trailingZeroBitCount)
                return page < pageCount ? page * Self.entriesPerPage : chunkCount
            }
            page = (page / 64 + 1) * 64
        }
        return chunkCount
    }

    /// The first chunk in `chunk ..< end` whose entry's epoch is above `base`; `end` when there
    /// is none. The word loop of every query: what did not change costs one comparison.
    package func nextChanged(from chunk: UInt64, to end: UInt64, since base: UInt32) -> UInt64 {
        precondition(end <= chunkCount, "a scan ends in the map")
        let threshold = UInt64(base) << 32 | 0xFFFF_FFFF
        var position = chunk
        while position < end {
            position = nextReserved(from: position)
            guard position < end else { return end }
            let pageEnd = min(
                (position / Self.entriesPerPage + 1) * Self.entriesPerPage, end)
            while position < pageEnd {
                let raw = entries[Int(position)]
                // An epoch of 0 with other bits set is damage, which must not pass unseen.
                if raw > threshold || (raw != 0 && raw >> 32 == 0) { return position }
                position &+= 1
            }
        }
        return end
    }

    /// False when some entry is impossible: the map is damaged and its generation ends.
    package func isSound() -> Bool {
        var chunk = nextChanged(from: 0, to: chunkCount, since: 0)
        while chunk < chunkCount {
            guard entry(of: chunk).isPossible(atEpoch: current.rawValue) else { return false }
            chunk = nextChanged(from: chunk + 1, to: chunkCount, since: 0)
        }
        return true
    }
}
