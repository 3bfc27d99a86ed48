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
        for place in Mounts.all().map(\.name)
        where place.hasPrefix(directory + "/") && !kept.contains(place) {
            FuseMount.unmount(place)
            found.append("a mount at \(place) was left behind; it is removed")
        }
        for name in SystemFile.names(in: directory) where !kept.contains(directory + "/" + name) {
            rmdir(directory + "/" + name)
        }
        return found
    }
}
