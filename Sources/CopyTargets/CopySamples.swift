package import BlockModel
package import CopyPlanning

// Parts of a target by which a later look tells whether somebody else wrote to it: its beginning
// and end, where partitions begin (a filesystem that is mounted writes there), and places between.

/// Chooses and reads samples; see the head of this file.
package enum CopySamples {
    private static let edgeByteCount: UInt64 = 1 << 20
    private static let startByteCount: UInt64 = 256 << 10
    private static let partByteCount: UInt64 = 64 << 10
    private static let partCount: UInt64 = 64
    private static let startCountMax = 64
    private static let writtenCount: UInt64 = 64

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

    /// Places within what was written, spread over all of it: restoring what was there
    /// before is noticed by them.
    package static func places(written ranges: RangeSpool) throws(CopyError) -> [ByteRange] {
        guard ranges.count > 0 else { return [] }
        let step = max(1, ranges.count / writtenCount)
        var places: [ByteRange] = []
        var cursor = RangeSpool.Cursor(ranges)
        var number: UInt64 = 0
        while let range = try cursor.next(), places.count < writtenCount {
            if number % step == 0 {
                // Of a long range its middle, for its ends are what changes least.
                let length = min(range.length, partByteCount)
                places.append(
                    ByteRange(
                        offset: range.offset + (range.length - length) / 2 / 512 * 512,
                        length: length))
            }
            number += 1
        }
        return places
    }

    /// Samples of what `bytes` hold; see `CopyMedium.samples`.
    static func taken(
        of bytes: some CopyBytes, starts: [UInt64] = [], within ranges: [ByteRange]?,
        written: RangeSpool?
    ) throws(CopyError) -> [CopyRecord.Sample] {
        var places = Self.places(size: bytes.size, starts: starts)
        if let written { places += try Self.places(written: written) }
        if let ranges {
            places = places.filter { place in
                ranges.contains { $0.offset <= place.offset && place.end <= $0.end }
            }
        }
        return try read(places, of: bytes)
    }

    /// Reads the places.
    static func read(
        _ places: [ByteRange], of bytes: some CopyBytes
    ) throws(CopyError) -> [CopyRecord.Sample] {
        var samples: [CopyRecord.Sample] = []
        for place in places.prefix(CopyRecord.Sample.countMax) {
            samples.append(
                CopyRecord.Sample(
                    offset: place.offset, length: place.length,
                    checksum: try checksum(place, of: bytes)))
        }
        return samples
    }

    /// Those samples that touch none of `ranges`.
    static func untouched(
        _ samples: [CopyRecord.Sample], by ranges: RangeSpool?
    ) throws(CopyError) -> [CopyRecord.Sample] {
        guard let ranges else { return samples }
        var left = samples.sorted { $0.offset < $1.offset }[...]
        var apart: [CopyRecord.Sample] = []
        var cursor = RangeSpool.Cursor(ranges)
        var next = try cursor.next()
        while let sample = left.first {
            guard let range = next else {
                apart += left
                break
            }
            // Samples may overlap each other, so a range is left behind only when it ends before
            // the first byte of the next sample.
            if range.end <= sample.offset {
                next = try cursor.next()
            } else {
                if range.offset >= sample.offset + sample.length { apart.append(sample) }
                left.removeFirst()
            }
        }
        return apart
    }

    /// Whether the bytes are those of the samples; nil when there is no sample.
    package static func match(
        _ samples: [CopyRecord.Sample], of bytes: some CopyBytes
    ) throws(CopyError) -> Bool? {
        for sample in samples {
            let place = ByteRange(offset: sample.offset, length: sample.length)
            // Shorter than it was: what is missing differs from anything that was there.
            guard place.end <= bytes.size, try checksum(place, of: bytes) == sample.checksum
            else { return false }
        }
        return samples.isEmpty ? nil : true
    }

    private static func checksum(
        _ place: ByteRange, of bytes: some CopyBytes
    ) throws(CopyError) -> UInt32 {
        let buffer = UnsafeMutableRawPointer.allocate(
            byteCount: Int(place.length), alignment: Int(blockByteCount))
        defer { buffer.deallocate() }
        try bytes.read(place.offset, into: buffer, Int(place.length))
        return Checksum.crc32c(
            UnsafeRawBufferPointer(start: buffer, count: Int(place.length)))
    }
}
