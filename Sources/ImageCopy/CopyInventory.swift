internal import CLinux
package import CopyPlanning
package import CopyTargets
internal import Glibc
internal import Host

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

    /// Lists what there is, the target first, then its versions: of a file by name, of a qcow2 file
    /// what it lies on, of an RBD image its snapshots. Blocks.
    package static func list(
        _ target: String, _ options: CopyOptions
    ) throws(CopyError) -> [Entry] {
        switch try CopyPlace(target) {
        case .file(let path): return try files(path, options)
        case .qcow(let path):
            var entries: [Entry] = []
            for path in [path] + (try QcowChain.lowers(of: path)) {
                if let entry = try qcow(path) { entries.append(entry) }
            }
            return entries
        case .nbd(let place): return [try export(place, options)]
        case .rbd(let place): return try image(place, options)
        }
    }

    private static func files(
        _ target: String, _ options: CopyOptions
    ) throws(CopyError) -> [Entry] {
        var entries: [Entry] = []
        if let entry = try entry(
            target, version: nil, records: options.diskRecords, named: options.recordPath)
        {
            entries.append(entry)
        }
        guard !isBlockDevice(target) else { return entries }
        let slash = target.lastIndex(of: "/") ?? target.startIndex
        let directory = slash == target.startIndex ? "/" : String(target[..<slash])
        let start = String(target[target.index(after: slash)...]) + "@"
        for name in SystemFile.names(in: directory).sorted() where name.hasPrefix(start) {
            let version = String(name.dropFirst(start.count))
            guard !version.hasSuffix(CopyRecord.suffix), !version.isEmpty,
                !version.hasSuffix(CopyPlace.besideSuffix)
            else { continue }
            if let entry = try entry(
                "\(directory)/\(name)", version: version, records: options.diskRecords, named: nil)
            {
                entries.append(entry)
            }
        }
        let beside = target + CopyPlace.besideSuffix
        if let entry = try entry(
            beside, version: nil, records: options.diskRecords, named: nil)
        {
            entries.append(entry)
        }
        return entries
    }

    // MARK: Others

    private static func qcow(_ path: String) throws(CopyError) -> Entry? {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var facts = stat()
        guard fstat(descriptor, &facts) == 0 else { return nil }
        let header = QcowChain.header(descriptor)
        var entry = Entry(
            path: path, state: .unknown, size: header?.size ?? 0,
            allocated: UInt64(max(0, facts.st_blocks)) * 512)
        guard case .record(let record) = try CopyRecordFile(besideTarget: path).load() else {
            return entry
        }
        entry.record = record
        let file = try QcowChain.file(descriptor, path)
        let isDoubtful = try QcowChain.doubt(path, record, header) != nil
        entry.state =
            record.state == .running
            ? .interrupted
            : isDoubtful || file.changedNanoseconds != record.target.changedNanoseconds
                ? .changed : .complete
        return entry
    }

    private static func export(
        _ place: NBDPlace, _ options: CopyOptions
    ) throws(CopyError) -> Entry {
        let size = try place.connect(isForWriting: false, options.secure).size
        var entry = Entry(path: place.name, state: .unknown, size: size)
        let file =
            CopyRecordFile.named(options) ?? place.recordFile(in: options.diskRecords)
        guard case .record(let record) = try file.load() else { return entry }
        entry.record = record
        // The next copy reads samples of it; here nothing is read.
        entry.state =
            record.state == .running
            ? .interrupted : record.target.size == size ? .complete : .changed
        return entry
    }

    private static func image(
        _ place: RBDPlace, _ options: CopyOptions
    ) throws(CopyError) -> [Entry] {
        let pool = try RBDPool(place)
        guard let head = try RBDImage(place, pool, snapshot: nil, isReadOnly: true) else {
            return []
        }
        var entries = [Entry(path: place.name, state: .unknown, size: head.size)]
        let disk = try head.disk()
        let file =
            CopyRecordFile.named(options)
            ?? CopyRecordFile(of: disk, size: 0, in: options.diskRecords)
        if case .record(let record) = try file.load() {
            entries[0].record = record
            if record.state == .running {
                entries[0].state = .interrupted
            } else if let cut = record.equals {
                entries[0].state =
                    try RBDMedium.equals(head, cut.snapshot, except: nil) ? .complete : .changed
            }
        }
        for snapshot in try head.snapshots() {
            var entry = Entry(
                path: "\(place.name)@\(snapshot.name)", version: snapshot.name, state: .unknown,
                size: snapshot.size)
            if let version = try head.metadata(RBDVersion.key(snapshot.name)).flatMap({
                RBDVersion($0)
            }) {
                entry.state = .complete
                entry.record = .complete(
                    device: version.device, version.cut,
                    CopyRecord.File(
                        isBlockDevice: true, size: snapshot.size, inode: 0,
                        changedNanoseconds: 0))
            }
            entries.append(entry)
        }
        return entries
    }

    // MARK: Files

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
