package import ControlDocuments
internal import Glibc

/// The socket between a command and a helper process that it started. Lines go over it, and its end tells
/// either side that the other one has ended.
package final class HelperSocket: Sendable {
    private let descriptor: Int32

    /// Closes the descriptor when the object goes.
    package init(owning descriptor: Int32) { self.descriptor = descriptor }

    /// The descriptor at which a helper inherits its end.
    private static let inherited: Int32 = 3

    /// The end that this helper process inherited from its command. `program` names the helper and
    /// `starters` the commands that start it, for the error when somebody starts it by hand. The
    /// helper ignores the signals that end a command: it cleans up after the command has ended.
    package static func ofHelper(_ program: String, startedBy starters: String) throws(ControlError)
        -> HelperSocket
    {
        var facts = stat()
        guard fstat(inherited, &facts) == 0, facts.st_mode & S_IFMT == S_IFSOCK else {
            throw ControlError(.invalid, "the \(program) is started by \(starters) alone")
        }
        for number in [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE] { signal(number, SIG_IGN) }
        return HelperSocket(owning: inherited)
    }

    deinit { close(descriptor) }

    /// Sends bytes; an other end that is gone is seen by the next `receive`.
    package func send(_ bytes: [UInt8]) {
        var sent = 0
        while sent < bytes.count {
            let count = bytes.withUnsafeBytes {
                Glibc.send(
                    descriptor, $0.baseAddress.unsafelyUnwrapped + sent, $0.count - sent,
                    Int32(MSG_NOSIGNAL))
            }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { return }
            sent += count
        }
    }

    /// Nothing more is sent.
    package func endSending() { shutdown(descriptor, Int32(SHUT_WR)) }

    /// A line without its end, or what came before the other end closed; nil when it closed
    /// without a word where a line was due, and for more bytes than are allowed.
    package func receive(byteCountMax: Int) -> [UInt8]? {
        var bytes: [UInt8] = []
        var byte: UInt8 = 0
        while bytes.count <= byteCountMax {
            let count = recv(descriptor, &byte, 1, 0)
            if count < 0, errno == EINTR { continue }
            guard count == 1 else { return nil }
            if byte == UInt8(ascii: "\n") { return bytes }
            bytes.append(byte)
        }
        return nil
    }
}
