// The entries in a map file, in groups: a page of checksums, then the 1023 map pages it speaks for.
//
//     | header | checksums of group 0 | page 0 ... page 1022 | checksums of group 1 | ...
//
// A page that was never reserved has checksum 0 and is not read: the file is sparse like the map.
// The last word of a checksum page is the checksum of the words before it.
//
// Invariants
// - An entry is used only after its page's checksum agreed and the entry is possible.

/// Where things lie in a map file, and its pages as bytes.
package enum MapFileBody {
    /// Map pages of a group.
    package static let pagesPerGroup: UInt64 = 1023
    private static let pageByteCount = 4096

    /// Byte offset of the checksum page of `group`.
    package static func byteOffset(ofGroup group: UInt64) -> UInt64 {
        4096 * (1 + group * (pagesPerGroup + 1))
    }

    /// Byte offset of map page `page`.
    package static func byteOffset(ofPage page: UInt64) -> UInt64 {
        byteOffset(ofGroup: page / pagesPerGroup) + 4096 * (1 + page % pagesPerGroup)
    }

    /// The checksum kept for a map page's 4096 bytes, never 0.
    package static func checksum(ofPage bytes: RawSpan) -> UInt32 {
        precondition(bytes.byteCount == pageByteCount, "a map page has 4096 bytes")
        return max(bytes.checksum(pageByteCount), 1)
    }

    /// Writes the checksums of a group's pages (0 where there is none) into 4096 `bytes`.
    package static func encodeGroup(_ checksums: Span<UInt32>, into bytes: inout MutableRawSpan) {
        precondition(bytes.byteCount == pageByteCount, "a checksum page has 4096 bytes")
        precondition(checksums.count <= Int(pagesPerGroup), "a group has 1023 pages")
        for index in 0..<Int(pagesPerGroup) {
            bytes.setHalf(index < checksums.count ? checksums[index] : 0, at: index * 4)
        }
        bytes.setHalf(bytes.bytes.checksum(pageByteCount - 4), at: pageByteCount - 4)
    }

    /// The checksum of the page at `index` of a group, out of `bytes` that may be anything; 0:
    /// the page was never reserved.
    package static func checksum(
        at index: Int, ofGroup bytes: RawSpan
    ) throws(MapFileHeader.Damage) -> UInt32 {
        precondition(index >= 0 && index < Int(pagesPerGroup), "a group has 1023 pages")
        guard bytes.byteCount == pageByteCount else { throw .truncated }
        guard bytes.checksum(pageByteCount - 4) == bytes.half(at: pageByteCount - 4) else {
            throw .checksum
        }
        return bytes.half(at: index * 4)
    }

    /// Reads a map page out of `bytes`, which may be anything, into its 512 `entries`. On damage
    /// nothing is written.
    package static func decodePage(
        _ bytes: RawSpan, checksum: UInt32, epoch: UInt32,
        into entries: UnsafeMutableBufferPointer<UInt64>
    ) throws(MapFileHeader.Damage) {
        guard bytes.byteCount == pageByteCount else { throw .truncated }
        guard max(bytes.checksum(pageByteCount), 1) == checksum else { throw .checksum }
        for index in 0..<512 {
            let entry = ChangeEntry(rawValue: bytes.word(at: index * 8))
            guard entry.isPossible(atEpoch: epoch) else { throw .impossible }
            // The last page of a map may be partly used; what lies behind was never changed.
            guard index < entries.count || entry == .unchanged else { throw .impossible }
        }
        for index in 0..<min(512, entries.count) {
            entries[index] = bytes.word(at: index * 8)
        }
    }

    /// Writes a map page's `entries`, at most 512, into 4096 `bytes`.
    package static func encodePage(
        _ entries: UnsafeBufferPointer<UInt64>, into bytes: inout MutableRawSpan
    ) {
        precondition(bytes.byteCount == pageByteCount, "a map page has 4096 bytes")
        precondition(entries.count <= 512, "a map page has 512 entries")
        for index in 0..<512 {
            bytes.setWord(index < entries.count ? entries[index] : 0, at: index * 8)
        }
    }
}
