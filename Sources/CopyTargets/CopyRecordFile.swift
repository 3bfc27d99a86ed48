package import CopyPlanning
internal import Glibc
internal import Host

/// The file that holds the record of a target: beside a file, and for a block device in a directory
/// that stays the same when the disk comes back under another path. Blocks.
package struct CopyRecordFile: Sendable {
    package let path: String
    /// The directory is the program's own, made when it is missing.
    private let makesDirectory: Bool

    package init(besideTarget target: String) {
        path = target + CopyRecord.suffix
        makesDirectory = false
    }

    /// The file that the user named.
    package init(named path: String) {
        self.path = path
        makesDirectory = false
    }

    /// The record of a disk of `size` bytes among those in `directory`.
    package init(of disk: DiskState, size: UInt64, in directory: String) {
        path = "\(directory)/\(disk.recordName(size: size))\(CopyRecord.suffix)"
        makesDirectory = true
    }

    /// The file that the user named; nil when none was.
    package static func named(_ options: CopyOptions) -> CopyRecordFile? {
        options.recordPath.map { CopyRecordFile(named: $0) }
    }

    /// The record of a target that looks like `file`.
    package static func of(
        _ path: String, _ file: CopyRecord.File, _ options: CopyOptions
    ) -> CopyRecordFile {
        if let named = named(options) { return named }
        guard let disk = file.disk else { return CopyRecordFile(besideTarget: path) }
        return CopyRecordFile(of: disk, size: file.size, in: options.diskRecords)
    }

    private static func failure(_ path: String, _ errnoValue: Int32) -> CopyError {
        CopyError(
            .failed,
            "\(path): \(String(cString: strerror(errnoValue))); the record of the copy must be "
                + "readable and writable")
    }

    /// What lies there.
    package func load() throws(CopyError) -> CopyRecordFound {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            let reason = errno
            if reason == ENOENT { return .none }
            throw Self.failure(path, reason)
        }
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: CopyRecord.byteCountMax + 1)
        var filled = 0
        while filled < bytes.count {
            let count = bytes.withUnsafeMutableBytes {
                read(descriptor, $0.baseAddress.unsafelyUnwrapped + filled, $0.count - filled)
            }
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { throw Self.failure(path, errno) }
            if count == 0 { break }
            filled += count
        }
        guard filled <= CopyRecord.byteCountMax,
            let record = CopyRecord.decoded(Array(bytes[..<filled]))
        else { return .damaged }
        return .record(record)
    }

    /// Replaces the record so that after a crash the old or the new one is there, whole.
    package func store(_ record: CopyRecord) throws(CopyError) {
        let bytes: [UInt8]
        do {
            bytes = try record.encoded()
        } catch {
            preconditionFailure("a record has a text form: \(error)")
        }
        if makesDirectory, let slash = path.lastIndex(of: "/") {
            // One that is there already is as good; what else is wrong shows when it is written to.
            mkdir(String(path[..<slash]), 0o700)
        }
        do throws(HostError) { try DurableFile.replace(path, with: bytes) } catch {
            throw Self.failure(error.subject, error.errnoValue)
        }
    }

    /// Takes the record away: what it described is gone.
    package func remove() { unlink(path) }

    /// Puts this record in the place of another one.
    package func move(to other: CopyRecordFile) throws(CopyError) {
        guard rename(path, other.path) == 0 else { throw Self.failure(other.path, errno) }
        try Self.syncDirectory(of: other.path)
    }

    /// Makes names in the directory of `path` durable.
    package static func syncDirectory(of path: String) throws(CopyError) {
        do throws(HostError) { try DurableFile.syncDirectory(of: path) } catch {
            throw failure(error.subject, error.errnoValue)
        }
    }
}
