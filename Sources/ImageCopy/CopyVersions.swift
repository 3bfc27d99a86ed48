internal import CLinux
internal import CopyPlanning
internal import CopyTargets
internal import Glibc

// Versions of a copy in a file: TARGET@NAME, each with its own record, complete copies like any
// other.

/// The versions of one target; see the head of this file. Blocks.
package struct CopyVersions: Sendable {
    private let target: String

    package init(of target: String) { self.target = target }

    /// The path of a version.
    package func path(_ name: String) -> String { "\(target)@\(name)" }

    /// Whether the version is there already and equals the cut; throws when the name is taken by
    /// something else.
    func holds(_ cut: CopyCut, as name: String) throws(CopyError) -> Bool {
        let path = path(name)
        guard access(path, F_OK) == 0 else { return false }
        if case .record(let record) = try CopyRecordFile(besideTarget: path).load(),
            record.state == .complete, record.equals?.isSameMoment(as: cut) == true
        {
            return true
        }
        throw CopyError(.busy, "\(path) exists and is another version; choose another name")
    }

    private func failure(_ path: String, _ errnoValue: Int32) -> CopyError {
        CopyError(
            .failed,
            "version \(path) cannot be made (\(CopyTarget.text(errnoValue))); the copy itself is as "
                + "it was")
    }

    /// Keeps what an open target holds, which `record` describes. Returns what the user should
    /// know of the cost.
    func keep(
        _ record: CopyRecord, of source: Int32, as name: String
    ) throws(CopyError) -> [String] {
        let path = path(name)
        let temporary = path + CopyPlace.besideSuffix
        let made = open(temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard made >= 0 else { throw failure(path, errno) }
        defer { close(made) }
        do throws(CopyError) {
            var notes: [String] = []
            if cl_clone_file(made, source) != 0 {
                let byteCount = try copyData(from: source, to: made, size: record.target.size)
                notes.append(
                    "\(path) was copied in full, \(byteCount) bytes: the filesystem cannot share "
                        + "blocks between files (XFS and btrfs can)")
            }
            guard fsync(made) == 0 else { throw failure(path, errno) }
            var found = stat()
            guard fstat(made, &found) == 0 else { throw failure(path, errno) }
            var kept = record
            kept.target.inode = UInt64(found.st_ino)
            kept.target.changedNanoseconds =
                Int64(found.st_mtim.tv_sec) * 1_000_000_000 + Int64(found.st_mtim.tv_nsec)
            // A version needs its name no longer than the copy does.
            kept.isNameOwned = nil
            try CopyRecordFile(besideTarget: path).store(kept)
            guard rename(temporary, path) == 0 else { throw failure(path, errno) }
            try CopyRecordFile.syncDirectory(of: path)
            return notes
        } catch {
            unlink(temporary)
            throw error
        }
    }

    /// Keeps a target that is about to be replaced, whole: a second name costs nothing.
    func keepByLink(_ record: CopyRecord, as name: String) throws(CopyError) {
        let path = path(name)
        guard let cut = record.equals, !(try holds(cut, as: name)) else { return }
        var kept = record
        kept.isNameOwned = nil
        try CopyRecordFile(besideTarget: path).store(kept)
        guard link(target, path) == 0 else { throw failure(path, errno) }
        try CopyRecordFile.syncDirectory(of: path)
    }

    private static let pieceByteCount = 1 << 20

    /// Copies data and leaves holes; returns the bytes copied.
    private func copyData(
        from source: Int32, to made: Int32, size: UInt64
    ) throws(CopyError) -> UInt64 {
        guard ftruncate(made, off_t(size)) == 0 else { throw failure(target, errno) }
        let piece = UnsafeMutableRawPointer.allocate(
            byteCount: Self.pieceByteCount, alignment: 4096)
        defer { piece.deallocate() }
        var position: off_t = 0
        var copied: UInt64 = 0
        while position < off_t(size) {
            let data = lseek(source, position, cl_seek_data)
            if data < 0, errno == ENXIO { break }
            // A filesystem that does not know its holes has data everywhere.
            let begin = data < 0 ? position : data
            let hole = lseek(source, begin, cl_seek_hole)
            let end = min(hole < 0 ? off_t(size) : hole, off_t(size))
            position = begin
            while position < end {
                let count = pread(
                    source, piece, min(Self.pieceByteCount, Int(end - position)), position)
                guard count > 0 else { throw failure(target, count < 0 ? errno : EIO) }
                var done = 0
                while done < count {
                    let written = pwrite(
                        made, piece + done, count - done, position + off_t(done))
                    guard written > 0 else { throw failure(target, written < 0 ? errno : ENOSPC) }
                    done += written
                }
                position += off_t(count)
                copied += UInt64(count)
            }
        }
        return copied
    }
}
