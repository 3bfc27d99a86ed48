package import BlockModel
internal import CLinux
internal import DataPlane
internal import Glibc

// The file or block device that becomes the copy.
//
// Invariants
// - It is locked against other copies (flock), QEMU (its byte locks) and mounts (O_EXCL for a block
//   device) from `open` until the object goes, or its process.
// - It is never truncated when it is opened: what it holds is looked at first.
// - `write` and `zero` may be called by several threads for ranges that do not overlap.

/// A target; see the head of this file.
package final class CopyTarget: CopySink {
    package let path: String
    package let isBlockDevice: Bool
    /// The file was made by `init`.
    package let isNew: Bool
    let descriptor: Int32

    /// Opens what is there, or makes a file when `creates`. Refuses what the service uses, and what
    /// it shows unless `isForced`. Blocks.
    package init(
        opening path: String, creates: Bool, surroundings: CopySurroundings = CopySurroundings(),
        isForced: Bool = false
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
            try lock()
            if !isForced { try checkBlocks(surroundings) }
        } catch {
            if isNew { unlink(path) }
            // `deinit` runs once all properties are set, and closes.
            throw error
        }
    }

    deinit { close(descriptor) }

    static func text(_ errnoValue: Int32) -> String {
        String(cString: strerror(errnoValue))
    }

    // MARK: Users

    /// Nothing may lie on an origin, nor under one: not even by force.
    private static func checkOrigins(
        _ path: String, _ surroundings: CopySurroundings
    ) throws(CopyError) {
        guard let ground = TargetSurvey.ground(ofPath: path) else { return }
        for origin in surroundings.origins {
            guard let its = TargetSurvey.ground(ofPath: origin.path) else { continue }
            guard !ground.stands(on: its) else {
                throw CopyError(
                    .busy,
                    "target \(path) is in use: it is the origin of device \(origin.name) or lies "
                        + "on it; name another target")
            }
            guard !its.stands(on: ground) else {
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
            let ground = TargetSurvey.ground(ofDescriptor: descriptor)
        else { return }
        for block in surroundings.blocks {
            guard let its = TargetSurvey.ground(ofPath: block.path), ground.stands(on: its) else {
                continue
            }
            throw CopyError(
                .busy,
                "target \(path) is the block device \(block.path) of \(block.name), which this "
                    + "service serves, or lies on it; name another target, or insist with --force")
        }
    }

    private func lock() throws(CopyError) {
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
        guard TargetSurvey.lockAgainstQEMU(descriptor, isReadOnly: false) else {
            throw CopyError(
                .busy,
                "target \(path) is in use by QEMU or one of its tools; stop that first, or name "
                    + "another target")
        }
    }

    private func failure(_ errnoValue: Int32, size: UInt64? = nil) -> CopyError {
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
    func content() throws(CopyError) -> String? {
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

    private static let edgeByteCount: UInt64 = 4 << 20
    private static let spotCount: UInt64 = 1024

    /// Looks at both ends and at many places between: whole disks take hours to read.
    private func holdsData(_ size: UInt64) throws(CopyError) -> Bool {
        let piece = UnsafeMutableRawPointer.allocate(byteCount: 65536, alignment: 4096)
        defer { piece.deallocate() }
        func isZero(_ offset: UInt64, _ byteCount: UInt64) throws(CopyError) -> Bool {
            let wanted = Int(min(byteCount, size - offset))
            let count = pread(descriptor, piece, wanted, off_t(offset))
            guard count == wanted else { throw failure(count < 0 ? errno : EIO) }
            return cl_is_zero(piece, wanted)
        }
        var offset: UInt64 = 0
        while offset < size {
            if !(try isZero(offset, 65536)) { return true }
            offset += 65536
            if offset == Self.edgeByteCount, size > 2 * Self.edgeByteCount {
                offset = (size - Self.edgeByteCount) / 65536 * 65536
            }
        }
        for spot in 1..<Self.spotCount where size / Self.spotCount * spot < size {
            let place = size / Self.spotCount * spot / blockByteCount * blockByteCount
            if !(try isZero(place, blockByteCount)) { return true }
        }
        return false
    }

    /// Samples of what it holds now, of those places that lie in `ranges` alone when they are given.
    func samples(within ranges: [ByteRange]? = nil) throws(CopyError) -> [CopyRecord.Sample]? {
        guard isBlockDevice else { return nil }
        var size: UInt64 = 0
        guard cl_block_device_size(descriptor, &size) == 0 else { throw failure(errno) }
        let starts = TargetSurvey.disk(ofDescriptor: descriptor)?.partitionStarts ?? []
        var places = CopySamples.places(size: size, starts: starts)
        if let ranges {
            places = places.filter { place in
                ranges.contains { $0.offset <= place.offset && place.end <= $0.end }
            }
        }
        return try CopySamples.read(places, of: descriptor, path: path)
    }

    /// Whether it holds what samples say; see `CopySamples.match`.
    func matches(
        _ samples: [CopyRecord.Sample], excluding ranges: [ByteRange]
    ) throws(CopyError) -> Bool? {
        try CopySamples.match(samples, of: descriptor, path: path, excluding: ranges)
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

    /// Makes a range read as zero, as a hole where that can be had.
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
