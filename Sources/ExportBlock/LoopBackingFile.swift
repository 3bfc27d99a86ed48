internal import Host
internal import BlockModel
internal import CLinux
internal import Glibc

/// The file of ours behind a loop device, as the kernel knows it.
struct LoopBackingFile: Sendable {
    /// Without symbolic links.
    let path: String
    /// Of the filesystem that is mounted there, which no other one has as long as a loop device
    /// keeps it; nil when nothing is mounted there in this namespace.
    let filesystem: DeviceNumber?

    init(at path: String) {
        self.path = path
        let directory = path[..<(path.lastIndex(of: "/") ?? path.startIndex)]
        filesystem = Mounts.all().last { $0.name == directory }?.device
    }

    /// What the kernel adds to the path of a file that lost its name: it does so with one whose
    /// session is gone, when somebody looks for it.
    private static let deletedMark = " (deleted)"

    /// Whether it is behind the loop device that is open as `node`, `/dev/loopN`. May wait for the
    /// answer of the file's session.
    func isBehind(_ node: Int32, _ device: String) -> Bool {
        // The kernel tells this without asking the filesystem: another's may hang.
        let name = device.split(separator: "/").last ?? ""
        guard let found = Self.path(behind: String(name)) else { return false }
        // Seen from its own root when somebody has unmounted its filesystem; then all that is known
        // of that one is that it has no device.
        let isUnmounted = found == "/" + (path.split(separator: "/").last ?? "")
        guard isUnmounted || (found == path && filesystem != nil) else { return false }
        var number: UInt64 = 0
        var inode: UInt64 = 0
        guard cl_loop_backing(node, &number, &inode) == 0 else {
            // Of a session that has ended nothing more can be known.
            return errno == ENOTCONN || errno == ECONNABORTED
        }
        let device = DeviceNumber(statNumber: number)
        return filesystem.map { $0 == device } ?? (device.major == 0)
    }

    /// The path of the file behind the loop device `name`, `loopN`; nil when it has none.
    static func path(behind name: String) -> String? {
        guard let file = fopen("/sys/block/\(name)/loop/backing_file", "re") else { return nil }
        defer { fclose(file) }
        var bytes = [UInt8](repeating: 0, count: 8192)
        let count = fread(&bytes, 1, bytes.count, file)
        guard count > 1, bytes[count - 1] == UInt8(ascii: "\n") else { return nil }
        let path = String(decoding: bytes[..<(count - 1)], as: UTF8.self)
        return path.hasSuffix(deletedMark) ? String(path.dropLast(deletedMark.count)) : path
    }
}
