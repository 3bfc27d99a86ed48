internal import CLinux
internal import Glibc
internal import Host

// What stands on what: from a file or block device down to the disks and image files under it.
// Storage that stands on an origin would be overwritten by the very writes it protects against.

/// A block device or a file, as the kernel identifies it.
package struct Foundation: Hashable, Sendable {
    /// Device number: of the block device itself, or of the filesystem that holds the file.
    let device: UInt64
    /// Inode of the file; 0 for a block device.
    let inode: UInt64
}

/// What files and block devices stand on.
package enum BlockTopology {
    /// Everything the open file or block device stands on, itself included.
    package static func foundations(of descriptor: Int32) -> Set<Foundation> {
        var facts = CLinux.cl_file_facts()
        guard cl_file_facts(descriptor, &facts) == 0 else { return [] }
        var found: Set<Foundation> = []
        if facts.mode & UInt32(Glibc.S_IFMT) == UInt32(Glibc.S_IFBLK) {
            descend(major: facts.special_major, minor: facts.special_minor, into: &found)
        } else {
            let device = cl_device_number(facts.device_major, facts.device_minor)
            found.insert(Foundation(device: device, inode: facts.inode))
            descend(major: facts.device_major, minor: facts.device_minor, into: &found)
            if facts.device_major == 0 {
                for number in MountSurvey.numbersBehindAnonymousDevice(of: descriptor) {
                    descend(major: number.major, minor: number.minor, into: &found)
                }
            }
        }
        return found
    }

    /// Whether the open file stands on none of these block devices. False when one of them cannot be looked at.
    package static func stands(_ descriptor: Int32, onNoneOf devices: [String]) -> Bool {
        let below = foundations(of: descriptor)
        return devices.allSatisfy { path in
            var facts = stat()
            guard stat(path, &facts) == 0, facts.st_mode & S_IFMT == S_IFBLK else { return false }
            return !below.contains(Foundation(device: UInt64(facts.st_rdev), inode: 0))
        }
    }

    /// Follows partitions to their disks, mapped devices to their slaves, loop devices to the
    /// files behind them.
    static func descend(major: UInt32, minor: UInt32, into found: inout Set<Foundation>) {
        let entry = Foundation(device: cl_device_number(major, minor), inode: 0)
        guard found.insert(entry).inserted else { return }
        // Below it is a file that we answer for ourselves.
        guard !ServedBlockDevices.contains(entry.device) else { return }
        let folder = "/sys/dev/block/\(major):\(minor)"
        if SystemFile.read("\(folder)/partition") != nil {
            descend(numbers: SystemFile.read("\(folder)/../dev"), into: &found)
        }
        for slave in SystemFile.names(in: "\(folder)/slaves") {
            descend(numbers: SystemFile.read("\(folder)/slaves/\(slave)/dev"), into: &found)
        }
        if SystemFile.read("\(folder)/loop/backing_file") != nil {
            descendLoop(minor: minor, folder: folder, into: &found)
        }
    }

    private static func descend(numbers: String?, into found: inout Set<Foundation>) {
        guard let numbers else { return }
        let parts = numbers.split(whereSeparator: { $0 == ":" || $0 == "\n" })
        guard parts.count == 2, let major = UInt32(parts[0]), let minor = UInt32(parts[1]) else {
            return
        }
        descend(major: major, minor: minor, into: &found)
    }

    private static func descendLoop(
        minor: UInt32, folder: String, into found: inout Set<Foundation>
    ) {
        guard
            let path = SystemFile.read("\(folder)/loop/backing_file")?.split(separator: "\n").first
        else { return }
        // O_PATH would do, but statx needs no rights on the file either way.
        let descriptor = open(String(path), O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else { return }
        defer { close(descriptor) }
        found.formUnion(foundations(of: descriptor))
    }
}
