internal import CLinux
package import CopyOnWrite
internal import Glibc
internal import Host
package import Origins

// Opens difference storage. Everything here may block, so it runs on the blocking pool.
//
// Invariants
// - Files are unlinked before their first byte is written; their mode is 0600 at creation.
// - Nothing that existed is overwritten: existing files are refused, block devices with
//   recognisable content need `isForced`.

/// Difference storage that is open and belongs to us alone.
package struct OpenedStorage: Sendable {
    enum Medium: Sendable {
        /// An unnamed file; `isInline`: on tmpfs, reached by plain calls.
        case file(descriptor: Int32, isInline: Bool)
        case blockDevice(descriptor: Int32, byteCount: UInt64)
        case memory(byteCount: UInt64)
    }

    /// As it was asked for.
    package let name: String
    let medium: Medium
    /// What it lies on.
    package let foundations: Set<Foundation>

    /// Gives it up before a source has it.
    package func close() {
        switch medium {
        case .file(let descriptor, _), .blockDevice(let descriptor, _): Glibc.close(descriptor)
        case .memory: break
        }
    }
}

/// Opens what difference storage lies on.
package enum StorageOpener {
    /// Opens what `request` names. `isForced`: take a block device whatever is on it.
    package static func open(
        _ request: StorageRequest, isForced: Bool
    ) throws(AttachError) -> OpenedStorage {
        switch request {
        case .memory(let byteCount):
            return OpenedStorage(
                name: "memory:\(byteCount)", medium: .memory(byteCount: byteCount),
                foundations: [])
        case .path(let path):
            var status = stat()
            guard stat(path, &status) == 0 else {
                guard errno == ENOENT else {
                    throw AttachError(
                        .failed, "storage \(path): \(SystemFile.errorText(errno))")
                }
                return try openNewFile(path)
            }
            switch status.st_mode & Glibc.S_IFMT {
            case Glibc.S_IFDIR: return try openUnnamed(in: path)
            case Glibc.S_IFBLK: return try openBlockDevice(path, isForced: isForced)
            default:
                throw AttachError(
                    .busy,
                    "storage \(path) exists already; name a directory, a file that does not "
                        + "exist yet, or a block device")
            }
        }
    }

    private static func openUnnamed(in folder: String) throws(AttachError) -> OpenedStorage {
        let descriptor = cl_open_unnamed(folder)
        if descriptor >= 0 { return file(descriptor, name: folder) }
        guard errno == EOPNOTSUPP || errno == EISDIR else {
            throw AttachError(.failed, "storage \(folder): \(SystemFile.errorText(errno))")
        }
        // A filesystem without O_TMPFILE: a name that lives for a moment.
        var template = Array("\(folder)/.stillpoint-XXXXXX".utf8CString)
        let named = mkstemp(&template)
        guard named >= 0, fcntl(named, F_SETFD, FD_CLOEXEC) == 0, unlink(template) == 0 else {
            throw AttachError(.failed, "storage \(folder): \(SystemFile.errorText(errno))")
        }
        return file(named, name: folder)
    }

    private static func openNewFile(_ path: String) throws(AttachError) -> OpenedStorage {
        let descriptor = Glibc.open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard descriptor >= 0, unlink(path) == 0 else {
            throw AttachError(.failed, "storage \(path): \(SystemFile.errorText(errno))")
        }
        return file(descriptor, name: path)
    }

    private static func file(_ descriptor: Int32, name: String) -> OpenedStorage {
        var type = 0
        let isInline =
            cl_filesystem_type(descriptor, &type) == 0 && type == cl_tmpfs_magic
        if !isInline { setDirect(descriptor) }
        return OpenedStorage(
            name: name, medium: .file(descriptor: descriptor, isInline: isInline),
            foundations: BlockTopology.foundations(of: descriptor))
    }

    /// O_DIRECT keeps preserved data from pushing the page cache out; where it is refused the
    /// page cache is used.
    private static func setDirect(_ descriptor: Int32) {
        let flags = fcntl(descriptor, F_GETFL)
        if flags >= 0 { _ = fcntl(descriptor, F_SETFL, flags | cl_o_direct) }
    }

    private static func openBlockDevice(
        _ path: String, isForced: Bool
    ) throws(AttachError) -> OpenedStorage {
        let descriptor = Glibc.open(path, O_RDWR | O_EXCL | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw AttachError(
                errno == EBUSY ? .busy : .failed,
                "storage \(path): "
                    + (errno == EBUSY ? "the block device is in use" : SystemFile.errorText(errno))
            )
        }
        var byteCount: UInt64 = 0
        guard cl_block_device_size(descriptor, &byteCount) == 0 else {
            let failure = errno
            Glibc.close(descriptor)
            throw AttachError(.failed, "storage \(path): \(SystemFile.errorText(failure))")
        }
        if !isForced, let content = contentName(descriptor) {
            Glibc.close(descriptor)
            throw AttachError(
                .busy,
                "storage \(path) holds \(content); use --force if it may be overwritten")
        }
        setDirect(descriptor)
        return OpenedStorage(
            name: path, medium: .blockDevice(descriptor: descriptor, byteCount: byteCount),
            foundations: BlockTopology.foundations(of: descriptor))
    }

    /// What libblkid recognises on the device: a filesystem, a partition table, a volume.
    private static func contentName(_ descriptor: Int32) -> String? {
        var name = [CChar](repeating: 0, count: 64)
        switch cl_recognise_content(descriptor, &name, name.count) {
        case 0: return nil
        case 1:
            return String(
                decoding: name.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
        default: return "contents that cannot be examined"
        }
    }
}
