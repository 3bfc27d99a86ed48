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

    // MARK: Writes

    /// Waits for writes that the device has in flight. Returns true at the first moment without any. If
    /// there is none, or if the kernel does not count them, it returns false after 3 s, which is longer
    /// than nearly any write takes. The kernel offers nothing to wait on, so its counters are read every
    /// 2 ms.
    func awaitWritesInFlight() -> Bool {
        let folder = "/sys/dev/block/\(number)"
        let isCounted = countsRequests
        for _ in 0..<(Self.writesInFlightMilliseconds / 2) {
            // Counted: reads, then writes.
            let counts = SystemFile.line(of: "\(folder)/inflight")?.split(separator: " ")
            if isCounted, counts?.last == "0" { return true }
            usleep(2000)
        }
        return false
    }

    private static let writesInFlightMilliseconds = 3000

    private var countsRequests: Bool {
        SystemFile.line(of: "/sys/dev/block/\(diskNumber)/queue/iostats") == "1"
    }

    /// Whether the kernel counted no write or discard of the device since it found the disk. Commands past
    /// the block layer are not counted. What was written through the whole disk counts for each partition.
    /// False also for what cannot be told.
    func isUntouched() -> Bool {
        guard facts.hasRequests, countsRequests, awaitWritesInFlight() else { return false }
        for _ in 0..<20 {
            // Counters of partitions are part of the disk's. What it has beyond theirs was written through
            // the disk. Others may write to their partitions meanwhile: then the sums do not agree.
            guard let before = partitionCounts(), let disk = Self.writeCounts(of: diskNumber),
                let after = partitionCounts(), let own = Self.writeCounts(of: number)
            else { return false }
            guard own == .none else { return false }
            if before == after, !isPartition || disk == after { return true }
            usleep(2000)
        }
        return false
    }

    private struct WriteCounts: Equatable {
        var writes: UInt64 = 0
        var writtenSectors: UInt64 = 0
        var discards: UInt64 = 0
        var discardedSectors: UInt64 = 0

        static let none = WriteCounts()
    }

    /// Documentation/block/stat.rst of the kernel: writes are its fifth field, sectors its seventh, discards
    /// its twelfth and sectors of these its fourteenth.
    private static func writeCounts(of number: DeviceNumber) -> WriteCounts? {
        let fields = SystemFile.line(of: "/sys/dev/block/\(number)/stat")?
            .split(separator: " ").compactMap { UInt64($0) }
        guard let fields, fields.count >= 15 else { return nil }
        return WriteCounts(
            writes: fields[4], writtenSectors: fields[6], discards: fields[11],
            discardedSectors: fields[13])
    }

    /// The sum over all partitions of the disk.
    private func partitionCounts() -> WriteCounts? {
        guard let disk = SystemFile.resolved("/sys/dev/block/\(diskNumber)") else { return nil }
        var sum = WriteCounts()
        for name in SystemFile.names(in: disk)
        where SystemFile.exists("\(disk)/\(name)/partition") {
            guard
                let number = SystemFile.line(of: "\(disk)/\(name)/dev")
                    .flatMap({ DeviceNumber($0) }),
                let counts = Self.writeCounts(of: number)
            else { return nil }
            sum.writes += counts.writes
            sum.writtenSectors += counts.writtenSectors
            sum.discards += counts.discards
            sum.discardedSectors += counts.discardedSectors
        }
        return sum
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
