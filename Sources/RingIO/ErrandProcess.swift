internal import Host
internal import CLinux
internal import Glibc

// A call that may wait for I/O which this process itself serves, made in a process of its own.
//
// A thread that waits for such I/O cannot be killed, and a process with such a thread is not seen
// to have ended by those who wait for its end, as a service manager does. The I/O ends when the
// next service answers it, which nobody would start. So no thread of the service makes such a
// call; it waits for the answer of a process that does.
//
// Invariants
// - An errand inherits one descriptor of the service: the socket on which it answers.
// - One that outlives the service sees that in `hasService` and leaves undone what is not begun.

/// An errand; see the head of this file.
package enum ErrandProcess {
    private static let socket: Int32 = 3
    static let byteCountMax = 1 << 16

    // MARK: The service's end

    /// Runs `stillpoint errand` with these words and returns its answer; an error when there is
    /// none. Blocks; a kill ends the wait.
    package static func run(_ words: [String]) -> Result<[String], RingError> {
        do throws(RingError) {
            let errand = try Errand(words)
            defer { errand.end() }
            guard let answer = errand.receive() else {
                return .failure(RingError(operation: .startProcess, errnoValue: ECHILD))
            }
            return .success(answer)
        } catch { return .failure(error) }
    }

    // MARK: The errand's end

    /// Keeps nothing of the service open but the socket.
    package static func begin() {
        cl_name_thread("errand")
        _ = cl_close_from(socket + 1)
        _ = chdir("/")
    }

    /// False when the service has ended meanwhile.
    package static var hasService: Bool {
        var event = pollfd(fd: socket, events: 0, revents: 0)
        return poll(&event, 1, 0) == 0
    }

    /// The next order of the service; nil when there will be none.
    package static func nextOrder() -> String? {
        var packet = [UInt8](repeating: 0, count: 64)
        var descriptor: Int32 = -1
        let count = cl_receive_packet(socket, &packet, packet.count, &descriptor)
        return count > 0 ? String(decoding: packet[..<count], as: UTF8.self) : nil
    }

    /// Answers, with a field at least: once, or once to each order.
    package static func answer(_ fields: [String]) {
        let bytes = Array(fields.joined(separator: "\0").utf8.prefix(byteCountMax))
        // A service that has ended wants no answer.
        _ = cl_send_packet(socket, bytes, bytes.count, -1)
    }
}

/// An errand that is under way, as the service sees it. Used by one thread at a time.
package final class Errand: Sendable {
    private let socket: Int32
    private let processID: Int32

    /// Starts `stillpoint errand` with these words.
    package init(_ words: [String]) throws(RingError) {
        var ends: [Int32] = [-1, -1]
        let kind = Int32(SOCK_SEQPACKET.rawValue | SOCK_CLOEXEC.rawValue)
        guard socketpair(AF_UNIX, kind, 0, &ends) == 0 else {
            throw RingError(operation: .startProcess, errnoValue: errno)
        }
        let process: pid_t
        do throws(HostError) {
            process = try ProgramStart.ownProgram(["errand"] + words, socket: ends[1]).run()
        } catch {
            close(ends[0])
            close(ends[1])
            throw RingError(operation: .startProcess, errnoValue: error.errnoValue)
        }
        close(ends[1])
        socket = ends[0]
        processID = process
    }

    /// Gives an order and returns the answer; nil when the errand has ended. Blocks.
    package func order(_ word: String) -> [String]? {
        let bytes = Array(word.utf8)
        guard cl_send_packet(socket, bytes, bytes.count, -1) == bytes.count else { return nil }
        return receive()
    }

    /// The next answer; nil when the errand has ended. Blocks.
    package func receive() -> [String]? {
        var packet = [UInt8](repeating: 0, count: ErrandProcess.byteCountMax)
        var descriptor: Int32 = -1
        let count = cl_receive_packet(socket, &packet, packet.count, &descriptor)
        if descriptor >= 0 { close(descriptor) }
        guard count > 0 else { return nil }
        return String(decoding: packet[..<count], as: UTF8.self)
            .split(separator: "\0", omittingEmptySubsequences: false).map(String.init)
    }

    /// Gives no more orders and waits until the errand has ended. The last call. Blocks.
    package func end() {
        close(socket)
        while waitpid(processID, nil, 0) < 0 && errno == EINTR {}
    }
}
