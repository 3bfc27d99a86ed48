internal import Glibc

/// Where the server listens.
package enum NBDListenAddress: Sendable {
    /// A Unix socket with the file mode given.
    case unix(path: String, mode: UInt32 = 0o600)
    case tcp(host: String, port: UInt16)
    /// A socket that listens already (socket activation); the server closes it.
    case descriptor(Int32)
}

/// An open listening socket.
struct ListeningSocket: Sendable {
    let descriptor: Int32
    let isTCP: Bool
    /// The path to remove at the end, with the identity of the node we made.
    let path: String?
    let node: Node?
    /// What it listens on: the port, for TCP.
    let port: UInt16?

    struct Node: Equatable, Sendable {
        let device: UInt64
        let inode: UInt64

        init?(path: String) {
            var facts = stat()
            guard lstat(path, &facts) == 0 else { return nil }
            device = UInt64(facts.st_dev)
            inode = UInt64(facts.st_ino)
        }
    }

    private static let backlog: Int32 = 128
    /// Most bytes of a socket's path, without the final zero.
    private static let pathByteCountMax = 107

    /// Opens a socket; blocks, so it runs on a thread of its own.
    static func open(
        _ address: NBDListenAddress, allowsPlaintext: Bool
    ) throws(NBDServerError) -> ListeningSocket {
        switch address {
        case .unix(let path, let mode): try openUnix(path, mode)
        case .tcp(let host, let port): try openTCP(host, port, allowsPlaintext)
        case .descriptor(let descriptor): try adopt(descriptor, allowsPlaintext)
        }
    }

    /// Removes the socket's node, if it is still the one that was made.
    func removeNode() {
        guard let path, let node, Node(path: path) == node else { return }
        unlink(path)
    }

    /// Closes the descriptor.
    func closeDescriptor() { close(descriptor) }

    /// No waiting for more bytes; notice peers that are gone.
    static func tuneTCP(_ descriptor: Int32) {
        set(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, 1)
        set(descriptor, SOL_SOCKET, SO_KEEPALIVE, 1)
        set(descriptor, Int32(IPPROTO_TCP), TCP_KEEPIDLE, 60)
        set(descriptor, Int32(IPPROTO_TCP), TCP_KEEPINTVL, 10)
        set(descriptor, Int32(IPPROTO_TCP), TCP_KEEPCNT, 6)
    }

    private static func set(_ descriptor: Int32, _ level: Int32, _ option: Int32, _ value: Int32) {
        var value = value
        // What a socket does not know it goes without.
        _ = setsockopt(descriptor, level, option, &value, socklen_t(MemoryLayout<Int32>.size))
    }

    // MARK: Unix

