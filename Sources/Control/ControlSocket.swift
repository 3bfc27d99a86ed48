internal import CLinux
internal import Glibc
internal import RingIO
internal import Synchronization

// The path of the control socket, from claim to removal.
//
// Invariants
// - Between `init` and `bound` this process holds a lock on the directory, so of two services that
//   start at once on one path the second finds the first one's socket alive.
// - `remove` removes only the socket that this process bound.

/// The claim on the path of the control socket; see the head of this file.
final class ControlSocket: Sendable {
    let path: String
    /// Descriptor that carries the lock on the directory; nil once it is given up.
    private let directory: Mutex<Int32?>
    /// Of the socket that this process bound.
    private let inode = Mutex<UInt64?>(nil)

    /// Makes the directory where missing, refuses a live socket and anything that is no socket,
    /// removes a stale one. Blocks.
    init(claiming path: String) throws {
        try checkSocketPath(path)
        self.path = path
        let slash = path.lastIndex(of: "/") ?? path.startIndex
        let parent = slash == path.startIndex ? "/" : String(path[..<slash])
        do throws(SystemFailure) {
            try makePrivateDirectory(parent)
        } catch {
            throw ControlError(
                .failed,
                "directory of control socket \(path) cannot be made (\(error)); name another "
                    + "socket with --control")
        }
        let descriptor = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else {
            let failure = SystemFailure(subject: parent, errnoValue: errno)
            throw ControlError(.failed, "control socket \(path): \(failure)")
        }
        directory = Mutex(descriptor)
        // What throws from here on is cleaned up by `deinit`.
        try Self.lock(descriptor, for: path)
        try removeStale()
    }

    deinit { unlockDirectory() }

    /// Tells that the server listens on the path now: for its user alone.
    func bound() throws {
        var facts = stat()
        guard chmod(path, 0o600) == 0, lstat(path, &facts) == 0 else {
            let failure = SystemFailure(subject: path, errnoValue: errno)
            throw ControlError(.failed, "control socket: \(failure)")
        }
        inode.withLock { $0 = UInt64(facts.st_ino) }
        unlockDirectory()
    }

    /// Removes the socket, if it is still ours.
    func remove() {
        var facts = stat()
        guard let inode = inode.withLock({ $0 }), lstat(path, &facts) == 0,
            UInt64(facts.st_ino) == inode
        else { return }
        // A socket that stays is stale and replaced by the next start.
        unlink(path)
    }

    private static func lock(_ directory: Int32, for path: String) throws {
        // Held by others only while they start; ten seconds are plenty.
        let deadline = cl_now_nanoseconds() + 10_000_000_000
        guard LockWait(LOCK_EX, on: directory).wait(until: deadline) else {
            throw ControlError(
                .busy,
                "the directory of control socket \(path) is locked by another service's start")
        }
    }

    private func unlockDirectory() {
        directory.withLock { directory in
            if let descriptor = directory { close(descriptor) }
            directory = nil
        }
    }

    private func removeStale() throws {
        var facts = stat()
        guard lstat(path, &facts) == 0 else {
            let reason = errno
            if reason == ENOENT { return }
            throw ControlError(
                .failed, "control socket: \(SystemFailure(subject: path, errnoValue: reason))")
        }
        guard facts.st_mode & S_IFMT == S_IFSOCK else {
            throw ControlError(
                .busy,
                "\(path) exists and is no socket; move it away or name another with --control")
        }
        let probe = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard probe >= 0 else {
            throw ControlError(
                .failed, "control socket: \(SystemFailure(subject: path, errnoValue: errno))")
        }
        defer { close(probe) }
        let result = withSocketAddress(path) { connect(probe, $0, $1) }
        let reason = errno
        guard result != 0 else {
            throw ControlError(
                .busy,
                "another service listens on \(path); stop that one or name another socket with "
                    + "--control")
        }
        guard reason == ECONNREFUSED else {
            throw ControlError(
                .busy,
                "\(SystemFailure(subject: path, errnoValue: reason)): whether a service listens "
                    + "there is unknown; name another socket with --control")
        }
        guard unlink(path) == 0 || errno == ENOENT else {
            throw ControlError(
                .failed, "control socket: \(SystemFailure(subject: path, errnoValue: errno))")
        }
    }
}

/// Calls `body` with the address of the Unix socket at `path`, whose length was checked; a leading
/// `@` names an abstract socket.
func withSocketAddress<Result>(
    _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Result
) -> Result {
    precondition(path.utf8.count <= socketPathByteCountMax, "a socket path was checked before")
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    // The length of an abstract name is that of its bytes; a path ends with a zero.
    let isAbstract = path.hasPrefix("@")
    if isAbstract { address.sun_path.0 = 0 }
    let length =
        MemoryLayout<sa_family_t>.size + path.utf8.count + (isAbstract ? 0 : 1)
    return withUnsafePointer(to: &address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            body($0, socklen_t(length))
        }
    }
}
