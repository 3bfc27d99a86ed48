package import BlockModel
internal import Glibc

// Parts of a target by which a later look tells whether somebody else wrote to it: its beginning
// and end, where partitions begin (a filesystem that is mounted writes there), and places between.

/// Chooses and reads samples; see the head of this file.
package enum CopySamples {
    private static let edgeByteCount: UInt64 = 1 << 20
    private static let startByteCount: UInt64 = 256 << 10
    private static let partByteCount: UInt64 = 64 << 10
    private static let partCount: UInt64 = 64
    private static let startCountMax = 64

    /// The places for a target of `size` bytes. `starts`: where partitions begin.
    package static func places(size: UInt64, starts: [UInt64]) -> [ByteRange] {
        var places: [ByteRange] = []
        func add(_ offset: UInt64, _ byteCount: UInt64) {
            let end = min(size, offset + byteCount)
            var offset = offset
            while offset < end {
                let length = min(partByteCount, end - offset)
                places.append(ByteRange(offset: offset, length: length))
                offset += length
            }
        }
        guard size > 4 * edgeByteCount else {
            add(0, size)
            return places
        }
        add(0, edgeByteCount)
        add(size - edgeByteCount, edgeByteCount)
        for start in starts.prefix(startCountMax) where start < size { add(start, startByteCount) }
        let stratum = size / partCount
        for index in 0..<partCount {
            // The golden ratio's fraction: places that fall into step with no layout.
            let share = (index &* 0x9E37_79B9_7F4A_7C15) >> 40
            let room = stratum > partByteCount ? stratum - partByteCount : 0
            let offset =
                index * stratum + (room >> 24) * share + (((room & 0xFF_FFFF) * share) >> 24)
            places.append(
                ByteRange(
                    offset: min(offset, size - partByteCount) / blockByteCount * blockByteCount,
                    length: partByteCount))
        }
        return places
    }

    /// Reads the places of an open file or block device.
    static func read(
        _ places: [ByteRange], of descriptor: Int32, path: String
    ) throws(CopyError) -> [CopyRecord.Sample] {
        var samples: [CopyRecord.Sample] = []
        for place in places.prefix(CopyRecord.Sample.countMax) {
            samples.append(
                CopyRecord.Sample(
                    offset: place.offset, length: place.length,
                    checksum: try checksum(place, of: descriptor, path: path)))
        }
        return samples
    }

    /// Whether an open file or block device holds what samples say, those aside that touch
    /// `excluded` (ascending); nil when no sample is left.
    static func match(
        _ samples: [CopyRecord.Sample], of descriptor: Int32, path: String,
        excluding excluded: [ByteRange]
    ) throws(CopyError) -> Bool? {
        var isCompared = false
        for sample in samples {
            let place = ByteRange(offset: sample.offset, length: sample.length)
            if touches(place, excluded) { continue }
            isCompared = true
            let found = try checksum(place, of: descriptor, path: path)
            if found != sample.checksum { return false }
        }
        return isCompared ? true : nil
    }

    private static func touches(_ place: ByteRange, _ ranges: [ByteRange]) -> Bool {
        var low = 0
        var high = ranges.count
        while low < high {
            let middle = (low + high) / 2
            if ranges[middle].end <= place.offset { low = middle + 1 } else { high = middle }
        }
        return low < ranges.count && ranges[low].offset < place.end
    }

    private static func checksum(
        _ place: ByteRange, of descriptor: Int32, path: String
    ) throws(CopyError) -> UInt32 {
        var bytes = [UInt8](repeating: 0, count: Int(place.length))
        var done = 0
        while done < bytes.count {
            let count = bytes.withUnsafeMutableBytes {
                pread(
                    descriptor, $0.baseAddress.unsafelyUnwrapped + done, $0.count - done,
                    off_t(place.offset) + off_t(done))
            }
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else {
                let reason = String(cString: strerror(errno))
                throw CopyError(
                    .failed,
                    "target \(path) cannot be read at \(place.offset) (\(reason)); check the disk")
            }
            // Shorter than it was: what is missing differs from anything that was there.
            if count == 0 { return ~bytes.withUnsafeBytes { Checksum.crc32c($0) } }
            done += count
        }
        return bytes.withUnsafeBytes { Checksum.crc32c($0) }
    }
}
