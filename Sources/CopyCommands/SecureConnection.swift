internal import CLinux
internal import ClientSupport
internal import CopyTargets
internal import Encryption
internal import Glibc
internal import ImageCopy
internal import NBDAccess

/// TLS with NBD servers that hold copies.
enum SecureConnection {
    /// See `NBDPlace.Securing`. The plain text goes through a socket pair whose other end event
    /// loops serve for as long as the program runs.
    static let begin: NBDPlace.Securing = { security, socket throws(NBDAccessError) in
        var ends: [Int32] = [-1, -1]
        let kind = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
        guard socketpair(AF_UNIX, kind, 0, &ends) == 0 else {
            let reason = errno
            close(socket)
            throw .unreachable(errnoValue: reason)
        }
        let proof: TLSServerProof
        if let directory = security.certificates {
            proof = .certificates(directory: directory, host: security.host)
        } else {
            proof = .preSharedKey(
                file: security.keyFile ?? "", user: security.user ?? "")
        }
        do throws(EncryptionError) {
            try TLSClient.relay(socket: socket, plain: ends[1], proof) { reason in
                FileHandles.error.write("stillpoint: \(reason)\n")
            }
        } catch {
            close(ends[0])
            throw .refused(error.message)
        }
        return ends[0]
    }
}
