internal import Glibc

/// Reads files that nobody else may read.
enum SecretFile {
    /// More than any key file needs.
    static let byteCountMax = 1 << 20

    /// Who must not be able to read a file of secrets.
    enum Audience {
        /// Its owner alone may: pre-shared keys.
        case owner
        /// A group may: private keys of certificates, which several services share.
        case group

        var forbiddenBits: mode_t {
            switch self {
            case .owner: 0o077
            case .group: 0o007
            }
        }
    }

    /// Returns the file's bytes. Its mode is that of the opened file, not of what the path names
    /// a moment later.
    static func read(_ path: String, for audience: Audience) throws(EncryptionError) -> [UInt8] {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else { throw failed(path, errno) }
        defer { close(descriptor) }
        var facts = stat()
        guard fstat(descriptor, &facts) == 0 else { throw failed(path, errno) }
        guard facts.st_mode & S_IFMT == S_IFREG else {
            throw EncryptionError(kind: .invalid, message: "\(path) is not a regular file")
        }
        guard facts.st_mode & audience.forbiddenBits == 0 else {
            let mode = String(facts.st_mode & 0o777, radix: 8)
            throw EncryptionError(
                kind: .invalid,
                message: "\(path) holds secrets and has mode \(mode), so that others can read "
                    + "them; run chmod \(audience == .owner ? "600" : "640") \(path)")
        }
        guard facts.st_size <= byteCountMax else {
            throw EncryptionError(
                kind: .invalid,
                message: "\(path) has \(facts.st_size) bytes; \(byteCountMax) are the most")
        }
        return try contents(descriptor, path)
    }

    private static func contents(
        _ descriptor: Int32, _ path: String
    ) throws(EncryptionError) -> [UInt8] {
        var bytes: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 4096)
        while bytes.count <= byteCountMax {
            let count = Glibc.read(descriptor, &piece, piece.count)
            let reason = errno
            if count < 0 && reason == EINTR { continue }
            guard count >= 0 else { throw failed(path, reason) }
            if count == 0 { return bytes }
            bytes += piece[..<count]
        }
        throw EncryptionError(kind: .invalid, message: "\(path) grows while it is read")
    }

    private static func failed(_ path: String, _ reason: Int32) -> EncryptionError {
        EncryptionError(kind: .failed, message: "\(path): \(String(cString: strerror(reason)))")
    }
}
