package import BlockModel
internal import CLinux
package import ChangeTracking
internal import Glibc
internal import Host

// Looks at an open origin: which one it is, and how it stands. Everything here blocks.
//
// Files tell by their times whether they were written to; block devices by counters that the
// kernel keeps, unless it was told not to or the driver does not.

/// Looks at origins.
package enum OriginInspector {
    /// The origin behind `descriptor`, which nobody writes to at this moment; nil when the kernel
    /// does not report it. `probe`: a descriptor that reads past the page cache, to see whether
    /// reads are counted; nil when there is none.
    package static func record(of descriptor: Int32, probe: Int32?) -> OriginRecord? {
        var facts = CLinux.cl_file_facts()
        guard cl_file_facts(descriptor, &facts) == 0 else { return nil }
        if facts.mode & UInt32(Glibc.S_IFMT) == UInt32(Glibc.S_IFBLK) {
            return blockDevice(descriptor, facts, probe: probe)
        }
        return OriginRecord(
            identity: .file(
                filesystem: filesystem(of: descriptor, facts), inode: facts.inode,
                birth: time(facts.birth_seconds, facts.birth_nanoseconds)),
            state: .file(
                size: facts.size, modified: time(facts.modify_seconds, facts.modify_nanoseconds),
                changed: time(facts.change_seconds, facts.change_nanoseconds)))
    }

    /// What the filesystem of an open file calls itself; its device number where it keeps no id.
    /// That number is another one after the next mount where it stands for no device (btrfs), and
    /// after a restart of the machine where disks are found in another order. btrfs counts the
    /// subvolume into its id, so the copy of a file in a snapshot is another file.
    private static func filesystem(of descriptor: Int32, _ facts: cl_file_facts) -> UInt64 {
        var id: UInt64 = 0
        if cl_filesystem_id(descriptor, &id) == 0, id != 0 { return id }
        return cl_device_number(facts.device_major, facts.device_minor)
    }

    /// Waits until a write would be stamped with another time than any write before this call.
    package static func waitForNextStamp() {
        let end = cl_now_nanoseconds() + 2 * cl_stamp_nanoseconds()
        while cl_now_nanoseconds() <= end { usleep(1000) }
    }

    private static func time(_ seconds: Int64, _ nanoseconds: UInt32) -> FileTime {
        // What a broken filesystem says must not end the service.
        FileTime(seconds: seconds, nanoseconds: min(nanoseconds, 999_999_999))
    }

    // MARK: Block devices

    private static func blockDevice(
        _ descriptor: Int32, _ facts: cl_file_facts, probe: Int32?
    ) -> OriginRecord? {
        var size: UInt64 = 0
        guard cl_block_device_size(descriptor, &size) == 0 else { return nil }
        var sequence: UInt64 = 0
        // Before Linux 5.15 disks have no number: then it is 0 for all, and only the id is
        // compared.
        if cl_disk_sequence(descriptor, &sequence) != 0 { sequence = 0 }
        let folder = "/sys/dev/block/\(facts.special_major):\(facts.special_minor)"
        let isPartition = SystemFile.read("\(folder)/partition") != nil
        let disk = isPartition ? "\(folder)/.." : folder
        var stableID = Self.stableID(ofDisk: disk, descriptor)
        if isPartition, !stableID.isEmpty {
            stableID += " from sector \(line(of: "\(folder)/start") ?? "?")"
        }
        while stableID.utf8.count > OriginIdentity.stableIDByteCountMax { stableID.removeLast() }
        let identity = OriginIdentity.blockDevice(stableID: stableID, sequence: sequence)
        guard line(of: "\(disk)/queue/iostats") == "1", let probe,
            countsReads(probe, statistics: "\(folder)/stat"),
            let own = counters("\(folder)/stat"), let whole = counters("\(disk)/stat")
        else { return OriginRecord(identity: identity, state: .unknown(size: size)) }
        return OriginRecord(
            identity: identity, state: .blockDevice(size: size, own: own, disk: whole))
    }

    /// What the disk calls itself, or its volume manager does.
    static func stableID(ofDisk folder: String, _ descriptor: Int32) -> String {
        for name in ["dm/uuid", "wwid", "device/wwid", "md/uuid", "serial", "device/serial"] {
            if let text = line(of: "\(folder)/\(name)"), !text.isEmpty { return "\(name) \(text)" }
        }
        // A loop device is the part of the file that it shows.
        guard let path = line(of: "\(folder)/loop/backing_file") else { return "" }
        let backing = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard backing >= 0 else { return "" }
        defer { close(backing) }
        var facts = CLinux.cl_file_facts()
        guard cl_file_facts(backing, &facts) == 0 else { return "" }
        let offset = line(of: "\(folder)/loop/offset") ?? "?"
        return "loop over \(filesystem(of: backing, facts)) inode \(facts.inode) born "
            + "\(facts.birth_seconds).\(facts.birth_nanoseconds) from byte \(offset)"
    }

    /// Whether a read is seen in the statistics: some drivers count nothing.
    private static func countsReads(_ probe: Int32, statistics path: String) -> Bool {
        guard let before = fields(path) else { return false }
        let buffer = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 4096)
        defer { buffer.deallocate() }
        guard pread(probe, buffer, 4096, 0) == 4096 else { return false }
        // Counted a moment after the read has returned.
        for _ in 0..<10 {
            guard let after = fields(path) else { return false }
            if after[0] != before[0] { return true }
            waitForNextStamp()
        }
        return false
    }

    /// Reads the counters of writing: Documentation/block/stat.rst of the kernel.
    static func counters(_ path: String) -> WriteCounters? {
        guard let fields = fields(path), fields.count >= 15 else { return nil }
        return WriteCounters(writtenSectors: fields[6], discardedSectors: fields[13])
    }

    private static func fields(_ path: String) -> [UInt64]? {
        guard let text = SystemFile.read(path) else { return nil }
        let fields = text.split(whereSeparator: { $0 == " " || $0 == "\n" }).map { UInt64($0) }
        guard fields.count >= 11, !fields.contains(nil) else { return nil }
        return fields.compactMap { $0 }
    }

    static func line(of path: String) -> String? {
        SystemFile.read(path)?.split(separator: "\n", omittingEmptySubsequences: false).first
            .map(String.init)
    }
}

/// The id of the machine's run: another one after every restart.
package enum BootID {
    /// The kernel's, or what a test sets for it. Where there is none every start is another run.
    package static var current: UniqueID {
        if let value = getenv("STILLPOINT_BOOT_ID"), value.pointee != 0 {
            return id(of: String(cString: value))
        }
        guard let text = SystemFile.read("/proc/sys/kernel/random/boot_id") else {
            return .random()
        }
        return id(of: text.filter { !$0.isWhitespace })
    }

    /// Text that is not a UUID is hashed to one (FNV-1a, twice).
    private static func id(of text: String) -> UniqueID {
        if let id = UniqueID(text) { return id }
        func hash(from start: UInt64) -> UInt64 {
            text.utf8.reduce(start) { ($0 ^ UInt64($1)) &* 0x100_0000_01B3 }
        }
        return UniqueID(high: hash(from: 0xCBF2_9CE4_8422_2325), low: hash(from: 0x9E37_79B9))
    }
}
