internal import BlockModel
internal import CLinux
internal import DataPlane
internal import Glibc

// A copy in a file or on a block device, to be read: for restoring it, or comparing it with an image.

/// A copy that is read; see the head of this file. Used by several threads at once.
package final class CopyReader: Sendable {
    package let path: String
    /// Bytes of the copy: of the file, or of the image that a block device holds as its record
    /// says.
    package let size: UInt64
    /// The cut it equals; nil when it has no record, is not complete, or was changed since.
    package let cut: CopyCut?
    /// The device it is a copy of, as its record says.
    package let device: String?
    /// Why it equals no cut, for people.
    package let doubt: String?
    private let descriptor: Int32
    private let isBlockDevice: Bool

    private static let pieceByteCount = 1 << 20

    /// Opens a copy. `records`: where records of block devices are.
    package init(opening path: String, records: String, record named: String? = nil)
        throws(CopyError)
    {
        self.path = path
        descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY)
        guard descriptor >= 0 else {
            let reason = errno
            throw CopyError(
                reason == ENOENT ? .missing : .failed, "copy \(path): \(CopyTarget.text(reason))")
        }
        var facts = stat()
        var fileSize: UInt64 = 0
        guard fstat(descriptor, &facts) == 0 else {
            let reason = errno
            close(descriptor)
            throw CopyError(.failed, "copy \(path): \(CopyTarget.text(reason))")
        }
        let kind = facts.st_mode & S_IFMT
        isBlockDevice = kind == S_IFBLK
        fileSize = UInt64(max(0, facts.st_size))
        guard kind == S_IFREG || kind == S_IFBLK,
            kind == S_IFREG || cl_block_device_size(descriptor, &fileSize) == 0
        else {
            close(descriptor)
            throw CopyError(.unsuitable, "copy \(path) is neither a file nor a block device")
        }
        // Somebody writes to it at this moment, or does not.
        guard flock(descriptor, LOCK_SH | LOCK_NB) == 0 else {
            close(descriptor)
            throw CopyError(.busy, "copy \(path) is being written at this moment; wait for that")
        }
        var state: (record: CopyRecord?, doubt: String?)
        do throws(CopyError) {
            state = try Self.state(
                descriptor, path, facts, size: fileSize, records: records, named: named)
        } catch {
            close(descriptor)
            throw error
        }
        device = state.record?.device
        doubt = state.doubt
        cut = state.doubt == nil ? state.record?.equals : nil
        size = isBlockDevice ? cut?.size ?? fileSize : fileSize
    }

    deinit { close(descriptor) }

    private static func state(
        _ descriptor: Int32, _ path: String, _ facts: stat, size: UInt64, records: String,
        named: String?
    ) throws(CopyError) -> (record: CopyRecord?, doubt: String?) {
        var file = CopyRecordFile(besideTarget: path)
        let disk = TargetSurvey.disk(ofDescriptor: descriptor).map { DiskState($0) }
        if let named {
            file = CopyRecordFile(named: named)
        } else if let disk {
            file = CopyRecordFile(of: disk, size: size, in: records)
        }
        guard case .record(let record) = try file.load() else {
            return (nil, "it has no record \(file.path) that says which cut it equals")
        }
        guard record.state == .complete else {
            return (record, "it is not complete: it was interrupted, or is under way")
        }
        var isSame = record.target.size == size
        if let disk, let former = record.target.disk {
            switch disk.verdict(since: former) {
            case .another, .written: isSame = false
            case .unwritten: break
            case .unknown:
                isSame =
                    try CopySamples.match(
                        record.samples ?? [], of: descriptor, path: path, excluding: []) == true
            }
        } else {
            let changed =
                Int64(facts.st_mtim.tv_sec) * 1_000_000_000 + Int64(facts.st_mtim.tv_nsec)
            isSame = isSame && record.target.changedNanoseconds == changed
        }
        return (record, isSame ? nil : "it was changed since it was copied")
    }

    private func failure(_ errnoValue: Int32, _ offset: UInt64) -> CopyError {
        CopyError(
            .failed,
            "copy \(path) cannot be read at \(offset) (\(CopyTarget.text(errnoValue))); check the "
                + "disk it lies on")
    }

    /// Reads bytes that lie within it.
    func read(
        _ offset: UInt64, into place: UnsafeMutableRawPointer, _ byteCount: Int
    ) throws(CopyError) {
        var done = 0
        while done < byteCount {
            let count = pread(
                descriptor, place + done, byteCount - done, off_t(offset) + off_t(done))
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw failure(count < 0 ? errno : EIO, offset) }
            done += count
        }
    }

    /// Where the next data lie in a range, up to the next hole; nil when all of it is a hole.
    func data(in range: ByteRange) throws(CopyError) -> ByteRange? {
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

    /// Gives pieces to a target until none is left or something failed: what one thread does.
    package func work(_ work: CopyWork, into target: any CopySink) {
        let buffer = UnsafeMutableRawPointer.allocate(
            byteCount: Self.pieceByteCount, alignment: Int(blockByteCount))
        defer { buffer.deallocate() }
        do throws(CopyError) {
            while let piece = work.next() { try give(piece, buffer, work, target) }
            try target.drain()
        } catch { work.failed(error) }
    }

    private func give(
        _ piece: ByteRange, _ buffer: UnsafeMutableRawPointer, _ work: CopyWork,
        _ target: any CopySink
    ) throws(CopyError) {
        var position = piece.offset
        func zero(until end: UInt64) throws(CopyError) {
            guard end > position else { return }
            let hole = ByteRange(offset: position, length: end - position)
            try work.zero(hole, of: target, isFresh: false)
            work.finished(hole)
            position = end
        }
        while position < piece.end {
            // A copy may be shorter than what it is restored to: the rest reads as zero.
            let end = min(piece.end, max(size, position))
            let rest = ByteRange(offset: position, length: end - position)
            guard !rest.isEmpty, let data = try data(in: rest) else {
                try zero(until: piece.end > size ? piece.end : end)
                continue
            }
            try zero(until: data.offset)
            while position < data.end {
                let count = min(data.end - position, UInt64(Self.pieceByteCount))
                try read(position, into: buffer, Int(count))
                let range = ByteRange(offset: position, length: count)
                work.readByteCount.add(count, ordering: .relaxed)
                try work.store(range, buffer, into: target, isFresh: false)
                work.finished(range)
                position += count
            }
        }
    }
}
