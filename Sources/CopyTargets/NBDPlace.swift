package import CopyPlanning
internal import Glibc
package import NBDAccess

// An export of an NBD server, as libnbd and QEMU name it in a URI
// (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md):
//
//   nbd://HOST[:PORT]/EXPORT                     nbds://[USER@]HOST[:PORT]/EXPORT?tls-...
//   nbd+unix:///EXPORT?socket=PATH               nbds+unix:///EXPORT?socket=PATH&tls-...
//
// With `nbds`: tls-certificates=DIRECTORY (ca-cert.pem, and client-cert.pem with client-key.pem
// where the server asks for them), or tls-psk-file=FILE and USER.

/// An export of an NBD server; see the head of this file.
package struct NBDPlace: Equatable, Sendable {
    package static let schemes = ["nbd", "nbds", "nbd+unix", "nbds+unix"]
    private static let defaultPort: UInt16 = 10809

    /// As it was given.
    package let name: String
    package let address: NBDServerAddress
    package let export: String
    /// How the connection is encrypted; nil when it is not.
    package let security: Security?

    /// What TLS is made with.
    package struct Security: Equatable, Sendable {
        /// The name that the server's certificate must have; nil where a path names the server.
        package var host: String?
        package var certificates: String?
        package var keyFile: String?
        package var user: String?
    }

    /// Takes over a socket whose server has agreed to TLS, and returns one with the plain text.
    package typealias Securing =
        @Sendable (Security, Int32) throws(NBDAccessError) -> Int32

    /// Nil for the name of something else.
    package init?(parsing name: String) throws(CopyError) {
        guard let mark = name.firstRange(of: "://") else { return nil }
        let scheme = String(name[..<mark.lowerBound])
        guard Self.schemes.contains(scheme) else { return nil }
        func wrong(_ what: String) -> CopyError {
            CopyError(
                .unsuitable,
                "\"\(name)\" names no export (\(what)): give nbd://HOST[:PORT]/EXPORT or "
                    + "nbd+unix:///EXPORT?socket=PATH")
        }
        let rest = name[mark.upperBound...]
        let halves = rest.split(separator: "?", maxSplits: 1, omittingEmptySubsequences: false)
        let slash = halves[0].firstIndex(of: "/") ?? halves[0].endIndex
        let authority = halves[0][..<slash]
        var query: [String: String] = [:]
        for pair in (halves.count > 1 ? halves[1] : "").split(whereSeparator: { "&;".contains($0) })
        {
            let parts = pair.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            guard parts.count == 2, let value = Self.decoded(parts[1]) else {
                throw wrong("\(pair)")
            }
            query[String(parts[0])] = value
        }
        let known = ["socket", "tls-certificates", "tls-psk-file"]
        if let other = query.keys.sorted().first(where: { !known.contains($0) }) {
            throw wrong("\(other) is not known")
        }
        guard let export = Self.decoded(halves[0][slash...].dropFirst()) else {
            throw wrong("its name")
        }
        let parts = authority.split(separator: "@", maxSplits: 1, omittingEmptySubsequences: false)
        let user = parts.count == 2 ? Self.decoded(parts[0]) : nil
        let host = parts[parts.count - 1]
        self.name = name
        self.export = export
        if scheme.hasSuffix("+unix") {
            guard let socket = query["socket"], socket.hasPrefix("/"), host.isEmpty else {
                throw wrong("socket=PATH is missing")
            }
            address = .unix(path: socket)
        } else {
            guard let found = Self.host(host), query["socket"] == nil else { throw wrong("HOST") }
            address = .tcp(host: found.name, port: found.port ?? Self.defaultPort)
        }
        guard scheme.hasPrefix("nbds") else {
            security = nil
            guard query["tls-certificates"] == nil, query["tls-psk-file"] == nil else {
                throw wrong("TLS needs nbds://")
            }
            return
        }
        var security = Security(
            certificates: query["tls-certificates"], keyFile: query["tls-psk-file"], user: user)
        if case .tcp(let host, _) = address { security.host = host }
        guard security.certificates != nil || (security.keyFile != nil && user != nil) else {
            throw wrong("TLS needs tls-certificates=DIRECTORY, or tls-psk-file=FILE and USER@")
        }
        self.security = security
    }

    /// HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT.
    private static func host(_ text: Substring) -> (name: String, port: UInt16?)? {
        var rest = text
        let name: Substring
        if rest.first == "[" {
            guard let end = rest.firstIndex(of: "]") else { return nil }
            name = rest[rest.index(after: rest.startIndex)..<end]
            rest = rest[rest.index(after: end)...]
        } else {
            let end = rest.firstIndex(of: ":") ?? rest.endIndex
            name = rest[..<end]
            rest = rest[end...]
        }
        guard !name.isEmpty, let host = decoded(name) else { return nil }
        guard !rest.isEmpty else { return (host, nil) }
        guard rest.first == ":", let port = UInt16(rest.dropFirst()), port > 0 else { return nil }
        return (host, port)
    }

    /// Takes escapes such as %40 out of a text; nil when an escape is invalid or the result is not
    /// UTF-8.
    private static func decoded(_ text: Substring) -> String? {
        var bytes: [UInt8] = []
        var rest = Array(text.utf8)[...]
        while let byte = rest.popFirst() {
            guard byte == UInt8(ascii: "%") else {
                bytes.append(byte)
                continue
            }
            guard rest.count >= 2,
                let value = UInt8(String(decoding: rest.prefix(2), as: UTF8.self), radix: 16),
                value != 0
            else { return nil }
            bytes.append(value)
            rest = rest.dropFirst(2)
        }
        return String(validating: bytes, as: UTF8.self)
    }

    // MARK: Use

    /// Connects. `secure` makes TLS where it is asked for.
    package func connect(
        isForWriting: Bool, _ secure: Securing?, refusing own: CopySurroundings.Server? = nil
    ) throws(CopyError) -> NBDExport {
        do throws(NBDAccessError) {
            let stream = try NBDStream(connecting: address)
            if let own, isOf(own, stream) {
                throw .refused(
                    "this service serves it itself; name a device with DEVICE or another server")
            }
            guard let security else {
                return try NBDExport(stream, export: export, isForWriting: isForWriting)
            }
            guard let secure else { throw .refused("TLS is not supported here") }
            return try NBDExport(stream, export: export, isForWriting: isForWriting) {
                socket throws(NBDAccessError) in try secure(security, socket)
            }
        } catch {
            let isRefusal = if case .refused = error { true } else { false }
            throw CopyError(
                isRefusal ? .busy : .failed, "\(name) cannot be opened over NBD (\(error))")
        }
    }

    private func isOf(_ service: CopySurroundings.Server, _ stream: NBDStream) -> Bool {
        switch address {
        case .unix(let path):
            var own = stat()
            guard stat(path, &own) == 0 else { return false }
            return service.sockets.contains { socket in
                var its = stat()
                return stat(socket, &its) == 0 && its.st_ino == own.st_ino
                    && its.st_dev == own.st_dev
            }
        case .tcp: return stream.isLocal(ports: service.ports)
        }
    }

    /// Which export it is. Another server at the same address is recognised by its contents.
    package var disk: DiskState {
        let server =
            switch address {
            case .unix(let path): "unix:\(path)"
            case .tcp(let host, let port): "\(host):\(port)"
            }
        return DiskState(
            identity: "\(DiskState.nbdPrefix)\(server)/\(export)", boot: "", sequence: 0)
    }

    /// Where the record of the export is, in the directory that holds those of disks.
    package func recordFile(in directory: String) -> CopyRecordFile {
        CopyRecordFile(of: disk, size: 0, in: directory)
    }
}
