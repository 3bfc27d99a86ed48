internal import CLinux
package import ControlDocuments
package import ExportNBD
internal import Glibc
internal import Host

// Sockets that the service manager opened for the service, in the manner of systemd's socket
// activation (sd_listen_fds):
//
//   LISTEN_PID      for which process they are; those for another one are not looked at
//   LISTEN_FDS      how many there are, from descriptor 3 on
//   LISTEN_FDNAMES  what each is for, `control` or `nbd`, with colons between
//
// Invariants
// - `take` comes before anything that opens descriptors or starts programs. After it the variables
//   are gone, and no program that the service starts inherits a socket.
// - The names of passed sockets are their maker's: the service neither makes nor changes nor
//   removes them, and clients that connected before it was there are served.

/// A socket that listens already.
package struct PassedSocket: Sendable, Equatable {
    let descriptor: Int32
    /// Where clients connect.
    package let address: ListenAddress

    /// What the NBD server is given.
    package var endpoint: NBDEndpoint { .passed(descriptor: descriptor, at: address.endpoint) }
}

/// The sockets that were passed to the service; see the head of this file.
package struct PassedSockets: Sendable, Equatable {
    /// Serves HTTP; nil: none was passed.
    package private(set) var control: PassedSocket?
    /// Serve NBD.
    package private(set) var nbd: [PassedSocket] = []

    private static let firstDescriptor: Int32 = 3
    /// Most sockets that are taken.
    private static let countMax = 64
    private static let variables = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"]

    /// No socket was passed.
    package init() {}

    /// Path of the control socket, if one was passed.
    package var controlPath: String? {
        guard case .unix(let path)? = control?.address else { return nil }
        return path
    }

    /// Takes what the environment names, and removes it from there.
    package static func take() throws(ControlError) -> PassedSockets {
        let values = variables.map { name in getenv(name).map { String(cString: $0) } }
        for name in variables { unsetenv(name) }
        guard values[0] == "\(getpid())", let countText = values[1] else { return PassedSockets() }
        guard let count = Int(countText), (0...countMax).contains(count) else {
            throw ControlError(
                .invalid,
                "LISTEN_FDS is \"\(countText)\": the service takes 0 to \(countMax) sockets from its "
                    + "manager; pass fewer, or none")
        }
        let descriptors = (0..<Int32(count)).map { firstDescriptor + $0 }
        for descriptor in descriptors where fcntl(descriptor, F_SETFD, FD_CLOEXEC) != 0 {
            throw ControlError(
                .invalid,
                "LISTEN_FDS counts \(count) sockets from descriptor \(firstDescriptor) on, but "
                    + "descriptor \(descriptor) is not open; pass as many as it says")
        }
        let names =
            values[2].map { $0.split(separator: ":", omittingEmptySubsequences: false) } ?? []
        guard count == 0 || names.count == count else {
            throw ControlError(
                .invalid,
                "LISTEN_FDNAMES names \(names.count) of \(count) passed sockets; name each control "
                    + "or nbd (FileDescriptorName= of its socket unit)")
        }
        var sockets = PassedSockets()
        for (descriptor, name) in zip(descriptors, names) {
            try sockets.add(descriptor, named: String(name))
        }
        return sockets
    }

    private mutating func add(_ descriptor: Int32, named name: String) throws(ControlError) {
        guard name == "control" || name == "nbd" else {
            throw ControlError(
                .invalid,
                "the passed socket \"\(name)\" (descriptor \(descriptor)) serves nothing here; name "
                    + "it control or nbd (FileDescriptorName= of its socket unit)")
        }
        let subject = "the passed socket \(name) (descriptor \(descriptor))"
        try Self.checkListens(descriptor, subject)
        let socket = PassedSocket(
            descriptor: descriptor, address: try Self.address(of: descriptor, subject))
        guard name == "control" else { return nbd.append(socket) }
        guard case .unix = socket.address else {
            throw ControlError(
                .invalid,
                "\(subject) is at \(socket.address): the control socket is a Unix socket, for "
                    + "everybody who reaches it may do everything; pass a socket that has a path")
        }
        guard control == nil else {
            throw ControlError(
                .invalid, "\(subject) is a second control socket; pass one, name others nbd")
        }
        control = socket
    }

    private static func checkListens(
        _ descriptor: Int32, _ subject: String
    ) throws(ControlError) {
        var listens: Int32 = 0
        var kind: Int32 = 0
        var size = socklen_t(MemoryLayout<Int32>.size)
        guard getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &kind, &size) == 0 else {
            throw ControlError(
                .invalid, "\(subject) is not a socket (\(errnoText(errno))); pass one that listens")
        }
        size = socklen_t(MemoryLayout<Int32>.size)
        guard kind == Int32(SOCK_STREAM.rawValue),
            getsockopt(descriptor, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0, listens != 0
        else {
            throw ControlError(
                .invalid,
                "\(subject) is not a listening stream socket; use ListenStream= and Accept=no in its "
                    + "socket unit")
        }
    }

    private static func address(
        of descriptor: Int32, _ subject: String
    ) throws(ControlError) -> ListenAddress {
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        let address: ListenAddress? = withUnsafeMutableBytes(of: &storage) { bytes in
            guard let base = bytes.baseAddress else { return nil }
            // SAFETY: a sockaddr_storage begins as a sockaddr does.
            let name = base.assumingMemoryBound(to: sockaddr.self)
            guard getsockname(descriptor, name, &length) == 0 else { return nil }
            switch Int32(name.pointee.sa_family) {
            case AF_UNIX:
                // An abstract name begins with a zero, an unnamed socket has none at all.
                let path = bytes[MemoryLayout<sa_family_t>.size..<Int(length)].prefix { $0 != 0 }
                return path.isEmpty ? nil : .unix(path: String(decoding: path, as: UTF8.self))
            case AF_INET, AF_INET6: return numericAddress(name, length)
            default: return nil
            }
        }
        guard let address else {
            throw ControlError(
                .invalid,
                "\(subject) is neither a Unix socket with a path nor TCP; pass one that is")
        }
        if case .unix(let path) = address { try checkSocketPath(path) }
        return address
    }

    private static func numericAddress(
        _ name: UnsafePointer<sockaddr>, _ length: socklen_t
    ) -> ListenAddress? {
        var host = [CChar](repeating: 0, count: Int(NI_MAXHOST))
        var service = [CChar](repeating: 0, count: Int(NI_MAXSERV))
        let flags = NI_NUMERICHOST | NI_NUMERICSERV
        guard
            getnameinfo(
                name, length, &host, socklen_t(host.count), &service, socklen_t(service.count),
                flags) == 0,
            let port = UInt16(text(service))
        else { return nil }
        return .tcp(host: text(host), port: port)
    }

    private static func text(_ bytes: [CChar]) -> String {
        String(decoding: bytes.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
    }
}
