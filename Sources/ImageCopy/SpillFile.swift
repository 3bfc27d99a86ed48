internal import CLinux
internal import CopyPlanning
internal import Glibc
internal import Host
internal import Origins
internal import Synchronization

/// A file without a name, which keeps pieces of a copy for some seconds. It ends with its object, or its process.
package final class SpillFile: Sendable {
    /// A piece: where it belongs in the target, and where it is.
    struct Piece: Sendable {
        let offset: UInt64
        fileprivate let place: Int
        fileprivate let byteCount: Int
    }

    private struct State {
        var end = 0
        var isFull = false
    }

    private let descriptor: Int32
    private let byteCountMax: Int
    private let state = Mutex(State())

    /// Makes one in a directory, for at most half of what is free there; nil when that is refused, or when the
    /// directory stands on one of these block devices, whose filesystems are to be frozen.
    package init?(in directory: String, notOn devices: [String]) {
        let descriptor = cl_open_unnamed(directory)
        guard descriptor >= 0 else { return nil }
        var space = statvfs()
        guard fstatvfs(descriptor, &space) == 0,
            BlockTopology.stands(descriptor, onNoneOf: devices)
        else {
            close(descriptor)
            return nil
        }
        self.descriptor = descriptor
        byteCountMax = Int(clamping: UInt64(space.f_bavail) * UInt64(space.f_frsize) / 2)
    }

    deinit { close(descriptor) }

    /// Keeps a piece; nil when there is no room for it, or the file cannot be written.
    func keep(_ bytes: UnsafeRawPointer, _ byteCount: Int, for offset: UInt64) -> Piece? {
        let place = state.withLock { state -> Int? in
            guard !state.isFull, state.end + byteCount <= byteCountMax else { return nil }
            defer { state.end += byteCount }
            return state.end
        }
        guard let place else { return nil }
        var done = 0
        while done < byteCount {
            let count = pwrite(descriptor, bytes + done, byteCount - done, off_t(place + done))
            if count < 0, errno == EINTR { continue }
            guard count > 0 else {
                // The target takes this piece and all that follow.
                state.withLock { $0.isFull = true }
                return nil
            }
            done += count
        }
        return Piece(offset: offset, place: place, byteCount: byteCount)
    }

    /// Reads a piece back.
    func bytes(of piece: Piece) throws(CopyError) -> [UInt8] {
        var done = 0
        var failure: Int32 = 0
        let bytes = [UInt8](unsafeUninitializedCapacity: piece.byteCount) { buffer, count in
            while done < piece.byteCount {
                let length = pread(
                    descriptor, buffer.baseAddress.unsafelyUnwrapped + done,
                    piece.byteCount - done, off_t(piece.place + done))
                if length < 0, errno == EINTR { continue }
                guard length > 0 else {
                    failure = length < 0 ? errno : EIO
                    break
                }
                done += length
            }
            count = done
        }
        guard failure == 0 else {
            throw CopyError(
                .failed,
                "what was read while filesystems were frozen cannot be read back "
                    + "(\(SystemFile.errorText(failure))); run the same command again")
        }
        return bytes
    }
}
