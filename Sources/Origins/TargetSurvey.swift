internal import CLinux
internal import Glibc
internal import Host

// What a program that writes to a file or block device outside the service must know first: what it
// stands on, who uses it, which disk it is and whether somebody wrote to it. Everything here
// blocks.

/// Looks at files and block devices that something is to be written to.
package enum TargetSurvey {
    /// A file or block device and all it stands on.
    package struct DeviceStack: Sendable {
        private let own: Foundation
        private let all: Set<Foundation>

        fileprivate init(own: Foundation, all: Set<Foundation>) {
            self.own = own
            self.all = all
        }

        /// It is `other`, or lies on it through any number of partitions, loop devices, volumes
        /// and mounts.
        package func stands(on other: DeviceStack) -> Bool { all.contains(other.own) }
    }

    /// What an open file or block device stands on; nil when the kernel does not report it.
    package static func deviceStack(ofDescriptor descriptor: Int32) -> DeviceStack? {
        var facts = CLinux.cl_file_facts()
        guard cl_file_facts(descriptor, &facts) == 0 else { return nil }
        let isBlockDevice = facts.mode & UInt32(Glibc.S_IFMT) == UInt32(Glibc.S_IFBLK)
        let own =
            isBlockDevice
            ? Foundation(
                device: cl_device_number(facts.special_major, facts.special_minor), inode: 0)
            : Foundation(
                device: cl_device_number(facts.device_major, facts.device_minor),
                inode: facts.inode)
        return DeviceStack(own: own, all: BlockTopology.foundations(of: descriptor))
    }

    /// The same of what lies at a path; nil when it cannot be opened.
    package static func deviceStack(ofPath path: String) -> DeviceStack? {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        return deviceStack(ofDescriptor: descriptor)
    }

    // MARK: Users

    /// The path of a loop device that stands on an open file; nil when none does.
    package static func loopDevice(overDescriptor descriptor: Int32, path: String) -> String? {
        var facts = CLinux.cl_file_facts()
        guard cl_file_facts(descriptor, &facts) == 0 else { return nil }
        return LoopBacking.loopDevice(
            over: path, device: cl_device_number(facts.device_major, facts.device_minor),
            inode: facts.inode)
    }

    /// Takes the locks that QEMU honours on an open file, for writing or for reading alone; false
    /// when QEMU or one of its tools uses the file. They last as long as the open file.
    package static func lockAgainstQEMU(_ descriptor: Int32, isReadOnly: Bool) -> Bool {
        switch ImageLocks.takeBytes(descriptor, isReadOnly: isReadOnly) {
        case .taken: true
        case .inUse: false
        // A filesystem without such locks: QEMU could not take them there either.
        case .failed: true
        }
    }

    // MARK: Disks

    /// A block device, as it can be told from others and from what it was.
    package struct Disk: Equatable, Sendable {
        /// What it calls itself wherever it is plugged in; empty when it has no lasting name.
        package var identity: String
        /// The run of the machine that the next values belong to.
        package var boot: String
        /// The kernel's number of the disk, another one each time a disk appears; 0 before Linux
        /// 5.15.
        package var sequence: UInt64
        /// Sectors written and discarded since it appeared; nil when the kernel counts nothing.
        package var touchedSectors: UInt64?
        /// A partition: the same of its disk, outside all of the disk's partitions.
        package var besideSectors: UInt64?
        /// A loop device: the file that it shows.
        package var backing: Backing?
        /// Where its partitions begin, in bytes.
        package var partitionStarts: [UInt64]
    }

    /// The file of a loop device, as it stands.
    package struct Backing: Equatable, Sendable {
        package var size: UInt64
        package var modifiedNanoseconds: Int64
        package var changedNanoseconds: Int64
    }

    private static let sectorByteCount: UInt64 = 512

    /// The disk that is open; nil for what is not a block device.
    package static func disk(ofDescriptor descriptor: Int32) -> Disk? {
        var facts = CLinux.cl_file_facts()
        guard cl_file_facts(descriptor, &facts) == 0,
            facts.mode & UInt32(Glibc.S_IFMT) == UInt32(Glibc.S_IFBLK)
        else { return nil }
        let folder = "/sys/dev/block/\(facts.special_major):\(facts.special_minor)"
        let isPartition = SystemFile.read("\(folder)/partition") != nil
        let whole = isPartition ? "\(folder)/.." : folder
        var identity = OriginInspector.stableID(ofDisk: whole, descriptor)
        if isPartition, !identity.isEmpty {
            identity += " from sector \(OriginInspector.line(of: "\(folder)/start") ?? "?")"
        }
        var sequence: UInt64 = 0
        if cl_disk_sequence(descriptor, &sequence) != 0 { sequence = 0 }
        let partitions = isPartition ? [] : partitionFolders(of: folder)
        return Disk(
            identity: identity, boot: BootID.current.description, sequence: sequence,
            touchedSectors: touched(folder, ofDisk: whole),
            besideSectors: isPartition ? beside(whole) : nil, backing: backing(of: folder),
            partitionStarts: partitions.compactMap { partition in
                OriginInspector.line(of: "\(partition)/start").flatMap { UInt64($0) }.map {
                    $0 * sectorByteCount
                }
            })
    }

    private static func touched(_ folder: String, ofDisk disk: String) -> UInt64? {
        guard OriginInspector.line(of: "\(disk)/queue/iostats") == "1",
            let counters = OriginInspector.counters("\(folder)/stat")
        else { return nil }
        // Sums of counters that the kernel lets wrap: only whether they differ matters.
        return counters.writtenSectors &+ counters.discardedSectors
    }

    private static func partitionFolders(of disk: String) -> [String] {
        SystemFile.names(in: disk).map { "\(disk)/\($0)" }
            .filter { SystemFile.read("\($0)/partition") != nil }
    }

    /// What was written to a disk without going through one of its partitions.
    private static func beside(_ disk: String) -> UInt64? {
        guard var sectors = touched(disk, ofDisk: disk) else { return nil }
        for partition in partitionFolders(of: disk) {
            guard let its = touched(partition, ofDisk: disk) else { return nil }
            sectors = sectors &- its
        }
        return sectors
    }

    private static func backing(of folder: String) -> Backing? {
        guard let path = OriginInspector.line(of: "\(folder)/loop/backing_file") else { return nil }
        let file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard file >= 0 else { return nil }
        defer { close(file) }
        var facts = CLinux.cl_file_facts()
        guard cl_file_facts(file, &facts) == 0 else { return nil }
        return Backing(
            size: facts.size,
            modifiedNanoseconds: facts.modify_seconds &* 1_000_000_000
                &+ Int64(facts.modify_nanoseconds),
            changedNanoseconds: facts.change_seconds &* 1_000_000_000
                &+ Int64(facts.change_nanoseconds))
    }

    /// Waits until a write would be stamped with another time than any write before this call.
    package static func waitForNextStamp() { OriginInspector.waitForNextStamp() }
}
