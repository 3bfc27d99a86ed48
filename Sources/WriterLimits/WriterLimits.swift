internal import BlockModel
internal import ClientSupport
package import ControlDocuments
internal import Glibc
internal import Host

/// Limits of the io controller on what is written to some disks, in every cgroup at the top of the hierarchy.
/// The processes at its root, the kernel's own, have no limit.
package struct WriterLimits {
    /// What a group had before, to be given back to it.
    private struct Former {
        var file: String
        var disk: String
        var limit: UInt64?
    }

    private let root: String
    private let disks: [String]
    private let bytesPerSecond: UInt64
    private var former: [Former] = []

    /// Where the hierarchy is mounted. Tests have one of their own.
    private static var standardRoot: String {
        Defaults.environment("STILLPOINT_CGROUPS") ?? "/sys/fs/cgroup"
    }
    private static let file = "io.max"

    /// `disks` are numbers of whole disks, MAJOR:MINOR. Throws when the machine has no cgroups that can limit.
    package init(disks: [String], bytesPerSecond: UInt64) throws(ControlError) {
        root = Self.standardRoot
        self.disks = disks
        self.bytesPerSecond = bytesPerSecond
        guard SystemFile.exists("\(root)/cgroup.controllers") else {
            throw ControlError(
                .unsuitable,
                "--throttle-writers needs cgroups of version 2, and \(root) has none; leave it out, or slow "
                    + "the writers down by other means")
        }
    }

    /// The number of the disk that a block device is, or is a partition of; nil when it has none.
    package static func disk(ofDevice path: String) -> String? {
        var facts = stat()
        guard stat(path, &facts) == 0, facts.st_mode & S_IFMT == S_IFBLK,
            let own = SystemFile.resolved(
                "/sys/dev/block/\(DeviceNumber(statNumber: UInt64(facts.st_rdev)))")
        else { return nil }
        let isPartition = SystemFile.exists("\(own)/partition")
        return SystemFile.line(of: isPartition ? "\(own)/../dev" : "\(own)/dev")
    }

    private var files: [String] {
        SystemFile.names(in: root).map { "\(root)/\($0)/\(Self.file)" }
            .filter { SystemFile.exists($0) }
    }

    /// Limits every group that has no lower limit. What was limited stays so when it fails; `lift` undoes that.
    package mutating func set() throws(ControlError) {
        var files = files
        if files.isEmpty {
            // Refused: the files are missing, which is said below.
            _ = Self.write("+io", to: "\(root)/cgroup.subtree_control")
            files = self.files
        }
        guard !files.isEmpty else {
            throw ControlError(
                .unsuitable,
                "--throttle-writers needs the io controller, which no cgroup in \(root) has")
        }
        for file in files {
            for disk in disks {
                // A group that ended meanwhile has no writers.
                guard let text = SystemFile.read(file) else { continue }
                let limit = WriteLimitLine.limit(ofDisk: disk, in: text)
                if let limit, limit <= bytesPerSecond { continue }
                former.append(Former(file: file, disk: disk, limit: limit))
                let failure = Self.write(
                    WriteLimitLine.setting(bytesPerSecond, ofDisk: disk), to: file)
                guard failure == 0 || !SystemFile.exists(file) else {
                    throw ControlError(
                        .failed,
                        "writers to disk \(disk) cannot be slowed down: \(file): "
                            + SystemFile.errorText(failure))
                }
            }
        }
    }

    /// Gives the groups back what they had, unless somebody changed it meanwhile. Returns what could not be.
    package mutating func lift() -> String? {
        var left: [String] = []
        for former in former {
            guard let text = SystemFile.read(former.file),
                WriteLimitLine.limit(ofDisk: former.disk, in: text) == bytesPerSecond
            else { continue }
            let failure = Self.write(
                WriteLimitLine.setting(former.limit, ofDisk: former.disk), to: former.file)
            if failure != 0, SystemFile.exists(former.file) {
                left.append(
                    "the limit of writers to disk \(former.disk) stays: \(former.file): "
                        + SystemFile.errorText(failure))
            }
        }
        former = []
        return left.isEmpty ? nil : left.joined(separator: "; ")
    }

    /// Returns 0 or an errno value.
    private static func write(_ text: String, to file: String) -> Int32 {
        let descriptor = open(file, O_WRONLY | O_TRUNC | O_CLOEXEC)
        guard descriptor >= 0 else { return errno }
        defer { close(descriptor) }
        let bytes = Array("\(text)\n".utf8)
        return Glibc.write(descriptor, bytes, bytes.count) == bytes.count ? 0 : errno
    }
}
