internal import BlockModel
internal import CLinux
internal import Glibc
internal import RingIO

/// The process that syncs, freezes and thaws one filesystem for a `FilesystemFreezer`.
///
/// It answers once when the filesystem is opened and written back, then once to each order, with an
/// errno value. When no order will come any more it thaws what it froze, and ends.
package enum FreezeErrand {
    /// The first argument.
    package static let command = "freeze"
    static let freeze = "freeze"
    static let thaw = "thaw"

    /// The arguments that start it: each mount as its id and its path in hexadecimal digits.
    static func words(_ mounts: [Mount], _ lockPath: String) -> [String] {
        [command, lockPath]
            + mounts.map { mount in
                "\(mount.id):"
                    + mount.path.map { byte in
                        (byte < 16 ? "0" : "") + String(byte, radix: 16)
                    }.joined()
            }
    }

    /// Runs it; `words` are the arguments behind the first.
    package static func run(_ words: [String]) {
        let lock = words.first.map(FrozenFilesystems.share) ?? -1
        var failure = lock < 0 ? errno : 0
        var descriptor: Int32 = -1
        if failure == 0 {
            descriptor = open(words.dropFirst())
            failure =
                descriptor < 0 ? ESTALE : Self.failure(cl_sync_filesystem(descriptor))
        }
        ErrandProcess.answer(["\(failure)"])
        var isFrozen = false
        while let order = ErrandProcess.nextOrder() {
            var result = EINVAL
            if order == freeze, !isFrozen {
                result = Self.failure(cl_freeze_filesystem(descriptor))
                isFrozen = result == 0
            } else if order == thaw, isFrozen {
                result = Self.failure(cl_thaw_filesystem(descriptor))
                isFrozen = false
            }
            ErrandProcess.answer(["\(result)"])
        }
        if isFrozen { _ = cl_thaw_filesystem(descriptor) }
    }

    private static func failure(_ result: Int32) -> Int32 { result == 0 ? 0 : errno }

    /// A descriptor of the filesystem through the first of its mounts that is not hidden by
    /// another one; -1 when there is none.
    private static func open(_ mounts: ArraySlice<String>) -> Int32 {
        for mount in mounts {
            let parts = mount.split(separator: ":")
            guard parts.count == 2, let wanted = UInt64(parts[0]) else { continue }
            let digits = Array(parts[1].utf8)
            let path = stride(from: 0, to: digits.count - 1, by: 2).compactMap {
                CChar(
                    truncatingIfNeeded: Int(
                        String(decoding: digits[$0...$0 + 1], as: UTF8.self), radix: 16) ?? 0)
            }
            let descriptor = Glibc.open(path + [0], O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
            guard descriptor >= 0 else { continue }
            var id: UInt64 = 0
            if cl_mount_id(descriptor, &id) == 0, id == wanted { return descriptor }
            close(descriptor)
        }
        return -1
    }
}
