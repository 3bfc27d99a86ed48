internal import Host
internal import BlockModel
internal import Glibc

/// Mounts and loop devices that a killed service left behind.
enum StaleBlockDevices {
    /// Takes away everything under `directory`, an absolute path without symbolic links in which
    /// no living service mounts, except for what is in the directories `kept`. Devices that
    /// somebody still holds go with their last user. Returns what was found, one sentence each.
    /// Blocks.
    static func remove(under directory: String, keeping kept: Set<String>) -> [String] {
        var found: [String] = []
        for name in SystemFile.names(in: "/sys/block") where name.hasPrefix("loop") {
            guard let path = LoopBackingFile.path(behind: name), path.hasPrefix(directory + "/"),
                !kept.contains(where: { path.hasPrefix($0 + "/") })
            else { continue }
            // A service in another mount namespace may have files of the same paths; its mounts
            // are not among ours.
            let file = LoopBackingFile(at: path)
            guard file.filesystem != nil, LoopNode.abandon("/dev/" + name, over: file) else {
                continue
            }
            found.append("loop device /dev/\(name) over \(path) was left behind; it is removed")
        }
        for place in mounts().map(\.place)
        where place.hasPrefix(directory + "/") && !kept.contains(place) {
            FuseMount.unmount(place)
            found.append("a mount at \(place) was left behind; it is removed")
        }
        for name in SystemFile.names(in: directory) where !kept.contains(directory + "/" + name) {
            rmdir(directory + "/" + name)
        }
        return found
    }

    /// All mounts of this namespace, in the order in which they were made.
    static func mounts() -> [(place: String, filesystem: DeviceNumber)] {
        SystemFile.lines(of: "/proc/self/mountinfo").compactMap { line in
            // mountinfo: id parent major:minor root mountpoint ...
            let fields = line.split(separator: " ")
            guard fields.count > 4, let filesystem = DeviceNumber(fields[2]) else { return nil }
            return (unescaped(fields[4]), filesystem)
        }
    }

    /// Blanks and the like stand as `\ooo` in mountinfo.
    static func unescaped(_ text: Substring) -> String {
        var bytes: [UInt8] = []
        var rest = Array(text.utf8)[...]
        while let byte = rest.popFirst() {
            let digits = rest.prefix(3)
            guard byte == UInt8(ascii: "\\"), digits.count == 3,
                digits.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "7")).contains($0) })
            else {
                bytes.append(byte)
                continue
            }
            bytes.append(digits.reduce(0) { $0 &* 8 &+ ($1 - UInt8(ascii: "0")) })
            rest = rest.dropFirst(3)
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}
