internal import CLinux
internal import Glibc

/// The list of filesystems that the service has frozen: one mount point to a line, in the order of
/// freezing. Whoever finds it after the service's death thaws them.
package enum FrozenFilesystems {
    /// Name of the list in the runtime directory.
    package static let listName = "frozen"

    /// Thaws what is listed, the last frozen first, and removes the list. Returns the mount
    /// points that were thawed. Blocks.
    @discardableResult
    package static func thaw(listedIn path: String) -> [String] {
        guard let text = SystemFile.read(path) else { return [] }
        var thawed: [String] = []
        for line in text.split(separator: "\n").reversed() {
            let mountPoint = String(line)
            let descriptor = open(mountPoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
            guard descriptor >= 0 else { continue }
            // One that is not frozen (any more) says so, which is as good.
            if cl_thaw(descriptor) == 0 { thawed.append(mountPoint) }
            close(descriptor)
        }
        unlink(path)
        return thawed
    }
}
