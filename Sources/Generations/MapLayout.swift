internal import BlockModel
internal import ChangeTracking

// Where things lie in the shared memory of a change map.
//
//     | header | header | death record | unused | which pages are reserved | entries ...
//     0        4096     8192           12288    16384                      16384 + 4 MiB
//
// One bit for each page of entries: 4 MiB of them serve a device of 1 PiB. The file is sparse, so
// what is not used takes neither memory nor disk.

/// Byte offsets and sizes in a running map; see the head of this file.
package enum MapLayout {
    static let pageByteCount = 4096
    /// Where the death record lies: bytes from the start of the file.
    package static let deathRecordByteOffset = 2 * pageByteCount
    static let bitmapByteOffset = 4 * pageByteCount
    static let bitmapByteCountMax = 4 << 20
    static let entriesByteOffset = bitmapByteOffset + bitmapByteCountMax

    /// Most chunks of a device: 1 PiB of them.
    package static let chunkCountMax =
        (UInt64(bitmapByteCountMax) * 8 - 64) * ChangeMap.entriesPerPage

    /// Bytes of the bitmap that are used, in whole pages.
    static func bitmapByteCount(chunkCount: UInt64) -> Int {
        let words = ChangeMap.reservationWordCount(chunkCount: chunkCount)
        return (words * 8 + pageByteCount - 1) / pageByteCount * pageByteCount
    }

    /// Bytes of the whole.
    static func byteCount(chunkCount: UInt64) -> Int {
        entriesByteOffset + Int(ChangeMap.pageCount(chunkCount: chunkCount)) * pageByteCount
    }

    /// Chunks of a device of `size` bytes.
    package static func chunkCount(size: UInt64) -> UInt64 {
        size / chunkByteCount + (size % chunkByteCount == 0 ? 0 : 1)
    }
}
