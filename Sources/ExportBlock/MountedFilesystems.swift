internal import Host
internal import CLinux
internal import Glibc

/// Filesystems mounted in this namespace. What is called here may wait for our own FUSE: see
/// `BlockErrand`.
enum MountedFilesystems {
    /// Writes back what the filesystems on these block devices (numbers as in `st_rdev`) or their
    /// partitions have in memory. Waits for those devices.
    static func writeBack(on numbers: Set<UInt64>) {
        for mount in Mounts.all() {
            // btrfs shows a number of its own: the source is what tells.
            var status = stat()
            guard stat(String(decoding: mount.source, as: UTF8.self), &status) == 0,
                status.st_mode & S_IFMT == S_IFBLK, stands(UInt64(status.st_rdev), on: numbers)
            else { continue }
            let descriptor = open(mount.name, O_RDONLY | O_CLOEXEC | O_DIRECTORY)
            guard descriptor >= 0 else { continue }
            _ = cl_sync_filesystem(descriptor)
            close(descriptor)
        }
    }

    private static func stands(_ number: UInt64, on numbers: Set<UInt64>) -> Bool {
        if numbers.contains(number) { return true }
        // A partition's directory lies in that of its disk.
        let own = "/sys/dev/block/\(cl_major(number)):\(cl_minor(number))"
        guard let text = SystemFile.line(of: own + "/../dev") else { return false }
        return BlockUsers.number(text).map { numbers.contains($0) } ?? false
    }
}
