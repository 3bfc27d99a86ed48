internal import CLinux
internal import Glibc

/// Tells whether a file backs a loop device: its users would write behind our back, or we behind
/// theirs.
enum LoopBacking {
    /// Throws when a loop device stands on the file with this device number and inode.
    static func refuseIfBacking(
        path: String, device: UInt64, inode: UInt64
    ) throws(AttachError) {
        let served = servedDirectories()
        for name in SystemFile.names(in: "/sys/block") where name.hasPrefix("loop") {
            guard let backing = SystemFile.read("/sys/block/\(name)/loop/backing_file") else {
                continue
            }
            // Asking about one that a service like this serves means asking that service, which
            // may be this one or have hung; an origin is no file of theirs.
            guard !served.contains(where: backing.hasPrefix) else { continue }
            guard stands(name, on: path, backing: backing, device: device, inode: inode) else {
                continue
            }
            throw AttachError(
                .busy,
                "origin \(path) backs the loop device /dev/\(name); attach that device instead, "
                    + "or detach it first (losetup -d /dev/\(name))")
        }
    }

    /// Where services like this one have mounted the files under their block devices.
    private static func servedDirectories() -> [String] {
        (SystemFile.read("/proc/self/mountinfo") ?? "").split(separator: "\n").compactMap { line in
            // mountinfo: id parent major:minor root mountpoint options ... - type source options
            let fields = line.split(separator: " ")
            guard fields.count > 4, let divider = fields.firstIndex(of: "-"),
                fields.count > divider + 1, fields[divider + 1] == "fuse.stillpoint"
            else { return nil }
            return fields[4] + "/"
        }
    }

    private static func stands(
        _ name: String, on path: String, backing: String, device: UInt64, inode: UInt64
    ) -> Bool {
        let descriptor = open("/dev/\(name)", O_RDONLY | O_CLOEXEC)
        var itsDevice: UInt64 = 0
        var itsInode: UInt64 = 0
        if descriptor >= 0 {
            defer { close(descriptor) }
            if cl_loop_backing(descriptor, &itsDevice, &itsInode) == 0 {
                return itsDevice == device && itsInode == inode
            }
        }
        // Without the right to open it, the name the kernel shows has to do.
        return backing.trimmingNewline == path
    }
}

extension String {
    fileprivate var trimmingNewline: Substring {
        hasSuffix("\n") ? dropLast() : Substring(self)
    }
}
