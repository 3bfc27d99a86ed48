internal import CLinux
internal import Glibc

// Plain calls of the system that the control plane needs. All of them can block: callers run them
// on the blocking pool, or before the service runs.

/// An open descriptor, closed when it goes.
package struct Descriptor: ~Copyable {
    /// Open until the value is gone.
    package let number: Int32

    package init(opening path: String, _ flags: Int32, mode: UInt32 = 0o600) throws(HostError) {
        number = open(path, flags | O_CLOEXEC, mode)
        guard number >= 0 else { throw HostError(path, errno) }
    }

    package init(owning number: Int32) { self.number = number }

    // Callers that need to know that data arrived have synced before; close does not report it.
    deinit { close(number) }
}

/// Returns the absolute path of an existing file with symbolic links resolved.
package func resolvedPath(_ path: String) throws(HostError) -> String {
    guard let resolved = realpath(path, nil) else {
        throw HostError(path, errno)
    }
    defer { free(resolved) }
    return String(cString: resolved)
}

/// Makes a directory and those above it where missing, for this user alone. One that is there
/// already keeps its mode: it is its owner's choice.
package func makePrivateDirectory(_ path: String) throws(HostError) {
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
package func readWhole(_ path: String, byteCountMax: Int) throws(HostError) -> [UInt8]? {
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
package func errnoText(_ errnoValue: Int32) -> String { String(cString: strerror(errnoValue)) }
