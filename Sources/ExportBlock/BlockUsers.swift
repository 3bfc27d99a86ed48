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
            + BlockFiles.names(in: folder).filter { $0.hasPrefix(disk + "p") }.map {
                folder + "/" + $0
            }
        return folders.compactMap { number(BlockFiles.firstLine($0 + "/dev")) }
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
        for name in BlockFiles.names(in: "/proc") where name.allSatisfy(\.isNumber) {
            let process = "/proc/" + name
            if let namespace = BlockFiles.link(process + "/ns/mnt"),
                namespaces.insert(namespace).inserted
            {
                lookAtMounts(of: process)
            }
            lookAtDescriptors(of: process, name)
        }
    }

    private mutating func lookAtMounts(of process: String) {
        for line in BlockFiles.lines(process + "/mountinfo") {
            // mountinfo: id parent major:minor root mountpoint options ... - type source options
            let fields = line.split(separator: " ")
            guard fields.count > 4, let divider = fields.firstIndex(of: "-"),
                fields.count > divider + 2
            else { continue }
            let use = "mounted at \(BlockLeftovers.unescaped(fields[4]))"
            add(BlockUsers.number(fields[2]), use)
            // btrfs shows a number of its own: the source is what tells.
            if fields[divider + 1] == "btrfs" {
                add(Self.deviceNumber(BlockLeftovers.unescaped(fields[divider + 2])), use)
            }
        }
    }

    private mutating func lookAtDescriptors(of process: String, _ id: String) {
        for descriptor in BlockFiles.names(in: process + "/fd") {
            // Nothing but device nodes is looked at: what is behind others may not answer.
            guard let path = BlockFiles.link(process + "/fd/" + descriptor),
                path.hasPrefix("/dev/")
            else { continue }
            guard let number = Self.deviceNumber(process + "/fd/" + descriptor),
                owners[number] != nil
            else { continue }
            let name = BlockFiles.firstLine(process + "/comm") ?? "?"
            // Our own errands look at devices too.
            if name != "errand" { add(number, "open in process \(id) (\(name))") }
        }
    }

    mutating func lookAtSwap() {
        for line in BlockFiles.lines("/proc/swaps") {
            guard let path = line.split(separator: " ").first, path.hasPrefix("/dev/") else {
                continue
            }
            add(Self.deviceNumber(BlockLeftovers.unescaped(path)), "used as swap")
        }
    }

    mutating func lookAtHolders() {
        for number in owners.keys {
            let own = "/sys/dev/block/\(cl_major(number)):\(cl_minor(number))/holders"
            for holder in BlockFiles.names(in: own) { add(number, Self.text(of: holder)) }
        }
    }

    private static func text(of holder: String) -> String {
        let folder = "/sys/block/" + holder
        if holder.hasPrefix("md") { return "part of the RAID /dev/\(holder)" }
        guard let name = BlockFiles.firstLine(folder + "/dm/name") else {
            return "held by /dev/\(holder)"
        }
        let kind = BlockFiles.firstLine(folder + "/dm/uuid") ?? ""
        return kind.hasPrefix("LVM-")
            ? "held by the LVM volume \(name)" : "held by /dev/mapper/\(name)"
    }

    mutating func lookAtLoops() {
        for name in BlockFiles.names(in: "/sys/block") where name.hasPrefix("loop") {
            guard let file = BlockFiles.firstLine("/sys/block/\(name)/loop/backing_file"),
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

/// Small files of /proc and /sys.
enum BlockFiles {
    /// Names in a folder, without `.` and `..`; empty when it cannot be read.
    static func names(in folder: String) -> [String] {
        guard let handle = opendir(folder) else { return [] }
        defer { closedir(handle) }
        var names: [String] = []
        while let entry = readdir(handle) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
                pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != ".", name != ".." { names.append(name) }
        }
        return names
    }

    /// The first line of a file; nil when it cannot be read.
    static func firstLine(_ path: String) -> String? {
        guard let file = fopen(path, "re") else { return nil }
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 8192)
        guard fgets(&line, Int32(line.count), file) != nil else { return nil }
        let bytes = line.prefix { $0 != 0 && $0 != 10 }
        return String(decoding: bytes.map(UInt8.init(bitPattern:)), as: UTF8.self)
    }

    /// The lines of a file; none when it cannot be read.
    static func lines(_ path: String) -> [String] {
        guard let file = fopen(path, "re") else { return [] }
        defer { fclose(file) }
        var lines: [String] = []
        var line: UnsafeMutablePointer<CChar>?
        var capacity = 0
        defer { free(line) }
        while getline(&line, &capacity, file) > 0, let line { lines.append(String(cString: line)) }
        return lines
    }

    /// Where a symbolic link leads; nil when it is none.
    static func link(_ path: String) -> String? {
        var bytes = [CChar](repeating: 0, count: 4096)
        let count = readlink(path, &bytes, bytes.count)
        guard count > 0 else { return nil }
        return String(decoding: bytes[..<count].map(UInt8.init(bitPattern:)), as: UTF8.self)
    }
}
