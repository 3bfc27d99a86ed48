package import BlockModel
package import CopyPlanning
internal import Synchronization

/// What both ends of a device hold: two looks are equal when they held the same.
package final class EdgeLook: CopySink, Equatable {
    private let sums = Mutex<[UInt64: UInt32]>([:])

    /// As much as one mark stands for, at most.
    private static let byteCount: UInt64 = 64 << 10

    package init() {}

    /// Both ends of a device.
    package static func ranges(size: UInt64) -> [ByteRange] {
        guard size > 2 * byteCount else { return [ByteRange(offset: 0, length: size)] }
        return [
            ByteRange(offset: 0, length: byteCount),
            ByteRange(offset: size - byteCount, length: byteCount),
        ]
    }

    package static func == (left: EdgeLook, right: EdgeLook) -> Bool {
        // One after the other: it may be one and the same.
        let sums = left.sums.withLock { $0 }
        return right.sums.withLock { $0 == sums }
    }

    package func write(
        _ bytes: UnsafeRawPointer, _ byteCount: Int, at offset: UInt64
    ) throws(CopyError) {
        let sum = Checksum.crc32c(UnsafeRawBufferPointer(start: bytes, count: byteCount))
        sums.withLock { $0[offset] = sum }
    }

    package func zero(_ range: ByteRange) throws(CopyError) {
        sums.withLock { $0[range.offset] = 0 }
    }

    package func drain() throws(CopyError) {}
}
