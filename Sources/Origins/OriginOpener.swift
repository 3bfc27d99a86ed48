internal import CLinux
package import ChangeTracking
internal import Glibc
internal import Host
package import LiveTracking

// Opens an origin for exclusive use and finds out how to reach it. Everything here may block, so
// it runs on the blocking pool.
//
// Invariants
// - What is returned is locked against every other user we know of (`ImageLocks`, O_EXCL), and
//   the lock lives as long as the descriptor or any request on it.
// - A failure closes what was opened; nothing is written to the origin.

/// An origin that is open, locked and measured.
package struct OpenedOrigin: Sendable {
    /// Open until `close` or `giveUp`.
    package let descriptor: Int32
    /// What was measured of it.
    package let facts: OriginFacts
    /// RWF_DSYNC is known to reach stable storage: the filesystem is one that honours it.
    package let honoursDataSync: Bool
    /// The device or file itself: what difference storage may not stand on.
    package let foundations: Set<Foundation>
    /// All it stands on: no filesystem among it may be frozen while writes are to reach the origin.
    package let allFoundations: Set<Foundation>
    /// Of a device that is tracked in use: its marks.
    package var live: LiveWindow?

    /// Gives the origin up: no device has it, or has it any longer.
    package func close() { Glibc.close(descriptor) }

    /// The same for an origin that was never attached: tracking of a live one ends.
    package func giveUp() {
        live?.end()
        close()
    }

    /// Which one it is and how it stands, while nobody writes to it. Blocks.
    package func record() -> OriginRecord? {
        if let live { return OriginInspector.record(of: descriptor, live: live) }
        return OriginInspector.record(
            of: descriptor, probe: facts.accessMode == .direct ? descriptor : nil)
    }
}

