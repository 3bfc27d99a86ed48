package import BlockModel
package import Synchronization

/// The pieces of an image that are to be copied, handed out to the workers, and what came of it.
package final class CopyWork: Sendable {
    private enum Remaining {
        /// The bytes from here on.
        case all(ByteRange)
        /// These ranges, from a place on; the first from `offset` on.
        case ranges([ByteRange], place: Int, offset: UInt64)
    }

    /// Most bytes of a piece: what one worker does before it asks for more.
    private let pieceByteCount: UInt64
    /// Bytes to be looked at in all.
    package let byteCount: UInt64
    private let remaining: Mutex<Remaining?>
    private let failure = Mutex<CopyError?>(nil)

    /// Bytes that are done, for progress.
    package let doneByteCount = Atomic<UInt64>(0)
    /// Bytes of data that came from the service.
    package let readByteCount = Atomic<UInt64>(0)
    /// Bytes written to the target.
    package let writtenByteCount = Atomic<UInt64>(0)
    /// Bytes made to read as zero.
    package let zeroedByteCount = Atomic<UInt64>(0)

    /// All of an image.
    package init(wholeImage size: UInt64) {
        byteCount = size
        // Large enough to ask rarely, small enough that all workers have something to do.
        pieceByteCount = max(16 << 20, min(256 << 20, size / 64 / chunkByteCount * chunkByteCount))
        remaining = Mutex(.all(ByteRange(offset: 0, length: size)))
    }

    /// These ranges, which ascend.
    package init(_ ranges: [ByteRange]) {
        byteCount = ranges.reduce(0) { $0 + $1.length }
        pieceByteCount = 16 << 20
        remaining = Mutex(
            ranges.isEmpty ? nil : .ranges(ranges, place: 0, offset: ranges[0].offset))
    }

    /// The next piece; nil when nothing is left, or something failed.
    func next() -> ByteRange? {
        guard failure.withLock({ $0 == nil }) else { return nil }
        let limit = pieceByteCount
        return remaining.withLock { remaining in
            switch remaining {
            case nil: return nil
            case .all(let rest):
                let length = min(rest.length, limit)
                remaining =
                    length == rest.length
                    ? nil
                    : .all(
                        ByteRange(offset: rest.offset + length, length: rest.length - length))
                return length == 0 ? nil : ByteRange(offset: rest.offset, length: length)
            case .ranges(let ranges, let place, let offset):
                let end = ranges[place].end
                let length = min(end - offset, limit)
                if offset + length < end {
                    remaining = .ranges(ranges, place: place, offset: offset + length)
                } else if place + 1 < ranges.count {
                    remaining = .ranges(
                        ranges, place: place + 1, offset: ranges[place + 1].offset)
                } else {
                    remaining = nil
                }
                return ByteRange(offset: offset, length: length)
            }
        }
    }

    /// Something failed: no more pieces are handed out. The first failure counts.
    func failed(_ error: CopyError) { failure.withLock { $0 = $0 ?? error } }

    /// Throws what failed.
    package func check() throws(CopyError) {
        if let error = failure.withLock({ $0 }) { throw error }
    }
}
