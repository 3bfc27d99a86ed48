internal import CLinux
internal import Glibc
internal import Host

/// How an origin would be reached, found out without taking it: somebody may be using it.
package struct OriginProbe: Sendable {
    package let isBlockDevice: Bool
    package let size: UInt64
    /// O_DIRECT works, with this alignment; nil: it does not.
    package let directAlignment: UInt32?
    package let accessMode: AccessMode
    package let isRotational: Bool

    /// Looks at an existing file or block device. Blocks.
    package init(path: String) throws(AttachError) {
        let descriptor = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC)
        guard descriptor >= 0 else {
            let reason = errno
            throw AttachError(
                OriginOpener.namesNothing(reason) ? .notFound : .failed,
                "origin \(path): \(SystemFile.errorText(reason))")
        }
        defer { close(descriptor) }
        var found = cl_file_facts()
        guard cl_file_facts(descriptor, &found) == 0 else {
            throw AttachError(.failed, "origin \(path): \(SystemFile.errorText(errno))")
        }
        let kind = found.mode & UInt32(Glibc.S_IFMT)
        guard kind == UInt32(Glibc.S_IFREG) || kind == UInt32(Glibc.S_IFBLK) else {
            throw AttachError(
                .unsuitable, "origin \(path) is neither a disk image nor a block device")
        }
        isBlockDevice = kind == UInt32(Glibc.S_IFBLK)
        var size = found.size
        var sectorBytes: UInt32 = 512
        if isBlockDevice {
            guard cl_block_device_size(descriptor, &size) == 0,
                cl_block_device_sector_size(descriptor, &sectorBytes) == 0
            else {
                throw AttachError(
                    .failed, "origin \(path): its size: \(SystemFile.errorText(errno))")
            }
        }
        self.size = size
        let access = OriginOpener.accessMode(
            descriptor, isBlockDevice: isBlockDevice, found, size: size, sectorBytes: sectorBytes)
        accessMode = access.mode
        directAlignment = access.mode == .direct ? access.alignment : nil
        isRotational = OriginOpener.isRotational(found, isBlockDevice: isBlockDevice)
    }
}
