package import BlockModel
internal import CLinux
package import CopyPlanning
internal import Glibc
internal import Origins

// The file or block device that becomes the copy.
//
// Invariants
// - It is locked against other copies (flock), QEMU (its byte locks) and mounts (O_EXCL for a block
//   device) from `open` until the object goes, or its process.
// - It is never truncated when it is opened: what it holds is looked at first.
// - `write` and `zero` may be called by several threads for ranges that do not overlap.

/// A target; see the head of this file.
package final class CopyTarget: CopySink, CopyMedium, CopyBytes {
    package let path: String
    package let isBlockDevice: Bool
    /// The file was made by `init`.
    package let isNew: Bool
    /// The target, open and locked until this object goes.
    package let descriptor: Int32

    /// Opens what is there, or makes a file when `creates`. Refuses what the service uses, and what
    /// it shows unless `isForced`. Blocks.
    package init(
        opening path: String, creates: Bool, surroundings: CopySurroundings = CopySurroundings(),
        isForced: Bool = false, locksOutQEMU: Bool = true
    ) throws(CopyError) {
        self.path = path
        var found = stat()
        let isThere = stat(path, &found) == 0
        let reason = errno
        guard isThere || (creates && reason == ENOENT) else {
            throw CopyError(
                reason == ENOENT ? .unfit : .failed,
                "target \(path): \(Self.text(reason))"
                    + (reason == ENOENT ? "; make a full copy, without --since" : ""))
        }
        let kind = isThere ? found.st_mode & S_IFMT : S_IFREG
        guard kind == S_IFREG || kind == S_IFBLK else {
            throw CopyError(
                .unsuitable, "target \(path) is neither a file nor a block device; name another")
        }
        isBlockDevice = kind == S_IFBLK
        isNew = !isThere
        if isThere { try Self.checkOrigins(path, surroundings) }
        let flags = isBlockDevice ? O_RDWR | O_EXCL : creates ? O_RDWR | O_CREAT : O_RDWR
        descriptor = Glibc.open(path, flags | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else {
            let reason = errno
            throw CopyError(
                reason == EBUSY ? .busy : .failed,
                "target \(path): \(Self.text(reason))"
                    + (reason == EBUSY ? "; it is mounted or used by a device" : ""))
        }
        do throws(CopyError) {
            try lock(locksOutQEMU)
            if !isForced { try checkBlocks(surroundings) }
        } catch {
            if isNew { unlink(path) }
            // `deinit` runs once all properties are set, and closes.
            throw error
        }
    }

    deinit { close(descriptor) }

    /// The C library's words for an error number.
    package static func text(_ errnoValue: Int32) -> String {
        String(cString: strerror(errnoValue))
    }

    // MARK: Users

    /// Nothing may lie on an origin, nor under one: not even by force.
    private static func checkOrigins(
        _ path: String, _ surroundings: CopySurroundings
    ) throws(CopyError) {
        guard let stack = TargetSurvey.deviceStack(ofPath: path) else { return }
        for origin in surroundings.origins {
            guard let its = TargetSurvey.deviceStack(ofPath: origin.path) else { continue }
            guard !stack.stands(on: its) else {
                throw CopyError(
                    .busy,
                    "target \(path) is in use: it is the origin of device \(origin.name) or lies "
                        + "on it; name another target")
            }
            guard !its.stands(on: stack) else {
                throw CopyError(
                    .busy,
                    "target \(path) is in use: the origin of device \(origin.name) lies on it; "
                        + "name another target")
            }
        }
    }

    /// What the service shows as a block device is made of the very data that is copied.
    private func checkBlocks(_ surroundings: CopySurroundings) throws(CopyError) {
        guard !surroundings.blocks.isEmpty,
            let stack = TargetSurvey.deviceStack(ofDescriptor: descriptor)
        else { return }
        for block in surroundings.blocks {
            guard let its = TargetSurvey.deviceStack(ofPath: block.path), stack.stands(on: its)
            else {
                continue
            }
            throw CopyError(
                .busy,
                "target \(path) is the block device \(block.path) of \(block.name), which this "
                    + "service serves, or lies on it; name another target, or insist with --force")
        }
    }

    private func lock(_ locksOutQEMU: Bool) throws(CopyError) {
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
            let reason = errno
            throw CopyError(
                reason == EWOULDBLOCK ? .busy : .failed,
                "target \(path): "
                    + (reason == EWOULDBLOCK
                        ? "in use, by another copy or as an origin; wait for it, or name another"
                        : Self.text(reason)))
        }
        guard !isBlockDevice, !isNew else { return }
        if let loop = TargetSurvey.loopDevice(overDescriptor: descriptor, path: path) {
            throw CopyError(
                .busy,
                "target \(path) is in use: it backs the loop device \(loop); unmount and detach "
                    + "that first (losetup -d \(loop)), or name another target")
        }
        guard !locksOutQEMU || TargetSurvey.lockAgainstQEMU(descriptor, isReadOnly: false)
        else {
            throw CopyError(
                .busy,
                "target \(path) is in use by QEMU or one of its tools; stop that first, or name "
                    + "another target")
        }
    }

    func failure(_ errnoValue: Int32, size: UInt64? = nil) -> CopyError {
        switch errnoValue {
        case ENOSPC, EDQUOT:
            CopyError(
                .failed,
                "target \(path) has no room left (\(Self.text(errnoValue))); make room and run the "
                    + "same command again: it finishes the copy")
        case EFBIG:
            CopyError(
                .failed,
                "target \(path) cannot become "
                    + (size.map { "\($0) bytes large" } ?? "that large")
                    + " (\(Self.text(errnoValue))): its filesystem or the limit on file sizes "
                    + "(ulimit -f) forbids it; lift the limit or name another target")
        default:
            CopyError(
                .failed,
                "target \(path) cannot be written (\(Self.text(errnoValue))); run the same command "
                    + "again when that is fixed")
        }
    }

    // MARK: Facts

    /// How it looks now. What others have written to a block device and the kernel has not passed
    /// on yet is passed on first.
    package func file() throws(CopyError) -> CopyRecord.File {
        var found = stat()
        guard fstat(descriptor, &found) == 0 else { throw failure(errno) }
        var file = CopyRecord.File(
            isBlockDevice: isBlockDevice, size: UInt64(found.st_size), inode: UInt64(found.st_ino),
            changedNanoseconds: Int64(found.st_mtim.tv_sec) * 1_000_000_000
                + Int64(found.st_mtim.tv_nsec))
        guard isBlockDevice else { return file }
        var size: UInt64 = 0
        guard cl_block_device_size(descriptor, &size) == 0 else { throw failure(errno) }
        file.size = size
        try sync()
        file.disk = settledDisk().map { DiskState($0) }
        return file
    }

    /// Times the counters of a disk are read until two readings agree: a write is counted a moment
    /// after it has returned.
    private static let readingsMax = 50

    private func settledDisk() -> TargetSurvey.Disk? {
        var last = TargetSurvey.disk(ofDescriptor: descriptor)
        for _ in 0..<Self.readingsMax {
            TargetSurvey.waitForNextStamp()
            let now = TargetSurvey.disk(ofDescriptor: descriptor)
            if now == last { break }
            last = now
        }
        return last
    }

    /// What a block device seems to hold, such as "an ext4 filesystem"; nil for nothing.
    package func content() throws(CopyError) -> String? {
        guard isBlockDevice else { return nil }
        var name = [CChar](repeating: 0, count: 128)
        if cl_recognise_content(descriptor, &name, name.count) != 0 {
            let bytes = name.prefix { $0 != 0 }.map(UInt8.init(bitPattern:))
            return bytes.isEmpty ? "something" : String(decoding: bytes, as: UTF8.self)
        }
        var size: UInt64 = 0
        guard cl_block_device_size(descriptor, &size) == 0 else { throw failure(errno) }
        return try holdsData(size) ? "data of a kind that is not known" : nil
    }

    /// Looks at both ends and at many places between: whole disks take hours to read.
    private func holdsData(_ size: UInt64) throws(CopyError) -> Bool {
        try ContentLook.holdsData(self, size)
    }

    // MARK: Medium

    package var beginsFresh: Bool { false }
    package var canGrow: Bool { !isBlockDevice }
    package var keepsVersions: Bool { false }

    package var size: UInt64 {
        var found = stat()
        var size: UInt64 = 0
        // What cannot be told has no byte that equals a sample.
        guard fstat(descriptor, &found) == 0 else { return 0 }
        guard isBlockDevice else { return UInt64(found.st_size) }
        return cl_block_device_size(descriptor, &size) == 0 ? size : 0
    }

    package func read(
        _ offset: UInt64, into place: UnsafeMutableRawPointer, _ byteCount: Int
    ) throws(CopyError) {
        try FileBytes.read(descriptor, path, offset, into: place, byteCount)
    }

    package func data(in range: ByteRange) throws(CopyError) -> ByteRange? {
        FileBytes.data(descriptor, in: range)
    }

    package func samples(
        within ranges: [ByteRange]?, written: RangeSpool?
    ) throws(CopyError) -> [CopyRecord.Sample]? {
        let starts = TargetSurvey.disk(ofDescriptor: descriptor)?.partitionStarts ?? []
        return try CopySamples.taken(
            of: self, starts: starts, within: ranges, written: written)
    }

    package func holds(
        _ record: CopyRecord, except changes: RangeSpool?
    ) throws(CopyError) -> Bool? {
        guard let samples = record.samples else { return nil }
        return try CopySamples.match(
            try CopySamples.untouched(samples, by: changes), of: self)
    }

    package func prepare(_ size: UInt64, for plan: CopyPlan) throws(CopyError) {
        if case .full(let full) = plan, full.isFresh { try nameIsNew() }
        try resize(to: size)
    }

    package func sinks(_ count: Int) -> [any CopySink] { Array(repeating: self, count: count) }

    package var syncsWhileWriting: Bool { true }

    package func settle() {
        // Another write has another time of change.
        TargetSurvey.waitForNextStamp()
    }

    package func complete(_ cut: CopyCut) {}

    package func empty() throws(CopyError) { try resize(to: 0) }

    package func withdraw() {
        if isNew { unlink(path) }
    }

    /// Makes its name durable, if it is new.
    package func nameIsNew() throws(CopyError) { try CopyRecordFile.syncDirectory(of: path) }

    // MARK: Writing

    /// Makes a file `size` bytes long; a block device keeps its size.
    package func resize(to size: UInt64) throws(CopyError) {
        guard !isBlockDevice else { return }
        guard size <= UInt64(Int64.max), ftruncate(descriptor, off_t(size)) == 0 else {
            throw failure(size <= UInt64(Int64.max) ? errno : EFBIG, size: size)
        }
    }

    /// Writes bytes.
    package func write(
        _ bytes: UnsafeRawPointer, _ byteCount: Int, at offset: UInt64
    ) throws(CopyError) {
        var done = 0
        while done < byteCount {
            let count = pwrite(
                descriptor, bytes + done, byteCount - done, off_t(offset) + off_t(done))
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw failure(count < 0 ? errno : ENOSPC) }
            done += count
        }
    }

    /// Makes a range read as zero, with a hole where the target supports it.
    package func zero(_ range: ByteRange) throws(CopyError) {
        guard cl_punch_hole(descriptor, range.offset, range.length) != 0 else { return }
        let reason = errno
        // A filesystem without holes, or a block device whose sectors the range cuts in two.
        guard reason == EOPNOTSUPP || reason == EINVAL || reason == ENOSYS else {
            throw failure(reason)
        }
        let zeroes = [UInt8](repeating: 0, count: min(1 << 20, Int(clamping: range.length)))
        var offset = range.offset
        while offset < range.end {
            let count = min(zeroes.count, Int(clamping: range.end - offset))
            let outcome = zeroes.withUnsafeBytes { bytes -> Result<Void, CopyError> in
                do throws(CopyError) {
                    return .success(
                        try write(bytes.baseAddress.unsafelyUnwrapped, count, at: offset))
                } catch { return .failure(error) }
            }
            try outcome.get()
            offset += UInt64(count)
        }
    }

    /// Every write has reached the system when it returns.
    package func drain() throws(CopyError) {}

    /// Everything written so far is on stable storage when this returns.
    package func sync() throws(CopyError) {
        guard fsync(descriptor) == 0 else { throw failure(errno) }
    }
}
