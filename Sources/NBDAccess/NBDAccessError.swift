// NBDAccess uses exports over NBD: one connection per object, many requests in flight, blocking
// sockets. It is what copies need of the protocol and nothing else: fixed newstyle, structured or
// extended replies, reads, `base:allocation`, writes, zeroes and flushes.

/// Why an export cannot be read.
package enum NBDAccessError: Error, Equatable, Sendable, CustomStringConvertible {
    /// Nobody answers at the address.
    case unreachable(errnoValue: Int32)
    /// The server does not serve the export, or not like this.
    case refused(String)
    /// The connection ended.
    case ended
    /// The server broke the protocol.
    case notUnderstood(String)
    /// A request failed, with the protocol's number of the reason (an errno value).
    case failed(number: UInt32)

    package var description: String {
        switch self {
        case .unreachable(let errnoValue): "not reachable (errno \(errnoValue))"
        case .refused(let reason): "refused: \(reason)"
        case .ended: "the connection ended"
        case .notUnderstood(let what): "the answer is not understood: \(what)"
        case .failed(let number): "error \(number)"
        }
    }
}

/// Where an NBD server listens.
package enum NBDServerAddress: Hashable, Sendable {
    case unix(path: String)
    case tcp(host: String, port: UInt16)
}
