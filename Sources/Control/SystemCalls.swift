internal import Host
internal import CLinux
internal import CopyOnWrite
internal import Glibc

// Plain calls of the system that the control plane needs. All of them can block: callers run them
// on the blocking pool, or before the service runs.

/// An open descriptor, closed when it goes.
struct Descriptor: ~Copyable {
    let number: Int32

    init(opening path: String, _ flags: Int32, mode: mode_t = 0o600) throws(HostError) {
        number = open(path, flags | O_CLOEXEC, mode)
        guard number >= 0 else { throw HostError(path, errno) }
    }

    init(owning number: Int32) { self.number = number }

    // Callers that need to know that data arrived have synced before; close does not report it.
    deinit { close(number) }
}

/// Returns the absolute path of an existing file with symbolic links resolved.
func resolvedPath(_ path: String) throws(HostError) -> String {
    guard let resolved = realpath(path, nil) else {
        throw HostError(path, errno)
    }
    defer { free(resolved) }
    return String(cString: resolved)
}

/// Makes a directory and those above it where missing, for this user alone. One that is there
/// already keeps its mode: it is its owner's choice.
func makePrivateDirectory(_ path: String) throws(HostError) {
    if mkdir(path, 0o700) != 0 {
        let reason = errno
        if reason == ENOENT, let slash = path.lastIndex(of: "/"), slash != path.startIndex {
            try makePrivateDirectory(String(path[..<slash]))
            guard mkdir(path, 0o700) == 0 || errno == EEXIST else {
                throw HostError(path, errno)
            }
        } else if reason != EEXIST {
            throw HostError(path, reason)
        }
    }
    var facts = stat()
    guard stat(path, &facts) == 0 else { throw HostError(path, errno) }
    guard facts.st_mode & S_IFMT == S_IFDIR else {
        throw HostError(path, ENOTDIR)
    }
}

/// Reads a file of at most `byteCountMax` bytes; nil when there is none.
func readWhole(_ path: String, byteCountMax: Int) throws(HostError) -> [UInt8]? {
    let number = open(path, O_RDONLY | O_CLOEXEC)
    guard number >= 0 else {
        let reason = errno
        if reason == ENOENT { return nil }
        throw HostError(path, reason)
    }
    let file = Descriptor(owning: number)
    var bytes: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 65536)
    while true {
        let count = read(file.number, &piece, piece.count)
        let reason = errno
        if count < 0 && reason == EINTR { continue }
        guard count >= 0 else { throw HostError(path, reason) }
        if count == 0 { return bytes }
        bytes += piece[..<count]
        guard bytes.count <= byteCountMax else {
            throw HostError(path, EFBIG)
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
