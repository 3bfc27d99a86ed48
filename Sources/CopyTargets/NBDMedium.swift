internal import BlockModel
internal import CopyPlanning
internal import Glibc
internal import NBDAccess
internal import Synchronization

// A copy in an export of an NBD server. What it equals is kept on this side, beside the records of
// block devices; other writers are detected by samples, as on a disk after a reboot.
//
// Invariants
// - One copy at a time is made of those that this machine makes of an export: the record is locked.
// - What a server does not share between connections is written over one of them.

/// An export of an NBD server; see the head of this file. Everything blocks.
final class NBDMedium: CopyMedium {
    private let place: NBDPlace
    private let options: CopyOptions
    private let bytes: NBDBytes
    private let lock: Int32
    /// The connection that flushes where the server shares that between all of them.
    private let flusher: Mutex<Flusher>
    private let written = Mutex<[NBDSink]>([])
    let syncsWhileWriting: Bool

    private struct Flusher: @unchecked Sendable {
        // SAFETY: used under the lock alone.
        var export: NBDExport
    }

    init(
        _ place: NBDPlace, source: String, isForced: Bool, _ options: CopyOptions
    ) throws(CopyError) {
        self.place = place
        self.options = options
        let own = options.surroundings.server
        // By force onto another device of the service, and never onto the one that is copied.
        let isAllowed = isForced && place.export != source
        let export = try place.connect(
            isForWriting: true, options.secure, refusing: isAllowed ? nil : own)
        guard !export.isReadOnly else {
            throw CopyError(
                .busy, "target \(place.name) is read-only over NBD; serve it for writing")
        }
        syncsWhileWriting = export.sharesFlushes
        flusher = Mutex(Flusher(export: export))
        let secure = options.secure
        bytes = try NBDBytes(place.name) { () throws(CopyError) in
            try place.connect(isForWriting: false, secure)
        }
        lock = try Self.lock(place, options)
    }

    deinit { close(lock) }

    private static func lock(
        _ place: NBDPlace, _ options: CopyOptions
    ) throws(CopyError) -> Int32 {
        mkdir(options.diskRecords, 0o700)
        let path = place.recordFile(in: options.diskRecords).path + ".lock"
        let descriptor = Glibc.open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else {
            throw CopyError(.failed, "\(path): \(CopyTarget.text(errno))")
        }
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
            close(descriptor)
            throw CopyError(
                .busy, "target \(place.name) is in use by another copy; wait for it")
        }
        return descriptor
    }

    var path: String { place.name }
    var isNew: Bool { false }
    var beginsFresh: Bool { false }
    var canGrow: Bool { false }
    var keepsVersions: Bool { false }

    func file() -> CopyRecord.File {
        CopyRecord.File(
            isBlockDevice: true, size: bytes.size, inode: 0, changedNanoseconds: 0,
            disk: place.disk)
    }

    func content() throws(CopyError) -> String? {
        try ContentLook.holdsData(bytes, bytes.size) ? "data of a kind that is not known" : nil
    }

    func holds(
        _ record: CopyRecord, except changes: RangeSpool?
    ) throws(CopyError) -> Bool? {
        guard let samples = record.samples else { return nil }
        return try CopySamples.match(
            try CopySamples.untouched(samples, by: changes), of: bytes)
    }

    func samples(
        within ranges: [ByteRange]?, written: RangeSpool?
    ) throws(CopyError) -> [CopyRecord.Sample]? {
        try CopySamples.taken(of: bytes, within: ranges, written: written)
    }

    func prepare(_ size: UInt64, for plan: CopyPlan) {}

    func sinks(_ count: Int) throws(CopyError) -> [any CopySink] {
        let made = try (0..<(syncsWhileWriting ? count : 1)).map { _ throws(CopyError) in
            NBDSink(try place.connect(isForWriting: true, options.secure), place.name)
        }
        written.withLock { $0 = made }
        return made
    }

    func sync() throws(CopyError) {
        guard syncsWhileWriting else {
            // Nothing else uses it when this is called.
            for sink in written.withLock({ $0 }) { try sink.flush() }
            return
        }
        let outcome = flusher.withLock { flusher -> Result<Void, NBDAccessError> in
            do throws(NBDAccessError) { return .success(try flusher.export.flush()) } catch {
                return .failure(error)
            }
        }
        if case .failure(let error) = outcome {
            throw CopyError(
                .failed,
                "target \(place.name) cannot be flushed (\(error)); run the same command again")
        }
    }

    func settle() {}

    func complete(_ cut: CopyCut) {}

    func empty() {}

    func withdraw() {}
}
