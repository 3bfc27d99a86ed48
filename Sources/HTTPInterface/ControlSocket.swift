internal import ControlDocuments
internal import Host
package import CLinux
package import Glibc
internal import RingIO
internal import Synchronization

// The control socket, from the claim on its path to its removal; or one that was passed, whose path
// is left alone.
//
// Invariants
// - Between `init(claiming:)` and `listen` this process holds a lock on the directory, so of two
//   services that start at once on one path the second finds the first one's socket alive.
// - `remove` removes only the socket that this process bound.

/// The control socket before and after it is served; see the head of this file.
package final class ControlSocket: Sendable {
    let path: String
    /// The socket that was passed, in place of one of our own.
    private let passed: PassedSocket?
    /// Descriptor that carries the lock on the directory; nil once it is given up.
    private let directory: Mutex<Int32?>
    /// Of the socket that this process bound.
    private let inode = Mutex<UInt64?>(nil)

    private static let backlog: Int32 = 256
    /// Longest wait for another service that starts on the same path.
    private static let lockNanoseconds: UInt64 = 10_000_000_000

    /// Makes the directory where missing, refuses a live socket and anything that is not a socket,
    /// removes a stale one. Blocks.
    package init(claiming path: String) throws {
        try checkSocketPath(path)
        self.path = path
        passed = nil
        let slash = path.lastIndex(of: "/") ?? path.startIndex
        let parent = slash == path.startIndex ? "/" : String(path[..<slash])
        do throws(HostError) {
            try makePrivateDirectory(parent)
        } catch {
            throw ControlError(
                .failed,
                "directory of control socket \(path) cannot be made (\(error)); name another "
                    + "socket with --control")
        }
        let descriptor = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else {
            let failure = HostError(parent, errno)
            throw ControlError(.failed, "control socket \(path): \(failure)")
        }
        directory = Mutex(descriptor)
        // What throws from here on is cleaned up by `deinit`.
        let deadline = cl_now_nanoseconds() + Self.lockNanoseconds
        guard LockWait(LOCK_EX, on: descriptor).wait(until: deadline) else {
            throw ControlError(
                .busy,
                "the directory of control socket \(path) is locked by another service's start")
        }
        try removeStale()
    }

    /// A socket that listens already at `path`.
    package init(passed: PassedSocket, at path: String) {
        self.path = path
        self.passed = passed
        directory = Mutex(nil)
    }

    deinit { unlockDirectory() }

    /// Returns the descriptor of the socket, which listens now, for its user alone. It is the
    /// caller's.
    package func listen() throws -> Int32 {
        if let passed { return passed.descriptor }
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw failed(errno) }
        guard withSocketAddress(path, { bind(descriptor, $0, $1) }) == 0 else {
            let reason = errno
            close(descriptor)
            throw failed(reason)
        }
        var facts = stat()
        // Nobody can connect before `listen`, so it is private from its first use on.
        guard chmod(path, 0o600) == 0, lstat(path, &facts) == 0,
            Glibc.listen(descriptor, Self.backlog) == 0
        else {
            let reason = errno
            close(descriptor)
            unlink(path)
            throw failed(reason)
        }
        inode.withLock { $0 = UInt64(facts.st_ino) }
        unlockDirectory()
        return descriptor
    }

    /// Removes the socket, if it is still ours.
    package func remove() {
        var facts = stat()
        guard let inode = inode.withLock({ $0 }), lstat(path, &facts) == 0,
            UInt64(facts.st_ino) == inode
        else { return }
        // A socket that stays is stale and replaced by the next start.
        unlink(path)
    }

    private func failed(_ reason: Int32) -> ControlError {
        ControlError(
            .failed, "control socket: \(HostError(path, reason))")
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
            throw failed(reason)
        }
        guard facts.st_mode & S_IFMT == S_IFSOCK else {
            throw ControlError(
                .busy,
                "\(path) exists and is not a socket; move it away or name another with --control")
        }
        let probe = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard probe >= 0 else { throw failed(errno) }
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
                "\(HostError(path, reason)): whether a service listens "
                    + "there is unknown; name another socket with --control")
        }
        guard unlink(path) == 0 || errno == ENOENT else { throw failed(errno) }
    }
}

/// Calls `body` with the address of the Unix socket at `path`, whose length was checked; a leading
/// `@` names an abstract socket.
package func withSocketAddress<Result>(
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
        // SAFETY: a sockaddr_un begins as a sockaddr does.
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            body($0, socklen_t(length))
        }
    }
}
