internal import BlockModel
internal import CLinux
package import CopyPlanning
package import CopyTargets
internal import Glibc
internal import Origins

// A copy in a file or on a block device, to be read: for restoring it, or comparing it with an
// image.

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
    private let bytes: any CopyBytes

    private static let pieceByteCount = 1 << 20

    /// What a name leads to.
    private struct Found {
        var bytes: any CopyBytes
        var size: UInt64
        var record: CopyRecord?
        var doubt: String?
        var cut: CopyCut?
    }

    /// Opens a copy. `options`: where records are, and how servers are reached.
    package init(opening name: String, options: CopyOptions) throws(CopyError) {
        path = name
        let found: Found
        switch try CopyPlace(name) {
        case .file(let path): found = try Self.file(path, options, isQcow: false)
        case .qcow(let path): found = try Self.file(path, options, isQcow: true)
        case .nbd(let place): found = try Self.export(place, options)
        case .rbd(let place): found = try Self.image(place, options)
        }
        bytes = found.bytes
        device = found.record?.device
        doubt = found.doubt
        cut = found.doubt == nil ? found.record?.equals ?? found.cut : nil
        size = found.size
    }

    // MARK: Files and block devices

    private static func file(
        _ path: String, _ options: CopyOptions, isQcow: Bool
    ) throws(CopyError) -> Found {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY)
        guard descriptor >= 0 else {
            let reason = errno
            throw CopyError(
                reason == ENOENT ? .missing : .failed, "copy \(path): \(CopyTarget.text(reason))")
        }
        var facts = stat()
        guard fstat(descriptor, &facts) == 0 else {
            let reason = errno
            close(descriptor)
            throw CopyError(.failed, "copy \(path): \(CopyTarget.text(reason))")
        }
        let kind = facts.st_mode & S_IFMT
        var size = UInt64(max(0, facts.st_size))
        let isBlockDevice = kind == S_IFBLK
        let isOpen =
            kind == S_IFREG
            || (isBlockDevice && cl_block_device_size(descriptor, &size) == 0)
        let bytes = FileBytes(owning: descriptor, path: path, size: size)
        guard isOpen else {
            throw CopyError(.unsuitable, "copy \(path) is neither a file nor a block device")
        }
        // Somebody writes to it at this moment, or does not.
        guard flock(descriptor, LOCK_SH | LOCK_NB) == 0 else {
            throw CopyError(.busy, "copy \(path) is being written at this moment; wait for that")
        }
        if isQcow, let header = QcowChain.header(descriptor) {
            return try qcow(path, descriptor, header, bytes, options)
        }
        var found = try state(descriptor, bytes, path, facts, options)
        if isBlockDevice, found.doubt == nil, let cut = found.record?.equals {
            found.size = cut.size
        }
        return found
    }

    /// A qcow2 file, which QEMU reads. `file` holds its lock.
    private static func qcow(
        _ path: String, _ descriptor: Int32, _ header: QcowChain.Header, _ file: FileBytes,
        _ options: CopyOptions
    ) throws(CopyError) -> Found {
        let server = try QEMUServer.serve(path, isReadOnly: true)
        var found = Found(
            bytes: try NBDBytes(server: server, path, holding: file), size: server.size)
        let place = CopyRecordFile.named(options) ?? CopyRecordFile(besideTarget: path)
        guard case .record(let record) = try place.load() else {
            found.doubt = "it has no record \(place.path) that says which cut it equals"
            return found
        }
        found.record = record
        let looks = try QcowChain.file(descriptor, path)
        if record.state != .complete {
            found.doubt = "it is not complete: it was interrupted, or is under way"
        } else if looks.size != record.target.size
            || looks.changedNanoseconds != record.target.changedNanoseconds
        {
            found.doubt = "it was changed since it was copied"
        } else {
            found.doubt = try QcowChain.doubt(path, record, header)
        }
        return found
    }

    private static func state(
        _ descriptor: Int32, _ bytes: FileBytes, _ path: String, _ facts: stat,
        _ options: CopyOptions
    ) throws(CopyError) -> Found {
        var found = Found(bytes: bytes, size: bytes.size)
        var file = CopyRecordFile(besideTarget: path)
        let disk = TargetSurvey.disk(ofDescriptor: descriptor).map { DiskState($0) }
        if let named = CopyRecordFile.named(options) {
            file = named
        } else if let disk {
            file = CopyRecordFile(of: disk, size: bytes.size, in: options.diskRecords)
        }
        guard case .record(let record) = try file.load() else {
            found.doubt = "it has no record \(file.path) that says which cut it equals"
            return found
        }
        found.record = record
        guard record.state == .complete else {
            found.doubt = "it is not complete: it was interrupted, or is under way"
            return found
        }
        var isSame = record.target.size == bytes.size
        if let disk, let former = record.target.disk {
            switch disk.verdict(since: former) {
            case .another, .written: isSame = false
            case .unwritten: break
            case .unknown:
                isSame = try CopySamples.match(record.samples ?? [], of: bytes) == true
            }
        } else {
            let changed =
                Int64(facts.st_mtim.tv_sec) * 1_000_000_000 + Int64(facts.st_mtim.tv_nsec)
            isSame = isSame && record.target.changedNanoseconds == changed
        }
        if !isSame { found.doubt = "it was changed since it was copied" }
        return found
    }

    // MARK: Servers

    private static func export(
        _ place: NBDPlace, _ options: CopyOptions
    ) throws(CopyError) -> Found {
        let secure = options.secure
        let bytes = try NBDBytes(place.name) { () throws(CopyError) in
            try place.connect(isForWriting: false, secure)
        }
        var found = Found(bytes: bytes, size: bytes.size)
        let file = CopyRecordFile.named(options) ?? place.recordFile(in: options.diskRecords)
        guard case .record(let record) = try file.load() else {
            found.doubt = "it has no record \(file.path) that says which cut it equals"
            return found
        }
        found.record = record
        if record.state != .complete {
            found.doubt = "it is not complete: it was interrupted, or is under way"
        } else if record.target.size != bytes.size
            || place.disk.verdict(since: record.target.disk ?? place.disk) == .another
        {
            found.doubt = "it is another one than was copied"
        } else if try CopySamples.match(record.samples ?? [], of: bytes) != true {
            found.doubt = "it was changed since it was copied"
        } else if let cut = record.equals {
            found.size = cut.size
        }
        return found
    }

    private static func image(
        _ place: RBDPlace, _ options: CopyOptions
    ) throws(CopyError) -> Found {
        let pool = try RBDPool(place)
        guard let head = try RBDImage(place, pool, snapshot: nil, isReadOnly: true),
            let image = try RBDImage(place, pool, snapshot: place.snapshot, isReadOnly: true)
        else { throw CopyError(.missing, "there is no copy at \(place.name)") }
        var found = Found(bytes: image, size: image.size)
        let names = try head.snapshots().map(\.name)
        guard let name = place.snapshot ?? names.last else {
            found.doubt = "it has no snapshot that says which cut it equals"
            return found
        }
        guard let version = try head.metadata(RBDVersion.key(name)).flatMap({ RBDVersion($0) })
        else {
            found.doubt = "its snapshot \(name) is none of a copy"
            return found
        }
        // What the image itself holds may have been written to since its last snapshot.
        if place.snapshot == nil, head.size != version.cut.size {
            found.doubt = "it is larger or smaller than its snapshot \(name)"
        } else if place.snapshot == nil, try !RBDMedium.equals(head, name, except: nil) {
            found.doubt = "it was written to since its snapshot \(name), or is not complete"
        }
        found.cut = version.cut
        found.record = .complete(
            device: version.device, version.cut,
            CopyRecord.File(
                isBlockDevice: true, size: image.size, inode: 0, changedNanoseconds: 0))
        return found
    }

    // MARK: Reading

    /// Reads bytes that lie within it.
    func read(
        _ offset: UInt64, into place: UnsafeMutableRawPointer, _ byteCount: Int
    ) throws(CopyError) { try bytes.read(offset, into: place, byteCount) }

    /// Where the next data lie in a range, up to the next hole; nil when all of it is a hole.
    func data(in range: ByteRange) throws(CopyError) -> ByteRange? { try bytes.data(in: range) }

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
            target.finished(hole, of: work)
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
                target.finished(range, of: work)
                position += count
            }
        }
    }
}
