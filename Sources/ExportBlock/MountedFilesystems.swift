internal import Host
internal import CLinux
internal import Glibc

/// Filesystems mounted in this namespace. What is called here may wait for our own FUSE: see
/// `BlockErrand`.
enum MountedFilesystems {
    /// Writes back what the filesystems on these block devices (numbers as in `st_rdev`) or their
    /// partitions have in memory. Waits for those devices.
    static func writeBack(on numbers: Set<UInt64>) {
        for line in SystemFile.lines(of: "/proc/self/mountinfo") {
            // mountinfo: id parent major:minor root mountpoint options ... - type source options
            let fields = line.split(separator: " ")
            guard fields.count > 4, let divider = fields.firstIndex(of: "-"),
                fields.count > divider + 2
            else { continue }
            // btrfs shows a number of its own: the source is what tells.
            var status = stat()
            guard stat(String(fields[divider + 2]), &status) == 0,
                status.st_mode & S_IFMT == S_IFBLK, stands(UInt64(status.st_rdev), on: numbers)
            else { continue }
            let descriptor = open(String(fields[4]), O_RDONLY | O_CLOEXEC | O_DIRECTORY)
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
