internal import CLinux
internal import Glibc

/// A socket that listens, and what TLS is to those who connect to it.
struct NBDListeningSocket: Sendable {
    let descriptor: Int32
    let security: NBDSecurity
}

/// Listening sockets and the options of connections.
enum NBDSocket {
    private static let backlog: Int32 = 256

    /// Opens a listening socket. A Unix socket gets mode 0600; a stale one is replaced, a live
    /// one refused.
    static func listen(
        _ endpoint: NBDEndpoint, _ exposureRefusal: NBDExposureRefusal?
    ) throws(NBDServerError) -> Int32 {
        switch endpoint {
        case .unix(let path): try listenUnix(path)
        case .tcp(let host, let port):
            try listenTCP(host, port, exposureRefusal)
        case .passed(let descriptor, let address):
            try takeOver(descriptor, at: address, exposureRefusal)
        }
    }

    /// Sets what every connection wants: no delay of small replies, an end for dead peers. Unix
    /// sockets know neither option, and need neither.
    static func tune(_ socket: Int32) {
        var one: Int32 = 1
        let size = socklen_t(MemoryLayout<Int32>.size)
        setsockopt(socket, Int32(IPPROTO_TCP), TCP_NODELAY, &one, size)
        setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &one, size)
    }

    /// Two sockets that are connected to each other; nil when the system has none.
    static func pair() -> (Int32, Int32)? {
        var descriptors: [Int32] = [-1, -1]
        let kind = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
        guard socketpair(AF_UNIX, kind, 0, &descriptors) == 0 else { return nil }
        return (descriptors[0], descriptors[1])
    }

    // MARK: Unix

    private static func listenUnix(_ path: String) throws(NBDServerError) -> Int32 {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let capacity = MemoryLayout.size(ofValue: address.sun_path)
        guard !path.isEmpty, path.utf8.count < capacity else {
            throw NBDServerError(
                kind: .refused,
                message: "NBD socket \(path): a socket's path has 1 to \(capacity - 1) bytes")
        }
        withUnsafeMutableBytes(of: &address.sun_path) { bytes in
            bytes.copyBytes(from: path.utf8)
        }
        try removeStale(path, address)
        let socket = try open(AF_UNIX, path)
        guard withSocketAddress(address, { bind(socket, $0, $1) }) == 0 else {
            let failure = errno
            close(socket)
            throw failed(path, failure)
        }
        // Nobody can connect before `listen`, so the socket is private from its first use on.
        guard chmod(path, 0o600) == 0, Glibc.listen(socket, backlog) == 0 else {
            let failure = errno
            close(socket)
            unlink(path)
            throw failed(path, failure)
        }
        return socket
    }

    private static func removeStale(
        _ path: String, _ address: sockaddr_un
    ) throws(NBDServerError) {
        var status = stat()
        guard lstat(path, &status) == 0 else { return }
        guard status.st_mode & Glibc.S_IFMT == Glibc.S_IFSOCK else {
            throw NBDServerError(
                kind: .busy, message: "NBD socket \(path) exists and is not a socket; remove it")
        }
        let probe = try open(AF_UNIX, path)
        defer { close(probe) }
        let result = withSocketAddress(address) { connect(probe, $0, $1) }
        let failure = errno
        // The kernel may hold a listener for a moment after its service was killed, until the
        // accept that waited in the ring has ended: nobody will answer there.
        let isOrphan = result == 0 && !cl_process_lives(cl_peer_process(probe))
        guard isOrphan || (result != 0 && failure == ECONNREFUSED) else {
            throw NBDServerError(
                kind: .busy,
                message: "NBD socket \(path) is served by another process; stop that first or "
                    + "choose another path with --nbd")
        }
        unlink(path)
    }

    // MARK: TCP

    private static func listenTCP(
        _ host: String, _ port: UInt16, _ exposureRefusal: NBDExposureRefusal?
    ) throws(NBDServerError) -> Int32 {
        do throws(TCPListenError) {
            return try TCPSocket.listen(host, port, backlog: backlog) { address in
                exposureRefusal?.message(of: address)
            }
        } catch {
            switch error {
            case .busy(let name):
                throw NBDServerError(
                    kind: .busy, message: "NBD address \(name) is in use; choose another port")
            case .unknown(let name, let reason):
                throw NBDServerError(kind: .refused, message: "NBD address \(name): \(reason)")
            case .refused(let message):
                throw NBDServerError(kind: .refused, message: message)
            case .failed(let name, let reason): throw failed(name, reason)
            }
        }
    }

    // MARK: Passed

    private static func takeOver(
        _ descriptor: Int32, at address: NBDEndpoint, _ exposureRefusal: NBDExposureRefusal?
    ) throws(NBDServerError) -> Int32 {
        if case .tcp(let host, let port) = address, let exposureRefusal {
            let name = "tcp:\(host):\(port)"
            var storage = sockaddr_storage()
            var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
            let isPrivate: Bool? = withUnsafeMutablePointer(to: &storage) { pointer in
                // SAFETY: a sockaddr_storage begins as a sockaddr does.
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    getsockname(descriptor, $0, &length) == 0
                        ? TCPSocket.isLoopback($0) : nil
                }
            }
            guard let isPrivate else { throw failed(name, errno) }
            guard isPrivate else {
                throw NBDServerError(kind: .refused, message: exposureRefusal.message(of: name))
            }
        }
        // The ring waits for clients by itself, and would not where the socket forbids waiting.
        let flags = fcntl(descriptor, F_GETFL)
        guard flags >= 0, fcntl(descriptor, F_SETFL, flags & ~O_NONBLOCK) == 0 else {
            throw failed("passed socket", errno)
        }
        return descriptor
    }

    // MARK: Helpers

    private static func open(_ family: Int32, _ name: String) throws(NBDServerError) -> Int32 {
        let kind = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
        let descriptor = socket(family, kind, 0)
        guard descriptor >= 0 else { throw failed(name, errno) }
        return descriptor
    }

    private static func withSocketAddress(
        _ address: sockaddr_un, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
    ) -> Int32 {
        withUnsafePointer(to: address) { pointer in
            // SAFETY: a sockaddr_storage begins as a sockaddr does.
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
    }

    private static func failed(_ name: String, _ failure: Int32) -> NBDServerError {
        NBDServerError(
            kind: .failed, message: "NBD \(name): \(String(cString: strerror(failure)))")
    }
}
