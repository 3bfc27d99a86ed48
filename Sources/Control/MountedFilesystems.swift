internal import CLinux
internal import Glibc

/// Filesystems mounted in this namespace.
enum MountedFilesystems {
    /// Writes back what the filesystems on these block devices (numbers as in `st_rdev`) or their
    /// partitions have in memory. Waits for those devices.
    static func writeBack(on numbers: Set<UInt64>) {
        guard let table = fopen("/proc/self/mountinfo", "re") else { return }
        defer { fclose(table) }
        var line: UnsafeMutablePointer<CChar>?
        var capacity = 0
        defer { free(line) }
        while getline(&line, &capacity, table) > 0, let line {
            // mountinfo: id parent major:minor root mountpoint options ... - type source options
            let fields = String(cString: line).split(separator: " ")
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
        guard let text = firstLine(own + "/../dev") else { return false }
        let parts = text.split(separator: ":")
        guard parts.count == 2, let major = UInt32(parts[0]), let minor = UInt32(parts[1]) else {
            return false
        }
        return numbers.contains(cl_device_number(major, minor))
    }

    private static func firstLine(_ path: String) -> String? {
        guard let file = fopen(path, "re") else { return nil }
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 256)
        guard fgets(&line, Int32(line.count), file) != nil else { return nil }
        let bytes = line.prefix { $0 != 0 && $0 != 10 }
        return String(decoding: bytes.map(UInt8.init(bitPattern:)), as: UTF8.self)
    }
}
