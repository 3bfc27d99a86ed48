internal import Glibc

/// A connected socket: what is to be sent is gathered, what comes in is buffered. Blocking.
package final class NBDStream {
    private var descriptor: Int32
    private var output: [UInt8] = []
    private let input: UnsafeMutableRawBufferPointer
    private var inputStart = 0
    private var inputEnd = 0

    private static let inputByteCount = 65536

    /// Connects.
    package init(connecting address: NBDServerAddress) throws(NBDAccessError) {
        switch address {
        case .unix(let path): descriptor = try Self.connectUnix(path)
        case .tcp(let host, let port): descriptor = try Self.connectTCP(host, port)
        }
        input = .allocate(byteCount: Self.inputByteCount, alignment: 16)
    }

    /// Continues with a connected socket, which it closes.
    package init(adopting descriptor: Int32) {
        self.descriptor = descriptor
        input = .allocate(byteCount: Self.inputByteCount, alignment: 16)
    }

    deinit {
        close(descriptor)
        input.deallocate()
    }

    private static func connectUnix(_ path: String) throws(NBDAccessError) -> Int32 {
        var name = sockaddr_un()
        name.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: name.sun_path) else {
            throw .unreachable(errnoValue: ENAMETOOLONG)
        }
        withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: bytes) }
        let made = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard made >= 0 else { throw .unreachable(errnoValue: errno) }
        let result = withUnsafeBytes(of: &name) { bytes in
            // SAFETY: a `sockaddr_un` is a `sockaddr` of its family, `bytes.count` bytes long.
            connect(
                made, bytes.baseAddress?.assumingMemoryBound(to: sockaddr.self),
                socklen_t(bytes.count))
        }
        guard result == 0 else {
            let reason = errno
            close(made)
            throw .unreachable(errnoValue: reason)
        }
        return made
    }

    private static func connectTCP(_ host: String, _ port: UInt16) throws(NBDAccessError) -> Int32 {
        var hints = addrinfo()
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var found: UnsafeMutablePointer<addrinfo>?
        guard getaddrinfo(host, "\(port)", &hints, &found) == 0 else {
            throw .unreachable(errnoValue: EHOSTUNREACH)
        }
        defer { freeaddrinfo(found) }
        var reason = EHOSTUNREACH
        var next = found
        while let candidate = next {
            next = candidate.pointee.ai_next
            let made = socket(
                candidate.pointee.ai_family, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
            guard made >= 0 else {
                reason = errno
                continue
            }
            if connect(made, candidate.pointee.ai_addr, candidate.pointee.ai_addrlen) == 0 {
                var one: Int32 = 1
                // Without it requests would wait for the acknowledgement of earlier ones.
                setsockopt(made, Int32(IPPROTO_TCP), TCP_NODELAY, &one, 4)
                return made
            }
            reason = errno
            close(made)
        }
        throw .unreachable(errnoValue: reason)
    }

    /// Continues over TLS: `begin` takes over the socket and returns one with the plain text.
    func secure(_ begin: (Int32) throws(NBDAccessError) -> Int32) throws(NBDAccessError) {
        // Data from before the handshake is not authenticated.
        guard inputStart == inputEnd, output.isEmpty else {
            throw .notUnderstood("more than an answer before TLS")
        }
        let bare = dup(descriptor)
        guard bare >= 0 else { throw .unreachable(errnoValue: errno) }
        let plain = try begin(bare)
        close(descriptor)
        descriptor = plain
    }

    /// Whether the other end is a process of this machine that listens at one of these ports.
    package func isLocal(ports: [UInt16]) -> Bool {
        guard let peer = Self.name(of: descriptor, getpeername),
            let own = Self.name(of: descriptor, getsockname)
        else { return false }
        return peer.host == own.host && ports.contains(peer.port)
    }

    private static func name(
        of descriptor: Int32,
        _ call: (Int32, UnsafeMutablePointer<sockaddr>?, UnsafeMutablePointer<socklen_t>?) -> Int32
    ) -> (host: [UInt8], port: UInt16)? {
        var storage = sockaddr_storage()
        var count = socklen_t(MemoryLayout<sockaddr_storage>.size)
        let result = withUnsafeMutableBytes(of: &storage) { bytes in
            // SAFETY: storage for any address, which is one of its family.
            call(
                descriptor, bytes.baseAddress?.assumingMemoryBound(to: sockaddr.self), &count)
        }
        guard result == 0 else { return nil }
        return withUnsafeBytes(of: &storage) { bytes in
            switch Int32(bytes.load(as: sa_family_t.self)) {
            case AF_INET: (Array(bytes[4..<8]), bytes.port)
            case AF_INET6: (Array(bytes[8..<24]), bytes.port)
            default: nil
            }
        }
    }

    /// Gathers bytes for the next `flush`.
    func send(_ bytes: [UInt8]) { output.append(contentsOf: bytes) }

    /// Sends what was gathered.
    func flush() throws(NBDAccessError) {
        var sent = 0
        while sent < output.count {
            let count = output.withUnsafeBytes { bytes in
                Glibc.send(
                    descriptor, bytes.baseAddress.unsafelyUnwrapped + sent, bytes.count - sent,
                    Int32(MSG_NOSIGNAL))
            }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw .ended }
            sent += count
        }
        output.removeAll(keepingCapacity: true)
    }

    /// Sends bytes without gathering them.
    func sendNow(_ bytes: UnsafeRawBufferPointer) throws(NBDAccessError) {
        var sent = 0
        while sent < bytes.count {
            let count = Glibc.send(
                descriptor, bytes.baseAddress.unsafelyUnwrapped + sent, bytes.count - sent,
                Int32(MSG_NOSIGNAL))
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw .ended }
            sent += count
        }
    }

    /// Receives exactly `byteCount` bytes into `destination`, after sending what was gathered.
    func receive(
        into destination: UnsafeMutableRawPointer, _ byteCount: Int
    ) throws(NBDAccessError) {
        if !output.isEmpty { try flush() }
        var done = 0
        while done < byteCount {
            if inputStart < inputEnd {
                let count = min(byteCount - done, inputEnd - inputStart)
                (destination + done).copyMemory(
                    from: input.baseAddress.unsafelyUnwrapped + inputStart, byteCount: count)
                inputStart += count
                done += count
                continue
            }
            // Payload goes straight to where it belongs; headers come many at a time.
            if byteCount - done >= Self.inputByteCount {
                done += try receiveSome(destination + done, byteCount - done)
            } else {
                inputStart = 0
                inputEnd = try receiveSome(
                    input.baseAddress.unsafelyUnwrapped, Self.inputByteCount)
            }
        }
    }

    private func receiveSome(
        _ place: UnsafeMutableRawPointer, _ room: Int
    ) throws(NBDAccessError) -> Int {
        while true {
            let count = recv(descriptor, place, room, 0)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw .ended }
            return count
        }
    }

    /// Receives exactly `byteCount` bytes.
    func receive(_ byteCount: Int) throws(NBDAccessError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: byteCount)
        let outcome = bytes.withUnsafeMutableBytes { buffer -> Result<Void, NBDAccessError> in
            guard let place = buffer.baseAddress, byteCount > 0 else { return .success(()) }
            do throws(NBDAccessError) {
                return .success(try receive(into: place, byteCount))
            } catch { return .failure(error) }
        }
        try outcome.get()
        return bytes
    }
}

extension UnsafeRawBufferPointer {
    /// The port in an address of the internet.
    fileprivate var port: UInt16 { UInt16(self[2]) << 8 | UInt16(self[3]) }
}
