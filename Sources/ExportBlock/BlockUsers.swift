internal import BlockModel
internal import Host
internal import CLinux
internal import Glibc

// Who uses block devices, as far as the system shows it: mounts in every mount namespace, swap,
// holders (LVM, device mapper, md), loop devices over them, processes that have them open.
//
// Everything here is read from /proc, /sys and device nodes; nothing touches a filesystem that may
// stand on one of the devices, so nothing waits for them.

/// Finds the users of block devices; see the head of this file.
package enum BlockUsers {
    /// What each of these loop devices, or a partition of it, is used for, in words, by the path
    /// that was given; those that nobody is seen to use are left out. Blocks for a look at all
    /// processes.
    package static func find(of paths: [String]) -> [String: [String]] {
        var owners: [UInt64: String] = [:]
        for path in paths {
            for number in numbers(of: path) { owners[number] = path }
        }
        guard !owners.isEmpty else { return [:] }
        var search = UserSearch(owners: owners)
        search.lookAtProcesses()
        search.lookAtSwap()
        search.lookAtHolders()
        search.lookAtLoops()
        return search.found
    }

    /// The numbers of a disk and of its partitions, as in `st_rdev`.
    private static func numbers(of path: String) -> [UInt64] {
        let disk = String(path.dropFirst("/dev/".count))
        let folder = "/sys/block/" + disk
        let folders =
            [folder]
            + SystemFile.names(in: folder).filter { $0.hasPrefix(disk + "p") }.map {
                folder + "/" + $0
            }
        return folders.compactMap { number(SystemFile.line(of: $0 + "/dev")) }
    }

    /// Reads `MAJOR:MINOR`.
    static func number<Text: StringProtocol>(_ text: Text?) -> UInt64? {
        let parts = text?.split(separator: ":") ?? []
        guard parts.count == 2, let major = UInt32(parts[0]), let minor = UInt32(parts[1]) else {
            return nil
        }
        return cl_device_number(major, minor)
    }
}

/// A search for the users of some block devices.
private struct UserSearch {
    /// By number, the path of the disk that was asked about.
    let owners: [UInt64: String]
    private(set) var found: [String: [String]] = [:]

    init(owners: [UInt64: String]) { self.owners = owners }

    private mutating func add(_ number: UInt64?, _ use: String) {
        guard let number, let path = owners[number] else { return }
        if found[path]?.contains(use) != true { found[path, default: []].append(use) }
    }

    mutating func lookAtProcesses() {
        var namespaces: Set<String> = []
        for name in SystemFile.names(in: "/proc") where name.allSatisfy(\.isNumber) {
            let process = "/proc/" + name
            if let namespace = SystemFile.link(process + "/ns/mnt"),
                namespaces.insert(namespace).inserted
            {
                lookAtMounts(of: process)
            }
            lookAtDescriptors(of: process, name)
        }
    }

    private mutating func lookAtMounts(of process: String) {
        for mount in Mounts.all(seenBy: process) {
            let use = "mounted at \(mount.name)"
            add(cl_device_number(mount.device.major, mount.device.minor), use)
            // btrfs shows a number of its own: the source is what tells.
            if mount.type == "btrfs" {
                add(Self.deviceNumber(String(decoding: mount.source, as: UTF8.self)), use)
            }
        }
    }

    private mutating func lookAtDescriptors(of process: String, _ id: String) {
        for descriptor in SystemFile.names(in: process + "/fd") {
            // Nothing but device nodes is looked at: what is behind others may not answer.
            guard let path = SystemFile.link(process + "/fd/" + descriptor),
                path.hasPrefix("/dev/")
            else { continue }
            guard let number = Self.deviceNumber(process + "/fd/" + descriptor),
                owners[number] != nil
            else { continue }
            let name = SystemFile.line(of: process + "/comm") ?? "?"
            // Our own errands look at devices too.
            if name != "errand" { add(number, "open in process \(id) (\(name))") }
        }
    }

    mutating func lookAtSwap() {
        for line in SystemFile.lines(of: "/proc/swaps") {
            guard let path = line.split(separator: " ").first, path.hasPrefix("/dev/") else {
                continue
            }
            add(Self.deviceNumber(OctalEscapes.removed(from: path)), "used as swap")
        }
    }

    mutating func lookAtHolders() {
        for number in owners.keys {
            let own = "/sys/dev/block/\(cl_major(number)):\(cl_minor(number))/holders"
            for holder in SystemFile.names(in: own) { add(number, Self.text(of: holder)) }
        }
    }

    private static func text(of holder: String) -> String {
        let folder = "/sys/block/" + holder
        if holder.hasPrefix("md") { return "part of the RAID /dev/\(holder)" }
        guard let name = SystemFile.line(of: folder + "/dm/name") else {
            return "held by /dev/\(holder)"
        }
        let kind = SystemFile.line(of: folder + "/dm/uuid") ?? ""
        return kind.hasPrefix("LVM-")
            ? "held by the LVM volume \(name)" : "held by /dev/mapper/\(name)"
    }

    mutating func lookAtLoops() {
        for name in SystemFile.names(in: "/sys/block") where name.hasPrefix("loop") {
            guard let file = SystemFile.line(of: "/sys/block/\(name)/loop/backing_file"),
                file.hasPrefix("/dev/")
            else { continue }
            add(Self.deviceNumber(file), "under the loop device /dev/\(name)")
        }
    }

    /// The number of a block device node; nil for anything else.
    private static func deviceNumber(_ path: String) -> UInt64? {
        guard path.hasPrefix("/dev/") || path.hasPrefix("/proc/") else { return nil }
        var facts = stat()
        guard stat(path, &facts) == 0, facts.st_mode & S_IFMT == S_IFBLK else { return nil }
        return UInt64(facts.st_rdev)
    }
}
