internal import ControlDocuments
internal import ExportBlock
internal import Glibc
internal import Host
internal import ServiceState

// Names of block devices that do not change: links in one directory of the machine, `NAME` to
// `/dev/loopN` and, with partitions, `NAME1` to `/dev/loopNp1`.
//
// Invariants
// - A link that leads to a block device which is there is not replaced: another service, or
//   another device of this one, has the name.
// - A link that leads nowhere, or to a loop device that shows something else now, was left behind,
//   and is replaced. So is one to a device that nobody uses and whose service has ended.

/// The links of block devices; see the head of this file. All calls block.
package struct BlockLinks: Sendable {
    /// Where they are, unless tests say otherwise.
    package static let directory = "/dev/stillpoint"

    private let directory: String

    package init(directory: String) { self.directory = directory }

    /// Makes the links of a block device and returns the path of the first. Those that were there
    /// already are its own.
    func make(_ name: String, to node: String, partitions: Bool) throws(ControlError) -> String {
        if mkdir(directory, 0o755) != 0 && errno != EEXIST { throw failure(directory, errno) }
        let names =
            [(name, node)]
            + (partitions ? Self.partitions(of: node) : []).map {
                (name + "\($0)", node + "p\($0)")
            }
        for (link, target) in names { try checkFree(link, for: target) }
        for (link, target) in names {
            let path = directory + "/" + link
            let temporary = directory + "/." + link + ".new"
            unlink(temporary)
            guard symlink(target, temporary) == 0, rename(temporary, path) == 0 else {
                throw failure(path, errno)
            }
        }
        return directory + "/" + name
    }

    /// Removes the links of a block device. A link whose loop device somebody else has set up
    /// meanwhile, perhaps by this name, is theirs: it stays until a device of its name is attached.
    func remove(_ name: String, to node: String) {
        for link in SystemFile.names(in: directory) where link.hasPrefix(name) {
            let number = link.dropFirst(name.count)
            guard number.allSatisfy(\.isNumber) else { continue }
            let target = number.isEmpty ? node : node + "p" + number
            guard Self.target(of: directory + "/" + link) == target,
                Self.content(of: target, as: link) != .other
            else { continue }
            unlink(directory + "/" + link)
        }
    }

    private func checkFree(_ link: String, for wanted: String) throws(ControlError) {
        let path = directory + "/" + link
        var facts = stat()
        guard lstat(path, &facts) == 0 else { return }
        guard facts.st_mode & S_IFMT == S_IFLNK, let target = Self.target(of: path) else {
            throw ControlError(
                .busy, "\(path) exists and is not a link to a block device; remove it")
        }
        guard target != wanted, Self.isInUse(target, as: link), !Self.isDeserted(target) else {
            return
        }
        throw ControlError(
            .nameTaken,
            "the name \(path) is taken: it leads to \(target), a block device of another service or "
                + "a partition of another device; give the device another name")
    }

    private static func isInUse(_ target: String, as link: String) -> Bool {
        guard target.hasPrefix("/dev/loop") else { return true }
        return content(of: target, as: link) == .device
    }

    /// Whether the service that made this block device has ended and nobody uses what it left.
    private static func isDeserted(_ target: String) -> Bool {
        let disk = "loop" + target.dropFirst("/dev/loop".count).prefix { $0.isNumber }
        guard let file = SystemFile.line(of: "/sys/block/\(disk)/loop/backing_file") else {
            return false
        }
        // The file is RUNTIME_DIRECTORY/block/NUMBER/NAME.
        let runtime = "/" + file.split(separator: "/").dropLast(3).joined(separator: "/")
        let lock = open(LockedDirectory.runtimeLock(in: runtime), O_RDONLY | O_CLOEXEC)
        if lock >= 0 {
            defer { close(lock) }
            guard !FileLock.isHeld(lock) else { return false }
        }
        return BlockUsers.find(of: ["/dev/" + disk]).isEmpty
    }

    /// What a loop device, or the disk of a partition, shows.
    private enum Content {
        case nothing
        /// A device that the link may be of.
        case device
        case other
    }

    /// The file behind a loop device of ours is called like the device, in a directory of its own
    /// under `block`.
    private static func content(of target: String, as link: String) -> Content {
        let disk = "loop" + target.dropFirst("/dev/loop".count).prefix { $0.isNumber }
        // No text: the loop device is free.
        guard let text = try? readWhole("/sys/block/\(disk)/loop/backing_file", byteCountMax: 8192)
        else { return .nothing }
        let parts = String(decoding: text, as: UTF8.self).split { $0 == "/" || $0 == "\n" }
        guard parts.count >= 3, parts[parts.count - 3] == "block",
            link.hasPrefix(parts[parts.count - 1])
        else { return .other }
        return .device
    }

    private static func target(of path: String) -> String? {
        guard let text = SystemFile.link(path) else { return nil }
        // udev, where it has our rules, makes the same links in its own form.
        return text.hasPrefix("../") ? "/dev/" + text.dropFirst(3) : text
    }

    /// Numbers of the partitions that a loop device has.
    private static func partitions(of node: String) -> [Int] {
        let disk = String(node.dropFirst("/dev/".count))
        return SystemFile.names(in: "/sys/block/" + disk).compactMap { name in
            name.hasPrefix(disk + "p") ? Int(name.dropFirst(disk.count + 1)) : nil
        }.sorted()
    }

    private func failure(_ path: String, _ errnoValue: Int32) -> ControlError {
        ControlError(
            .failed,
            "\(path): \(errnoText(errnoValue)); block devices get their names there")
    }
}
