// CLinux, too, has <sys/socket.h>: whichever module is loaded first owns its constants.
internal import CLinux
internal import ControlDocuments
internal import Glibc
internal import HTTPInterface
internal import Host

/// The service manager (systemd) that started this process, if one did.
enum ServiceManager {
    /// Sends `message`, such as `READY=1`, to the socket that `address` (NOTIFY_SOCKET) names.
    static func notify(_ message: String, address: String) throws(HostError) {
        guard address.hasPrefix("/") || address.hasPrefix("@"),
            address.utf8.count <= socketPathByteCountMax
        else { throw HostError("NOTIFY_SOCKET \(address)", EINVAL) }
        let descriptor = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else {
            throw HostError("NOTIFY_SOCKET", errno)
        }
        defer { close(descriptor) }
        let bytes = Array(message.utf8)
        let sent = withSocketAddress(address) { name, length in
            sendto(descriptor, bytes, bytes.count, Int32(MSG_NOSIGNAL), name, length)
        }
        guard sent == bytes.count else {
            throw HostError("NOTIFY_SOCKET \(address)", errno)
        }
    }
}
