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
        guard let own = SystemText.resolved(folder) else { return nil }
        let isPartition = SystemText.exists("\(own)/partition")
        let parent = String(own.prefix(upTo: own.lastIndex(of: "/") ?? own.endIndex))
        let disk = isPartition ? parent : own
        guard let diskNumber = SystemText.line(of: "\(disk)/dev").flatMap({ DeviceNumber($0) }),
            let count = SystemText.number(in: "\(own)/size"),
            let diskCount = SystemText.number(in: "\(disk)/size")
        else { return nil }
        self.number = number
        self.diskNumber = diskNumber
        startSector = isPartition ? SystemText.number(in: "\(own)/start") ?? 0 : 0
        sectorCount = count
        diskSectorCount = diskCount
        facts = Self.facts(ofDisk: disk)
    }

    /// The sequence number that the disk of this number has now; nil when it is gone.
    static func sequence(ofDisk number: DeviceNumber) -> UInt64? {
        SystemText.number(in: "/sys/dev/block/\(number)/diskseq")
    }

    private static func facts(ofDisk folder: String) -> LiveFacts {
        var facts = kernelFacts()
        facts.disk = folder.split(separator: "/").last.map(String.init) ?? ""
        facts.diskSequence = SystemText.number(in: "\(folder)/diskseq") ?? 0
        facts.hasRequests = SystemText.exists("\(folder)/mq")
        facts.isMapped = SystemText.exists("\(folder)/dm")
        facts.isArray = SystemText.exists("\(folder)/md")
        facts.zoned = SystemText.line(of: "\(folder)/queue/zoned") ?? "none"
        facts.isDirectlyMapped = SystemText.line(of: "\(folder)/queue/dax") == "1"
        facts.passers = SystemText.names(in: "\(folder)/holders").filter {
            SystemText.exists("/sys/block/\($0)/md") || SystemText.exists("/sys/block/\($0)/bcache")
        }
        return facts
    }

    /// What the kernel is able to, whatever the disk.
    package static func kernelFacts() -> LiveFacts {
        var facts = LiveFacts()
        facts.hasKernelTypes = SystemText.exists("/sys/kernel/btf/vmlinux")
        facts.isRealTimeKernel = SystemText.line(of: "/sys/kernel/realtime") == "1"
        let release = SystemText.line(of: "/proc/sys/kernel/osrelease") ?? ""
        let numbers = release.split(whereSeparator: { !$0.isNumber }).prefix(2)
            .compactMap { Int($0) }
        if numbers.count == 2 { facts.kernelVersion = (numbers[0], numbers[1]) }
        return facts
    }
}