    private static func openUnix(
        _ path: String, _ mode: UInt32
    ) throws(NBDServerError) -> ListeningSocket {
        guard !path.isEmpty, path.utf8.count <= pathByteCountMax, !path.utf8.contains(0) else {
            throw NBDServerError(
                .invalid,
                "NBD socket \(path): a path has 1 to \(pathByteCountMax) bytes, this one "
                    + "\(path.utf8.count); use a shorter directory")
        }
        try replaceStale(path)
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw failure("NBD socket \(path)", errno) }
        do throws(NBDServerError) {
            let result = withUnixAddress(path) { bind(descriptor, $0, $1) }
            guard result == 0 else { throw failure("NBD socket \(path)", errno) }
            // Nobody can connect before `listen`, so nobody does with a wider mode.
            guard chmod(path, mode) == 0, listen(descriptor, backlog) == 0 else {
                let reason = errno
                unlink(path)
                throw failure("NBD socket \(path)", reason)
            }
        } catch {
            close(descriptor)
            throw error
        }
        return ListeningSocket(
            descriptor: descriptor, isTCP: false, path: path, node: Node(path: path), port: nil)
    }

    /// Removes a socket nobody listens on; refuses a live one, and what is no socket.
    private static func replaceStale(_ path: String) throws(NBDServerError) {
        var facts = stat()
        guard lstat(path, &facts) == 0 else { return }
        guard facts.st_mode & S_IFMT == S_IFSOCK else {
            throw NBDServerError(
                .invalid, "NBD socket \(path): something else is there; name another path")
        }
        let probe = socket(
            AF_UNIX,
            Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0)
        guard probe >= 0 else { throw failure("NBD socket \(path)", errno) }
        defer { close(probe) }
        let result = withUnixAddress(path) { connect(probe, $0, $1) }
        let reason = errno
        guard result != 0, reason == ECONNREFUSED || reason == ENOENT else {
            throw NBDServerError(
                .busy, "NBD socket \(path): a server listens there; stop it or name another path")
        }
        unlink(path)
    }

    private static func withUnixAddress(
        _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
    ) -> Int32 {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
        return withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
    }

    // MARK: TCP

    private static func openTCP(
        _ host: String, _ port: UInt16, _ allowsPlaintext: Bool
    ) throws(NBDServerError) -> ListeningSocket {
        let name = "NBD address \(host):\(port)"
        var hints = addrinfo()
        hints.ai_family = AF_UNSPEC
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV
        var found: UnsafeMutablePointer<addrinfo>?
        let result = getaddrinfo(host, String(port), &hints, &found)
        guard result == 0, let found, let address = found.pointee.ai_addr else {
            throw NBDServerError(
                .invalid, "\(name): \(String(cString: gai_strerror(result))); give an address")
        }
        defer { freeaddrinfo(found) }
        try checkLoopback(UnsafePointer(address), name, allowsPlaintext)
        let descriptor = socket(
            found.pointee.ai_family, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw failure(name, errno) }
        set(descriptor, SOL_SOCKET, SO_REUSEADDR, 1)
        guard bind(descriptor, address, found.pointee.ai_addrlen) == 0,
            listen(descriptor, backlog) == 0
        else {
            let reason = errno
            close(descriptor)
            throw failure(name, reason)
        }
        return ListeningSocket(
            descriptor: descriptor, isTCP: true, path: nil, node: nil,
            port: localPort(descriptor) ?? port)
    }

    private static func checkLoopback(
        _ address: UnsafePointer<sockaddr>, _ name: String, _ allowsPlaintext: Bool
    ) throws(NBDServerError) {
        guard allowsPlaintext || isLoopback(address) else {
            throw NBDServerError(
                .invalid,
                "\(name): without TLS only loopback addresses are served; "
                    + "use one, or give --allow-plaintext")
        }
    }

    private static func isLoopback(_ address: UnsafePointer<sockaddr>) -> Bool {
        let bytes = UnsafeRawPointer(address)
        switch Int32(address.pointee.sa_family) {
        case AF_INET:
            return UInt32(bigEndian: bytes.load(as: sockaddr_in.self).sin_addr.s_addr) >> 24 == 127
        case AF_INET6:
            let address = bytes.load(as: sockaddr_in6.self).sin6_addr
            return withUnsafeBytes(of: address) { bytes in
                bytes[15] == 1 && bytes[0..<15].allSatisfy { $0 == 0 }
                    || bytes[0..<10].allSatisfy { $0 == 0 } && bytes[10] == 0xFF
                        && bytes[11] == 0xFF && bytes[12] == 127
            }
        default:
            return false
        }
    }

    private static func localPort(_ descriptor: Int32) -> UInt16? {
        withLocalAddress(descriptor) { address in
            let bytes = UnsafeRawPointer(address)
            return switch Int32(address.pointee.sa_family) {
            case AF_INET: UInt16(bigEndian: bytes.load(as: sockaddr_in.self).sin_port)
            case AF_INET6: UInt16(bigEndian: bytes.load(as: sockaddr_in6.self).sin6_port)
            default: nil
            }
        }
    }

    private static func withLocalAddress<Value>(
        _ descriptor: Int32, _ body: (UnsafePointer<sockaddr>) -> Value?
    ) -> Value? {
        var storage = sockaddr_storage()
        var byteCount = socklen_t(MemoryLayout<sockaddr_storage>.size)
        return withUnsafeMutablePointer(to: &storage) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
                getsockname(descriptor, address, &byteCount) == 0 ? body(address) : nil
            }
        }
    }

    // MARK: Sockets from outside

    private static func adopt(
        _ descriptor: Int32, _ allowsPlaintext: Bool
    ) throws(NBDServerError) -> ListeningSocket {
        let name = "NBD descriptor \(descriptor)"
        var listens: Int32 = 0
        var byteCount = socklen_t(MemoryLayout<Int32>.size)
        guard getsockopt(descriptor, SOL_SOCKET, SO_ACCEPTCONN, &listens, &byteCount) == 0,
            listens == 1
        else {
            throw NBDServerError(
                .invalid, "\(name): it is no listening socket; check the socket unit")
        }
        let isUnix =
            withLocalAddress(descriptor) { Int32($0.pointee.sa_family) == AF_UNIX } ?? false
        if !isUnix {
            let isLocal = withLocalAddress(descriptor) { isLoopback($0) } ?? false
            guard isLocal || allowsPlaintext else {
                throw NBDServerError(
                    .invalid,
                    "\(name): without TLS only loopback addresses are served; "
                        + "use one, or give --allow-plaintext")
            }
        }
        return ListeningSocket(
            descriptor: descriptor, isTCP: !isUnix, path: nil, node: nil,
            port: isUnix ? nil : localPort(descriptor))
    }

    private static func failure(_ name: String, _ reason: Int32) -> NBDServerError {
        let text = String(cString: strerror(reason))
        return switch reason {
        case EADDRINUSE:
            NBDServerError(.busy, "\(name): \(text); stop who listens there or choose another")
        case EACCES, EPERM:
            NBDServerError(.failed, "\(name): \(text); check the rights of the directory or port")
        default:
            NBDServerError(.failed, "\(name): \(text); check the address and try again")
        }
    }
}
