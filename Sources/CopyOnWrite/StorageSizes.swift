package import BlockModel

// How large the parts of difference storage are: extents, growth steps, what a filesystem keeps,
// what a snapshot may grow to, the pieces that are erased.

/// How large the extents of a source are.
package enum ExtentSize {
    /// Bytes in the smallest extent.
    package static let least: UInt64 = 16 << 10
    /// Extents that a source has for each device, where its size allows it: what a device has
    /// begun and not filled costs the others little.
    private static let countPerDevice: UInt64 = 16

    /// Bytes of each extent of a source that `deviceCount` devices share, and that has or may have
    /// `byteCount` bytes: a power of two.
    package static func byteCount(for byteCount: UInt64, deviceCount: Int) -> UInt64 {
        let share = byteCount / countPerDevice / UInt64(max(deviceCount, 1))
        var size = ExtentTable.extentByteCount
        while size > least, size > share { size /= 2 }
        return size
    }
}

/// The steps in which files grow.
package enum GrowthSteps {
    /// Bytes of each step on tmpfs, which allocates page by page, about 1 us each: a step that took
    /// long would have writers wait for it.
    package static let paged: UInt64 = 32 << 20

    /// Bytes of each step of a file that may reach `byteCount` bytes. Few large ones: while a
    /// filesystem allocates, what is written to the file waits.
    package static func most(for byteCount: UInt64) -> UInt64 {
        min(max(byteCount / 16, 16 << 20), 1 << 30)
    }
}

/// What a filesystem has, in bytes.
package struct FilesystemRoom: Equatable, Sendable {
    package var free: UInt64
    package var size: UInt64

    package init(free: UInt64, size: UInt64) {
        self.free = free
        self.size = size
    }

    /// What storage leaves to others: a twentieth of the filesystem, at most 1 GiB.
    package var reserve: UInt64 { min(size / 20, 1 << 30) }

    /// What storage may take.
    package var usable: UInt64 { free - min(free, reserve) }
}

/// What a snapshot needs at most.
package enum StorageNeed {
    /// Least bytes of a source.
    package static let sourceLeast: UInt64 = 64 << 10
    /// Least limit that follows from sizes of devices, in bytes.
    package static let least: UInt64 = 64 << 20
    /// Extents that a device has begun and not filled, for both purposes.
    private static let begun: UInt64 = 4 * ExtentTable.extentByteCount

    /// Bytes that preserve every block of devices of these sizes.
    package static func byteCount(of sizes: [UInt64]) -> UInt64 {
        var sum: UInt64 = 0
        for size in sizes {
            let (next, isBeyond) = sum.addingReportingOverflow(size + begun)
            guard !isBeyond, next <= UInt64(Int64.max) else { return UInt64(Int64.max) }
            sum = next
        }
        return max(sum, least)
    }
}

/// What is erased by one call.
package enum ErasurePlan {
    /// Bytes of the largest piece: an answer comes after each.
    package static let pieceByteCountMax: UInt64 = 64 << 20

    /// Ranges that hold these extents and no others, in order, neighbours in one.
    package static func pieces(of offsets: [UInt64], extentByteCount: UInt64) -> [ByteRange] {
        var pieces: [ByteRange] = []
        for offset in offsets.sorted() {
            if let last = pieces.last, last.end == offset,
                last.length + extentByteCount <= pieceByteCountMax
            {
                pieces[pieces.count - 1] = ByteRange(
                    offset: last.offset, length: last.length + extentByteCount)
            } else {
                pieces.append(ByteRange(offset: offset, length: extentByteCount))
            }
        }
        return pieces
    }

    /// The extents of a piece that could not be erased as a whole.
    package static func extents(of piece: ByteRange, extentByteCount: UInt64) -> [ByteRange] {
        stride(from: piece.offset, to: piece.end, by: Int(extentByteCount)).map {
            ByteRange(offset: $0, length: extentByteCount)
        }
    }
}
