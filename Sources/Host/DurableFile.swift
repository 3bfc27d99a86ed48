internal import Glibc

/// Files that are replaced as a whole. All calls block.
package enum DurableFile {
    /// Replaces the file at `path` so that after a crash either the old or the new contents are
    /// there: a file beside it is written and synced, and renamed over it; then the directory is
    /// synced.
    package static func replace(_ path: String, with bytes: [UInt8]) throws(HostError) {
        try replace(path) { descriptor throws(HostError) in
            try write(bytes, to: descriptor, temporaryPath(of: path))
        }
    }

    /// The same with contents that `fill` writes to the new file. `syncsDirectory`: false where the
    /// file does not have to outlive the machine.
    package static func replace(
        _ path: String, syncsDirectory: Bool = true,
        filling fill: (_ descriptor: Int32) throws(HostError) -> Void
    ) throws(HostError) {
        let temporary = temporaryPath(of: path)
        do throws(HostError) {
            let descriptor = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
            guard descriptor >= 0 else { throw HostError(temporary, errno) }
            defer { close(descriptor) }
            try fill(descriptor)
            guard fsync(descriptor) == 0 else { throw HostError(temporary, errno) }
            guard rename(temporary, path) == 0 else { throw HostError(path, errno) }
        } catch {
            // If the file cannot be removed, the next attempt overwrites it.
            unlink(temporary)
            throw error
        }
        if syncsDirectory { try syncDirectory(of: path) }
    }

    /// Writes all of `bytes`; `path` names the file in an error.
    package static func write(
        _ bytes: [UInt8], to descriptor: Int32, _ path: String
    ) throws(HostError) {
        var written = 0
        while written < bytes.count {
            let count = bytes.withUnsafeBytes {
                Glibc.write(
                    descriptor, $0.baseAddress.unsafelyUnwrapped + written, $0.count - written)
            }
            let reason = errno
            if count < 0, reason == EINTR { continue }
            guard count > 0 else { throw HostError(path, count < 0 ? reason : ENOSPC) }
            written += count
        }
    }

    /// Makes the names in the directory of `path` durable.
    package static func syncDirectory(of path: String) throws(HostError) {
        let parent = directory(of: path)
        let descriptor = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw HostError(parent, errno) }
        defer { close(descriptor) }
        guard fsync(descriptor) == 0 else { throw HostError(parent, errno) }
    }

    /// The directory that holds `path`.
    package static func directory(of path: String) -> String {
        guard let slash = path.lastIndex(of: "/") else { return "." }
        return slash == path.startIndex ? "/" : String(path[..<slash])
    }

    private static func temporaryPath(of path: String) -> String { path + ".new" }
}
