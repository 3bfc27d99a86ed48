internal import Host
internal import CLinux
internal import DataPlane
internal import Glibc

/// What there is of a target: the copy itself, its versions, and what was not finished.
package struct CopyInventory: Sendable {
    /// A copy that lies there.
    package struct Entry: Sendable {
        package var path: String
        /// NAME of `TARGET@NAME`.
        package var version: String?
        package var state: State
        package var record: CopyRecord?
        /// Bytes; 0 when it is not there.
        package var size: UInt64
        /// Bytes of disk space that it uses; nil for a block device.
        package var allocated: UInt64?
    }

    /// How a copy stands.
    package enum State: String, Sendable {
        /// It equals the cut of its record.
        case complete
        /// It is on its way to the cut of its record.
        case interrupted
        /// Somebody wrote to it since.
        case changed
        /// It has no record, or none that can be read.
        case unknown
    }

    /// Whether a path leads to a block device.
    package static func isBlockDevice(_ path: String) -> Bool {
        var facts = stat()
        return stat(path, &facts) == 0 && facts.st_mode & S_IFMT == S_IFBLK
    }

    /// Lists what there is, the target first, then its versions by name. `records`: where records
    /// of block devices are. Blocks.
    package static func list(
        _ target: String, records: String, record named: String?
    ) throws(CopyError) -> [Entry] {
        var entries: [Entry] = []
        if let entry = try entry(target, version: nil, records: records, named: named) {
            entries.append(entry)
        }
        guard !isBlockDevice(target) else { return entries }
        let slash = target.lastIndex(of: "/") ?? target.startIndex
        let directory = slash == target.startIndex ? "/" : String(target[..<slash])
        let start = String(target[target.index(after: slash)...]) + "@"
        for name in SystemFile.names(in: directory).sorted() where name.hasPrefix(start) {
            let version = String(name.dropFirst(start.count))
            guard !version.hasSuffix(CopyRecord.suffix), !version.isEmpty,
                !version.hasSuffix(ImageCopier.besideSuffix)
            else { continue }
            if let entry = try entry(
                "\(directory)/\(name)", version: version, records: records, named: nil)
            {
                entries.append(entry)
            }
        }
        let beside = target + ImageCopier.besideSuffix
        if let entry = try entry(beside, version: nil, records: records, named: nil) {
            entries.append(entry)
        }
        return entries
    }

    private static func entry(
        _ path: String, version: String?, records: String, named: String?
    ) throws(CopyError) -> Entry? {
        var facts = stat()
        guard stat(path, &facts) == 0 else { return nil }
        var entry = Entry(path: path, version: version, state: .unknown, size: 0)
        var file = CopyRecordFile(besideTarget: path)
        if let named { file = CopyRecordFile(named: named) }
        var disk: DiskState?
        switch facts.st_mode & S_IFMT {
        case S_IFREG:
            entry.size = UInt64(max(0, facts.st_size))
            entry.allocated = UInt64(max(0, facts.st_blocks)) * 512
        case S_IFBLK:
            guard let look = DiskLook.state(ofPath: path) else { return entry }
            entry.size = look.size
            disk = look.state
            if named == nil {
                file = CopyRecordFile(of: look.state, size: look.size, in: records)
            }
        default:
            throw CopyError(.unsuitable, "\(path) is neither a file nor a block device")
        }
        guard case .record(let record) = try file.load() else { return entry }
        entry.record = record
        entry.state = state(record, facts, disk, size: entry.size)
        return entry
    }

    private static func state(
        _ record: CopyRecord, _ facts: stat, _ disk: DiskState?, size: UInt64
    ) -> State {
        guard record.state == .complete else { return .interrupted }
        guard let disk, let former = record.target.disk else {
            let changed =
                Int64(facts.st_mtim.tv_sec) * 1_000_000_000 + Int64(facts.st_mtim.tv_nsec)
            return record.target.changedNanoseconds == changed && record.target.size == size
                ? .complete : .changed
        }
        switch disk.verdict(since: former) {
        case .another: return .unknown
        case .written: return .changed
        // The next copy reads samples of it; here nothing is read.
        case .unwritten, .unknown: return .complete
        }
    }
}
