/// Where an export server listens, as given by `--nbd`.
package enum ListenAddress: Hashable, Sendable, CustomStringConvertible {
    case unix(path: String)
    case tcp(host: String, port: UInt16)

    /// Reads `unix:PATH` or `tcp:HOST:PORT` (an IPv6 address in brackets).
    package init(parsing text: String) throws(ControlError) {
        if text.hasPrefix("unix:") {
            let path = String(text.dropFirst(5))
            try checkSocketPath(path)
            self = .unix(path: path)
            return
        }
        guard text.hasPrefix("tcp:"), let colon = text.lastIndex(of: ":"),
            let port = UInt16(text[text.index(after: colon)...]), port > 0
        else { throw Self.malformed(text) }
        let start = text.index(text.startIndex, offsetBy: 4)
        guard start < colon else { throw Self.malformed(text) }
        var host = text[start..<colon]
        if host.hasPrefix("["), host.hasSuffix("]") { host = host.dropFirst().dropLast() }
        guard !host.isEmpty else { throw Self.malformed(text) }
        self = .tcp(host: String(host), port: port)
    }

    private static func malformed(_ text: String) -> ControlError {
        ControlError(
            .invalid, "\"\(text)\" is not an address to listen on: give unix:PATH or tcp:HOST:PORT")
    }

    package var description: String {
        switch self {
        case .unix(let path): "unix:\(path)"
        case .tcp(let host, let port):
            host.contains(":") ? "tcp:[\(host)]:\(port)" : "tcp:\(host):\(port)"
        }
    }
}

/// Most bytes of the path of a Unix socket: what `sun_path` holds with its final zero.
package let socketPathByteCountMax = 107

/// Refuses paths that no Unix socket can have.
package func checkSocketPath(_ path: String) throws(ControlError) {
    guard path.hasPrefix("/") else {
        throw ControlError(.invalid, "socket \"\(path)\": give an absolute path")
    }
    guard path.utf8.count <= socketPathByteCountMax, !path.utf8.contains(0) else {
        throw ControlError(
            .invalid,
            "socket \(path): \(path.utf8.count) bytes are too long for a Unix socket, "
                + "\(socketPathByteCountMax) at most; use a shorter directory")
    }
}