/// Opens origins; see the head of this file.
package enum OriginOpener {
    /// Opens `path`; see `AttachedDevice.attach`. `isShared`: others use it at the same time.
    package static func open(
        path: String, isReadOnly: Bool, sectorBytes: UInt32?, isShared: Bool = false
    ) throws(AttachError) -> OpenedOrigin {
        let resolved = try resolve(path)
        let descriptor = try openDescriptor(
            resolved, isReadOnly: isReadOnly, isShared: isShared)
        do throws(AttachError) {
            return try examine(
                descriptor, path: resolved, isReadOnly: isReadOnly, sectorBytes: sectorBytes)
        } catch {
            close(descriptor)
            throw error
        }
    }

    private static func resolve(_ path: String) throws(AttachError) -> String {
        guard let resolved = realpath(path, nil) else {
            let failure = errno
            throw AttachError(
                namesNothing(failure) ? .notFound : .failed,
                "origin \(path): \(SystemFile.errorText(failure)); name an existing disk image or block device"
            )
        }
        defer { free(resolved) }
        return String(cString: resolved)
    }

    private static func openDescriptor(
        _ path: String, isReadOnly: Bool, isShared: Bool
    ) throws(AttachError) -> Int32 {
        var status = stat()
        guard stat(path, &status) == 0 else {
            throw AttachError(.failed, "origin \(path): \(SystemFile.errorText(errno))")
        }
        let kind = status.st_mode & S_IFMT
        guard kind == S_IFREG || kind == S_IFBLK else {
            throw AttachError(
                .unsuitable, "origin \(path) is neither a regular file nor a block device")
        }
        var flags = O_CLOEXEC | O_NOCTTY | (isReadOnly ? O_RDONLY : O_RDWR)
        if kind == S_IFBLK, !isShared { flags |= O_EXCL }
        let descriptor = Glibc.open(path, flags)
        guard descriptor >= 0 else { throw openFailure(path, errno, isReadOnly: isReadOnly) }
        return descriptor
    }

    private static func openFailure(
        _ path: String, _ failure: Int32, isReadOnly: Bool
    ) -> AttachError {
        switch failure {
        case EBUSY:
            AttachError(
                .busy,
                "origin \(path) is in use: mounted, part of a volume or array, attached here "
                    + "already, or it is a partition or the whole disk of a device in use; "
                    + "free it first")
        case EROFS, EACCES, EPERM:
            AttachError(
                .failed,
                "origin \(path): \(SystemFile.errorText(failure))"
                    + (isReadOnly ? "" : "; to serve it without writing, attach it read-only"))
        case ENOENT, ENXIO, ENODEV, ENOTDIR, ENAMETOOLONG, ELOOP:
            AttachError(.notFound, "origin \(path): \(SystemFile.errorText(failure))")
        default: AttachError(.failed, "origin \(path): \(SystemFile.errorText(failure))")
        }
    }

    private static func examine(
        _ descriptor: Int32, path: String, isReadOnly: Bool, sectorBytes: UInt32?
    ) throws(AttachError) -> OpenedOrigin {
        var found = CLinux.cl_file_facts()
        guard cl_file_facts(descriptor, &found) == 0 else {
            throw AttachError(.failed, "origin \(path): statx: \(SystemFile.errorText(errno))")
        }
        guard !ServedBlockDevices.carry(BlockTopology.foundations(of: descriptor)) else {
            throw AttachError(
                .unsuitable,
                "origin \(path) lies on a block device of this service: its requests would wait "
                    + "for themselves; serve it from another service")
        }
        let isBlockDevice = found.mode & UInt32(Glibc.S_IFMT) == UInt32(Glibc.S_IFBLK)
        var size = found.size
        var naturalSectorBytes: UInt32 = 512
        if isBlockDevice {
            guard cl_block_device_size(descriptor, &size) == 0,
                cl_block_device_sector_size(descriptor, &naturalSectorBytes) == 0
            else {
                throw AttachError(
                    .failed, "origin \(path): its size: \(SystemFile.errorText(errno))")
            }
            if !isReadOnly, cl_block_device_is_read_only(descriptor) {
                throw AttachError(.failed, "origin \(path) is read-only; attach it read-only")
            }
        } else {
            try LoopBacking.refuseIfBacking(
                path: path,
                device: cl_device_number(found.device_major, found.device_minor),
                inode: found.inode)
            try ImageLocks.take(descriptor, path: path, isReadOnly: isReadOnly)
        }
        let sector = try chooseSector(
            path: path, size: size, wanted: sectorBytes, natural: naturalSectorBytes)
        let access = accessMode(
            descriptor, isBlockDevice: isBlockDevice, found, size: size,
            sectorBytes: naturalSectorBytes)
        return OpenedOrigin(
            descriptor: descriptor,
            facts: OriginFacts(
                path: path, isBlockDevice: isBlockDevice, isReadOnly: isReadOnly, size: size,
                sectorBytes: sector, accessMode: access.mode,
                offsetAlignment: access.alignment,
                isRotational: isRotational(found, isBlockDevice: isBlockDevice)),
            honoursDataSync: isBlockDevice || filesystemHonoursDataSync(descriptor),
            foundations: [
                isBlockDevice
                    ? Foundation(
                        device: cl_device_number(found.special_major, found.special_minor),
                        inode: 0)
                    : Foundation(
                        device: cl_device_number(found.device_major, found.device_minor),
                        inode: found.inode)
            ],
            allFoundations: BlockTopology.foundations(of: descriptor))
    }

    private static func chooseSector(
        path: String, size: UInt64, wanted: UInt32?, natural: UInt32
    ) throws(AttachError) -> UInt32 {
        let sector = wanted ?? natural
        guard sector == 512 || sector == 4096 || sector == natural else {
            throw AttachError(.unsuitable, "a sector size is 512 or 4096, not \(sector)")
        }
        guard natural <= blockBytes else {
            throw AttachError(
                .unsuitable, "origin \(path) has sectors of \(natural) bytes; at most 4096 work")
        }
        guard sector >= natural else {
            throw AttachError(
                .unsuitable,
                "origin \(path) has sectors of \(natural) bytes; it cannot serve \(sector)")
        }
        guard size > 0 else {
            throw AttachError(.unsuitable, "origin \(path) is empty; give it a size first")
        }
        guard size % UInt64(sector) == 0 else {
            throw AttachError(
                .unsuitable,
                "origin \(path) has \(size) bytes, which is not a multiple of its sector size of \(sector); "
                    + "extend it to \((size / UInt64(sector) + 1) * UInt64(sector)) bytes "
                    + "(truncate -s) or choose another sector size")
        }
        return sector
    }

    private static let blockBytes: UInt32 = 4096

    /// O_DIRECT where a read proves that it works, inline on tmpfs, else the page cache.
    static func accessMode(
        _ descriptor: Int32, isBlockDevice: Bool, _ found: cl_file_facts, size: UInt64,
        sectorBytes: UInt32
    ) -> (mode: AccessMode, alignment: UInt32) {
        if !isBlockDevice {
            var type = 0
            if cl_filesystem_type(descriptor, &type) == 0, type == cl_tmpfs_magic {
                return (.inline, 1)
            }
            if found.direct_known, found.direct_offset_alignment == 0 { return (.buffered, 1) }
        }
        let flags = fcntl(descriptor, F_GETFL)
        guard flags >= 0, fcntl(descriptor, F_SETFL, flags | Int32(cl_o_direct)) == 0 else {
            return (.buffered, 1)
        }
        var alignment = isBlockDevice ? sectorBytes : 512
        if found.direct_known, !isBlockDevice {
            alignment = max(alignment, found.direct_offset_alignment)
        }
        while alignment <= blockBytes, size % UInt64(alignment) == 0 {
            if directReadWorks(descriptor, byteCount: Int(alignment)) {
                return (.direct, alignment)
            }
            alignment *= 2
        }
        guard fcntl(descriptor, F_SETFL, flags) == 0 else {
            preconditionFailure("O_DIRECT was set on a descriptor and cannot be taken off")
        }
        return (.buffered, 1)
    }

    private static func directReadWorks(_ descriptor: Int32, byteCount: Int) -> Bool {
        let buffer = UnsafeMutableRawPointer.allocate(byteCount: byteCount, alignment: 4096)
        defer { buffer.deallocate() }
        return pread(descriptor, buffer, byteCount, 0) == byteCount
    }

    /// Filesystems whose direct and buffered writes wait for stable storage with RWF_DSYNC. On
    /// others (FUSE servers may ignore the flag) a write is followed by fdatasync.
    private static func filesystemHonoursDataSync(_ descriptor: Int32) -> Bool {
        var type = 0
        guard cl_filesystem_type(descriptor, &type) == 0 else { return false }
        let known = [0xEF53, 0x5846_5342, 0x9123_683E]  // ext4, XFS, btrfs: linux/magic.h
        return known.contains(type)
    }

    static func isRotational(_ found: cl_file_facts, isBlockDevice: Bool) -> Bool {
        let major = isBlockDevice ? found.special_major : found.device_major
        let minor = isBlockDevice ? found.special_minor : found.device_minor
        let folder = "/sys/dev/block/\(major):\(minor)"
        // A partition has no queue of its own; its disk, one folder up, has.
        for path in ["\(folder)/queue/rotational", "\(folder)/../queue/rotational"] {
            if let text = SystemFile.read(path) { return text.hasPrefix("1") }
        }
        return false
    }

    /// The path leads nowhere, whatever is wrong with it.
    static func namesNothing(_ failure: Int32) -> Bool {
        [ENOENT, ENOTDIR, ENAMETOOLONG, ELOOP].contains(failure)
    }
}
