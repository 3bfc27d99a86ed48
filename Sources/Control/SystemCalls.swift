internal import CLinux
internal import CopyOnWrite
internal import Glibc

// Plain calls of the system that the control plane needs. All of them can block: callers run them
// on the blocking pool, or before the service runs.

/// A system call that failed, with what it was about.
struct SystemFailure: Error, CustomStringConvertible {
    let subject: String
    let errnoValue: Int32

    var description: String { "\(subject): \(String(cString: strerror(errnoValue)))" }
}

/// An open descriptor, closed when it goes.
struct Descriptor: ~Copyable {
    let number: Int32

    init(opening path: String, _ flags: Int32, mode: mode_t = 0o600) throws(SystemFailure) {
        number = open(path, flags | O_CLOEXEC, mode)
        guard number >= 0 else { throw SystemFailure(subject: path, errnoValue: errno) }
    }

    init(owning number: Int32) { self.number = number }

    // Callers that need to know that data arrived have synced before; close does not report it.
    deinit { close(number) }
}

/// Returns the absolute path of an existing file with symbolic links resolved.
func resolvedPath(_ path: String) throws(SystemFailure) -> String {
    guard let resolved = realpath(path, nil) else {
        throw SystemFailure(subject: path, errnoValue: errno)
    }
    defer { free(resolved) }
    return String(cString: resolved)
}

/// Makes a directory and those above it where missing, for this user alone. One that is there
/// already keeps its mode: it is its owner's choice.
func makePrivateDirectory(_ path: String) throws(SystemFailure) {
    if mkdir(path, 0o700) != 0 {
        let reason = errno
        if reason == ENOENT, let slash = path.lastIndex(of: "/"), slash != path.startIndex {
            try makePrivateDirectory(String(path[..<slash]))
            guard mkdir(path, 0o700) == 0 || errno == EEXIST else {
                throw SystemFailure(subject: path, errnoValue: errno)
            }
        } else if reason != EEXIST {
            throw SystemFailure(subject: path, errnoValue: reason)
        }
    }
    var facts = stat()
    guard stat(path, &facts) == 0 else { throw SystemFailure(subject: path, errnoValue: errno) }
    guard facts.st_mode & S_IFMT == S_IFDIR else {
        throw SystemFailure(subject: path, errnoValue: ENOTDIR)
    }
}

/// Writes `bytes` to `path` so that after a crash either the old or the new contents are there:
/// a file beside it, synced, renamed over it, the directory synced.
func writeDurably(_ bytes: [UInt8], to path: String) throws(SystemFailure) {
    let temporary = path + ".new"
    do throws(SystemFailure) {
        let file = try Descriptor(opening: temporary, O_WRONLY | O_CREAT | O_TRUNC)
        var written = 0
        while written < bytes.count {
            let result = bytes.withUnsafeBytes { buffer in
                write(file.number, buffer.baseAddress! + written, buffer.count - written)
            }
            let reason = errno
            if result < 0 && reason == EINTR { continue }
            guard result > 0 else {
                throw SystemFailure(
                    subject: temporary, errnoValue: result < 0 ? reason : ENOSPC)
            }
            written += result
        }
        guard fsync(file.number) == 0 else {
            throw SystemFailure(subject: temporary, errnoValue: errno)
        }
        guard rename(temporary, path) == 0 else {
            throw SystemFailure(subject: path, errnoValue: errno)
        }
    } catch {
        // The failure above is what the caller must hear of; a file that stays is overwritten by
        // the next attempt.
        unlink(temporary)
        throw error
    }
    let slash = path.lastIndex(of: "/")
    let parent = slash.map { $0 == path.startIndex ? "/" : String(path[..<$0]) } ?? "."
    let directory = try Descriptor(opening: parent, O_RDONLY | O_DIRECTORY)
    guard fsync(directory.number) == 0 else {
        throw SystemFailure(subject: parent, errnoValue: errno)
    }
}

/// Reads a file of at most `byteCountMax` bytes; nil when there is none.
func readWhole(_ path: String, byteCountMax: Int) throws(SystemFailure) -> [UInt8]? {
    let number = open(path, O_RDONLY | O_CLOEXEC)
    guard number >= 0 else {
        let reason = errno
        if reason == ENOENT { return nil }
        throw SystemFailure(subject: path, errnoValue: reason)
    }
    let file = Descriptor(owning: number)
    var bytes: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 65536)
    while true {
        let count = read(file.number, &piece, piece.count)
        let reason = errno
        if count < 0 && reason == EINTR { continue }
        guard count >= 0 else { throw SystemFailure(subject: path, errnoValue: reason) }
        if count == 0 { return bytes }
        bytes += piece[..<count]
        guard bytes.count <= byteCountMax else {
            throw SystemFailure(subject: path, errnoValue: EFBIG)
        }
    }
}

/// What an errno value says.
func errnoText(_ errnoValue: Int32) -> String { String(cString: strerror(errnoValue)) }

/// What the filesystem has of the directory at `path`, or of the one a new file at `path` would be
/// in; nil for anything else, and when the system does not report it.
func roomForFile(at path: String) -> FilesystemRoom? {
    var facts = stat()
    var directory = path
    if stat(path, &facts) != 0 {
        guard let slash = path.lastIndex(of: "/") else { return nil }
        directory = slash == path.startIndex ? "/" : String(path[..<slash])
    } else if facts.st_mode & S_IFMT != S_IFDIR {
        return nil
    }
    var space = statvfs()
    guard statvfs(directory, &space) == 0, space.f_blocks > 0 else { return nil }
    return FilesystemRoom(
        free: UInt64(space.f_bavail) * UInt64(space.f_frsize),
        size: UInt64(space.f_blocks) * UInt64(space.f_frsize))
}
