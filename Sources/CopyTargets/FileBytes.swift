package import BlockModel
internal import CLinux
package import CopyPlanning
internal import Glibc

/// Bytes of an open file or block device, which is closed with it.
package final class FileBytes: CopyBytes {
    package let size: UInt64
    private let descriptor: Int32
    private let path: String

    /// Takes over a descriptor.
    package init(owning descriptor: Int32, path: String, size: UInt64) {
        self.descriptor = descriptor
        self.path = path
        self.size = size
    }

    deinit { close(descriptor) }

    package func read(
        _ offset: UInt64, into place: UnsafeMutableRawPointer, _ byteCount: Int
    ) throws(CopyError) { try Self.read(descriptor, path, offset, into: place, byteCount) }

    package func data(in range: ByteRange) -> ByteRange? { Self.data(descriptor, in: range) }

    static func read(
        _ descriptor: Int32, _ path: String, _ offset: UInt64,
        into place: UnsafeMutableRawPointer, _ byteCount: Int
    ) throws(CopyError) {
        var done = 0
        while done < byteCount {
            let count = pread(
                descriptor, place + done, byteCount - done, off_t(offset) + off_t(done))
            if count < 0, errno == EINTR { continue }
            guard count > 0 else {
                throw CopyError(
                    .failed,
                    "\(path) cannot be read at \(offset) "
                        + "(\(CopyTarget.text(count < 0 ? errno : EIO))); check the disk it lies on"
                )
            }
            done += count
        }
    }

    static func data(_ descriptor: Int32, in range: ByteRange) -> ByteRange? {
        let start = lseek(descriptor, off_t(range.offset), cl_seek_data)
        if start < 0 {
            if errno == ENXIO { return nil }
            // What does not know its holes has data everywhere: block devices, some filesystems.
            return range
        }
        guard UInt64(start) < range.end else { return nil }
        let hole = lseek(descriptor, start, cl_seek_hole)
        let end = hole < 0 ? range.end : min(UInt64(hole), range.end)
        let begin = max(UInt64(start), range.offset)
        return ByteRange(offset: begin, length: end - begin)
    }
}

/// Tells whether something holds data that nobody described.
enum ContentLook {
    private static let edgeByteCount: UInt64 = 4 << 20
    private static let spotCount: UInt64 = 1024
    private static let pieceByteCount: UInt64 = 65536

    /// Looks at both ends and at many places between: whole disks take hours to read.
    static func holdsData(_ bytes: some CopyBytes, _ size: UInt64) throws(CopyError) -> Bool {
        let piece = UnsafeMutableRawPointer.allocate(
            byteCount: Int(pieceByteCount), alignment: Int(blockByteCount))
        defer { piece.deallocate() }
        func isZero(_ offset: UInt64, _ byteCount: UInt64) throws(CopyError) -> Bool {
            let wanted = Int(min(byteCount, size - offset))
            try bytes.read(offset, into: piece, wanted)
            return cl_is_zero(piece, wanted)
        }
        var offset: UInt64 = 0
        while offset < size {
            if !(try isZero(offset, pieceByteCount)) { return true }
            offset += pieceByteCount
            if offset == edgeByteCount, size > 2 * edgeByteCount {
                offset = (size - edgeByteCount) / pieceByteCount * pieceByteCount
            }
        }
        for spot in 1..<spotCount where size / spotCount * spot < size {
            let place = size / spotCount * spot / blockByteCount * blockByteCount
            if !(try isZero(place, blockByteCount)) { return true }
        }
        return false
    }
}
