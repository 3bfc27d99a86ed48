package import BlockModel
internal import CLinux
package import FreezePlanning
internal import Glibc
internal import Host

/// What is mounted here and what it stands on, looked up in /proc and /sys. All of it may block.
package enum MountSurvey {
    /// All mounted filesystems, in the order in which they were first mounted.
    package static func filesystems() throws(AttachError) -> [MountedFilesystem] {
        filesystems(of: try mounts())
    }

    /// Filesystems that are mounted in other mount namespaces and not in this one, as far as this
    /// process may look: a namespace that no process is in, or whose processes are hidden from it,
    /// stays unseen.
    package static func elsewhere() throws(AttachError) -> [ForeignFilesystem] {
        let here = Set(try mounts().map(\.device))
        let own = SystemFile.link("/proc/self/ns/mnt")
        var known = here
        // A process sees what is below its root directory.
        var seen: Set<[String]> = []
        var found: [ForeignFilesystem] = []
        for name in SystemFile.names(in: "/proc") {
            // A process that has ended meanwhile counts as none: others of its namespace follow.
            guard let processID = Int32(name),
                let namespace = SystemFile.link("/proc/\(name)/ns/mnt"),
                namespace != own, let root = SystemFile.link("/proc/\(name)/root"),
                !seen.contains([namespace, root]),
                let text = SystemFile.readBytes(
                    "/proc/\(name)/mountinfo", byteCountMax: mountTableByteCountMax),
                !text.isEmpty, let table = try? MountTable(parsing: text)
            else { continue }
            seen.insert([namespace, root])
            let foreign = filesystems(of: table.mounts.filter { !known.contains($0.device) })
            known.formUnion(foreign.map(\.device))
            found += foreign.map { ForeignFilesystem(filesystem: $0, processID: processID) }
        }
        return found
    }

    private static func filesystems(of mounts: [Mount]) -> [MountedFilesystem] {
        var order: [DeviceNumber] = []
        var found: [DeviceNumber: MountedFilesystem] = [:]
        for mount in mounts {
            if found[mount.device] == nil {
                order.append(mount.device)
                found[mount.device] = MountedFilesystem(
                    device: mount.device, mounts: [], foundations: foundations(of: mount))
            }
            found[mount.device]?.mounts.append(mount)
        }
        return order.compactMap { found[$0] }
    }

    /// Numbers of all that a file, directory or block device stands on; empty when it cannot be
    /// opened.
    package static func underlyingDevices(ofPath path: String) -> Set<DeviceNumber> {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
        guard descriptor >= 0 else { return [] }
        defer { close(descriptor) }
        return underlyingDevices(ofDescriptor: descriptor)
    }

    /// Numbers of all that an open file stands on; empty for what is not a file: pipes, sockets,
    /// terminals.
    package static func underlyingDevices(ofDescriptor descriptor: Int32) -> Set<DeviceNumber> {
        var facts = stat()
        guard fstat(descriptor, &facts) == 0,
            [S_IFREG, S_IFDIR, S_IFBLK].contains(facts.st_mode & S_IFMT)
        else { return [] }
        return numbers(BlockTopology.foundations(of: descriptor))
    }

    /// The numbers of block devices and filesystems.
    package static func numbers(_ foundations: Set<Foundation>) -> Set<DeviceNumber> {
        Set(foundations.map { DeviceNumber(statNumber: $0.device) })
    }

    /// The number of the filesystem an open file is in, and those of its block devices, where
    /// `stat` tells neither (btrfs gives every subvolume a number of its own).
    static func numbersBehindAnonymousDevice(of descriptor: Int32) -> [DeviceNumber] {
        var id: UInt64 = 0
        // Without an answer the result of stat is used.
        guard cl_mount_id(descriptor, &id) == 0,
            let mount = (try? mounts())?.first(where: { $0.id == id })
        else { return [] }
        return [mount.device] + sourceDevices(of: mount)
    }

    private static func mounts() throws(AttachError) -> [Mount] {
        let file = "/proc/self/mountinfo"
        guard let text = SystemFile.readBytes(file, byteCountMax: mountTableByteCountMax) else {
            throw AttachError(
                .failed, "\(file) cannot be read, so what is mounted is not known; mount /proc")
        }
        do throws(MountTableFault) {
            return try MountTable(parsing: text).mounts
        } catch {
            throw AttachError(.failed, "line \(error.line) of \(file) is not understood")
        }
    }

    /// Room for some 100,000 mounts.
    private static let mountTableByteCountMax = 32 << 20

    private static func foundations(of mount: Mount) -> Set<DeviceNumber> {
        var found: Set<Foundation> = []
        for number in [mount.device] + sourceDevices(of: mount) {
            BlockTopology.descend(major: number.major, minor: number.minor, into: &found)
        }
        return numbers(found)
    }

    /// The block devices of a filesystem whose device number is anonymous: the one it was
    /// mounted from, and for btrfs all that belong to it.
    private static func sourceDevices(of mount: Mount) -> [DeviceNumber] {
        guard mount.device.major == 0, mount.source.starts(with: "/".utf8) else { return [] }
        var facts = stat()
        let path = mount.source.map(CChar.init(bitPattern:)) + [0]
        guard stat(path, &facts) == 0, facts.st_mode & S_IFMT == S_IFBLK else { return [] }
        let source = DeviceNumber(statNumber: UInt64(facts.st_rdev))
        for filesystem in SystemFile.names(in: "/sys/fs/btrfs") {
            let folder = "/sys/fs/btrfs/\(filesystem)/devices"
            let members = SystemFile.names(in: folder).compactMap { name in
                SystemFile.read("\(folder)/\(name)/dev").flatMap {
                    DeviceNumber($0.prefix { $0 != "\n" })
                }
            }
            if members.contains(source) { return members }
        }
        return [source]
    }
}
