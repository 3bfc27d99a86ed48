internal import BlockModel
internal import CLinux
internal import Glibc

// The file or block device that becomes the copy.
//
// Invariants
// - It is locked against other copies (flock; O_EXCL for a block device) from `open` until the
//   object goes, or its process.
// - It is never truncated when it is opened: what it holds is looked at first.
// - `write` and `zero` may be called by several threads for ranges that do not overlap.

/// A target; see the head of this file.
package final class CopyTarget: Sendable {
    package let path: String
    package let isBlockDevice: Bool
    private let descriptor: Int32

    /// Opens what is there, or makes a file when `creates`. Blocks.
    package init(opening path: String, creates: Bool) throws(CopyError) {
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
        let flags = isBlockDevice ? O_RDWR | O_EXCL : creates ? O_RDWR | O_CREAT : O_RDWR
        descriptor = Glibc.open(path, flags | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else {
            let reason = errno
            throw CopyError(
                reason == EBUSY ? .busy : .failed,
                "target \(path): \(Self.text(reason))"
                    + (reason == EBUSY ? "; it is mounted or used by a device" : ""))
        }
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
            let reason = errno
            close(descriptor)
            throw CopyError(
                reason == EWOULDBLOCK ? .busy : .failed,
                "target \(path): "
                    + (reason == EWOULDBLOCK
                        ? "in use, by another copy or as an origin; wait for it, or name another"
                        : Self.text(reason)))
        }
    }

    deinit { close(descriptor) }

    private static func text(_ errnoValue: Int32) -> String {
        String(cString: strerror(errnoValue))
    }

    private func failure(_ errnoValue: Int32) -> CopyError {
        CopyError(
            .failed,
            "target \(path) cannot be written (\(Self.text(errnoValue))); run the same command "
                + "again when that is mended")
    }

    /// How it looks now.
    package func facts() throws(CopyError) -> CopyTargetFacts {
        var found = stat()
        guard fstat(descriptor, &found) == 0 else { throw failure(errno) }
        var size = UInt64(found.st_size)
        var content: String?
        if isBlockDevice {
            guard cl_block_device_size(descriptor, &size) == 0 else { throw failure(errno) }
            var name = [CChar](repeating: 0, count: 128)
            if cl_recognise_content(descriptor, &name, name.count) != 0 {
                let bytes = name.prefix { $0 != 0 }.map(UInt8.init(bitPattern:))
                content = bytes.isEmpty ? "something" : String(decoding: bytes, as: UTF8.self)
            }
        }
        return CopyTargetFacts(
            path: path,
            file: CopyRecord.File(
                isBlockDevice: isBlockDevice, size: size, inode: UInt64(found.st_ino),
                changedNanoseconds: Int64(found.st_mtim.tv_sec) * 1_000_000_000
                    + Int64(found.st_mtim.tv_nsec)), content: content)
    }

    /// Makes its name durable, if it is new.
    package func nameIsNew() throws(CopyError) { try CopyRecordFile.syncDirectory(of: path) }

    /// Makes a file `size` bytes long; a block device keeps its size.
    package func resize(to size: UInt64) throws(CopyError) {
        guard !isBlockDevice else { return }
        guard ftruncate(descriptor, off_t(size)) == 0 else { throw failure(errno) }
    }

    /// Writes bytes.
    func write(
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
    func zero(_ range: ByteRange) throws(CopyError) {
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

    /// Everything written so far is on stable storage when this returns.
    package func sync() throws(CopyError) {
        guard fsync(descriptor) == 0 else { throw failure(errno) }
    }
}
