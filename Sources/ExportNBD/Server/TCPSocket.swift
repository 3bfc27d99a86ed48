package import CLinux
package import Glibc

/// Why a TCP address cannot be listened on.
package enum TCPListenError: Error, CustomStringConvertible {
    /// Somebody else listens there.
    case busy(address: String)
    /// The host cannot be resolved.
    case unknown(address: String, reason: String)
    /// The caller does not want it.
    case refused(message: String)
    /// The system refused.
    case failed(address: String, errnoValue: Int32)

    package var description: String {
        switch self {
        case .busy(let address): "\(address) is in use; choose another port"
        case .unknown(let address, let reason): "\(address): \(reason)"
        case .refused(let message): message
        case .failed(let address, let errnoValue):
            "\(address): \(String(cString: strerror(errnoValue)))"
        }
    }
}

/// Listening on TCP, for NBD and for HTTP.
package enum TCPSocket {
    /// Opens a listening socket. `refusal` says why an address beyond loopback is not served; nil:
    /// it is. Blocks: a host name is looked up.
    package static func listen(
        _ host: String, _ port: UInt16, backlog: Int32, refusal: (String) -> String?
    ) throws(TCPListenError) -> Int32 {
        let name = "tcp:\(host):\(port)"
        return try resolving(host, port) { (first) throws(TCPListenError) in
            if !isLoopback(first.pointee.ai_addr), let message = refusal(name) {
                throw .refused(message: message)
            }
            let kind = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
            let descriptor = socket(first.pointee.ai_family, kind, 0)
            guard descriptor >= 0 else { throw .failed(address: name, errnoValue: errno) }
            var one: Int32 = 1
            setsockopt(
                descriptor, SOL_SOCKET, SO_REUSEADDR, &one,
                socklen_t(MemoryLayout<Int32>.size))
            guard bind(descriptor, first.pointee.ai_addr, first.pointee.ai_addrlen) == 0,
                Glibc.listen(descriptor, backlog) == 0
            else {
                let failure = errno
                close(descriptor)
                throw failure == EADDRINUSE
                    ? .busy(address: name) : .failed(address: name, errnoValue: failure)
            }
            return descriptor
        }
    }

    /// Calls `body` with the first address that `host` stands for. Blocks.
    package static func resolving<Value>(
        _ host: String, _ port: UInt16,
        _ body: (UnsafeMutablePointer<addrinfo>) throws(TCPListenError) -> Value
    ) throws(TCPListenError) -> Value {
        var hints = addrinfo()
        hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var found: UnsafeMutablePointer<addrinfo>?
        let result = getaddrinfo(host, String(port), &hints, &found)
        guard result == 0, let first = found else {
            throw .unknown(
                address: "tcp:\(host):\(port)", reason: String(cString: gai_strerror(result)))
        }
        defer { freeaddrinfo(found) }
        return try body(first)
    }

    /// Only programs of this machine reach the address.
    package static func isLoopback(_ address: UnsafeMutablePointer<sockaddr>) -> Bool {
        switch Int32(address.pointee.sa_family) {
        case AF_INET:
            // SAFETY: the family says what the address is.
            address.withMemoryRebound(to: sockaddr_in.self, capacity: 1) {
                UInt32(bigEndian: $0.pointee.sin_addr.s_addr) >> 24 == 127
            }
        case AF_INET6:
            // SAFETY: as above.
            address.withMemoryRebound(to: sockaddr_in6.self, capacity: 1) {
                withUnsafeBytes(of: $0.pointee.sin6_addr) { bytes in
                    bytes.dropLast().allSatisfy { $0 == 0 } && bytes[15] == 1
                }
            }
        default: false
        }
    }
}
