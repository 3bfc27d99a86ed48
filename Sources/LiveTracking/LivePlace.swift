internal import Host
package import BlockModel
package import ChangeTracking
internal import Glibc

// Where a block device lies on its disk, read from /sys: nothing is opened.

/// A block device as a window of its disk.
package struct LivePlace: Equatable, Sendable {
    /// The device's own number.
    package let number: DeviceNumber
    /// Number of the whole disk; the same when it is one.
    package let diskNumber: DeviceNumber
    /// Where the device begins on the disk, in sectors of 512 bytes.
    package let startSector: UInt64
    package let sectorCount: UInt64
    /// Sectors of the disk.
    package let diskSectorCount: UInt64
    package let facts: LiveFacts

    package var isPartition: Bool { number != diskNumber }

    /// Looks a block device up; nil when there is none of that number.
    package init?(of number: DeviceNumber) {
        let folder = "/sys/dev/block/\(number)"
        guard let own = SystemFile.resolved(folder) else { return nil }
        let isPartition = SystemFile.exists("\(own)/partition")
        let parent = String(own.prefix(upTo: own.lastIndex(of: "/") ?? own.endIndex))
        let disk = isPartition ? parent : own
        guard let diskNumber = SystemFile.line(of: "\(disk)/dev").flatMap({ DeviceNumber($0) }),
            let count = SystemFile.number(in: "\(own)/size"),
            let diskCount = SystemFile.number(in: "\(disk)/size")
        else { return nil }
        self.number = number
        self.diskNumber = diskNumber
        startSector = isPartition ? SystemFile.number(in: "\(own)/start") ?? 0 : 0
        sectorCount = count
        diskSectorCount = diskCount
        facts = Self.facts(ofDisk: disk)
    }

    /// The sequence number that the disk of this number has now; nil when it is gone.
    static func sequence(ofDisk number: DeviceNumber) -> UInt64? {
        SystemFile.number(in: "/sys/dev/block/\(number)/diskseq")
    }

    private static func facts(ofDisk folder: String) -> LiveFacts {
        var facts = kernelFacts()
        facts.disk = folder.split(separator: "/").last.map(String.init) ?? ""
        facts.diskSequence = SystemFile.number(in: "\(folder)/diskseq") ?? 0
        facts.hasRequests = SystemFile.exists("\(folder)/mq")
        facts.isMapped = SystemFile.exists("\(folder)/dm")
        facts.isArray = SystemFile.exists("\(folder)/md")
        facts.zoned = SystemFile.line(of: "\(folder)/queue/zoned") ?? "none"
        facts.isDirectlyMapped = SystemFile.line(of: "\(folder)/queue/dax") == "1"
        facts.passers = SystemFile.names(in: "\(folder)/holders").filter {
            SystemFile.exists("/sys/block/\($0)/md") || SystemFile.exists("/sys/block/\($0)/bcache")
        }
        return facts
    }

    /// What the kernel is able to, whatever the disk.
    package static func kernelFacts() -> LiveFacts {
        var facts = LiveFacts()
        facts.hasKernelTypes = SystemFile.exists("/sys/kernel/btf/vmlinux")
        facts.isRealTimeKernel = SystemFile.line(of: "/sys/kernel/realtime") == "1"
        let release = SystemFile.line(of: "/proc/sys/kernel/osrelease") ?? ""
        let numbers = release.split(whereSeparator: { !$0.isNumber }).prefix(2)
            .compactMap { Int($0) }
        if numbers.count == 2 { facts.kernelVersion = (numbers[0], numbers[1]) }
        return facts
    }
}
