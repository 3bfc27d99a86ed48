internal import Host
internal import CLinux
internal import Glibc

// The guardian's wait for the next service: what it holds is handed over, or let go at the limit.
//
// Invariants
// - What is written down, paths included, is made before the service is gone: afterwards nothing
//   is allocated except the packets of a takeover.
// - The files in the runtime directory: `block-devices-waiting` while devices wait, which becomes
//   `block-devices-let-go` before they are let go. Lines: since, until, in seconds of the epoch;
//   then the first line of each note, which names the device for people.
// - The socket is taken away only while it is still this guardian's.

/// Where the next service finds a guardian; see the head of this file.
final class WaitingDevices {
    /// Name of the file that says what waits.
    static let waitingName = "block-devices-waiting"
    /// Name of the file that says what was let go.
    static let letGoName = "block-devices-let-go"
    /// Time for each message of the next service, which has other requests to serve.
    private static let answerSeconds = 30

    private let directory: Int32
    private let listening: Int32
    private let inode: UInt64
    private let waitingPath: String
    private let letGoPath: String
    private var packet = [UInt8](repeating: 0, count: TakeoverMessage.byteCountMax)
    private var deadline: UInt64 = 0

    /// Listens in the state directory; nil with errno when that fails.
    init?(_ options: GuardianOptions) {
        directory = open(options.stateDirectory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard directory >= 0 else { return nil }
        listening = cl_listen_in(directory, TakeoverMessage.socketName)
        var facts = stat()
        guard listening >= 0,
            fstatat(directory, TakeoverMessage.socketName, &facts, AT_SYMLINK_NOFOLLOW) == 0
        else {
            let failure = errno
            close(directory)
            errno = failure
            return nil
        }
        inode = UInt64(facts.st_ino)
        waitingPath = options.runtimeDirectory + "/" + Self.waitingName
        letGoPath = options.runtimeDirectory + "/" + Self.letGoName
    }

    /// The service is gone: from now on the limit runs.
    func begin(_ held: HeldDevices, limitSeconds: UInt64) {
        deadline = cl_now_nanoseconds() + limitSeconds * 1_000_000_000
        guard held.count > 0 else { return }
        let file = open(waitingPath, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard file >= 0 else { return }
        defer { close(file) }
        let now = UInt64(max(0, time(nil)))
        // A file that could not be written is one that the next start does not read.
        dprint(file, now)
        dprint(file, now + limitSeconds)
        var lineEnd: UInt8 = 10
        for index in 0..<held.count {
            let note = held.note(index)
            _ = write(file, note.baseAddress, note.firstIndex(of: 10) ?? note.count)
            _ = write(file, &lineEnd, 1)
        }
    }

    private func dprint(_ file: Int32, _ number: UInt64) {
        var digits: [UInt8] = Array("\(number)\n".utf8)
        _ = write(file, &digits, digits.count)
    }

    /// Waits for the next service as long as something is held, and then no longer than the limit.
    /// Returns the exit status.
    func run(_ held: HeldDevices) -> Int32 {
        while held.count > 0 {
            let now = cl_now_nanoseconds()
            guard now < deadline else {
                if isOurs { rename(waitingPath, letGoPath) }
                held.letGo()
                break
            }
            var event = pollfd(fd: listening, events: Int16(POLLIN), revents: 0)
            let left = (deadline - now) / 1_000_000 + 1
            guard poll(&event, 1, Int32(min(left, 60_000))) > 0 else { continue }
            let connection = cl_accept_own(listening)
            guard connection >= 0 else { continue }
            let isTaken = handOver(held, to: connection)
            close(connection)
            if isTaken {
                if isOurs { unlink(waitingPath) }
                held.letGo()
            }
        }
        withdraw()
        return 0
    }

    /// The next service must not ask here any more.
    func withdraw() {
        if isOurs { unlinkat(directory, TakeoverMessage.socketName, 0) }
        close(listening)
    }

    /// Whether a service that comes now asks here.
    private var isOurs: Bool {
        var facts = stat()
        return fstatat(directory, TakeoverMessage.socketName, &facts, AT_SYMLINK_NOFOLLOW) == 0
            && UInt64(facts.st_ino) == inode
    }

    // MARK: Takeover

    /// Hands a device over to itself, so that the code for it is resident, and locked, before it is
    /// needed: reading the program back may then be impossible.
    func rehearse() {
        var ends: [Int32] = [-1, -1]
        let kind = Int32(SOCK_SEQPACKET.rawValue | SOCK_CLOEXEC.rawValue)
        guard socketpair(AF_UNIX, kind, 0, &ends) == 0 else { return }
        defer { for end in ends { close(end) } }
        let held = HeldDevices()
        let own = fcntl(ends[0], F_DUPFD_CLOEXEC, 0)
        guard own >= 0,
            held.hold(1, descriptor: own, isDrained: false, note: [65]),
            send(.ask(TakeoverMessage.known), to: ends[1]), send(.taken, to: ends[1])
        else { return }
        _ = handOver(held, to: ends[0])
        held.letGo()
    }

    private func handOver(_ held: HeldDevices, to connection: Int32) -> Bool {
        var limit = timeval(tv_sec: Self.answerSeconds, tv_usec: 0)
        for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
            setsockopt(
                connection, SOL_SOCKET, option, &limit, socklen_t(MemoryLayout<timeval>.size))
        }
        guard case .ask(let theirs)? = receive(connection) else { return false }
        guard let version = TakeoverMessage.common(theirs, TakeoverMessage.known) else {
            _ = send(.versions(TakeoverMessage.known), to: connection)
            return false
        }
        guard send(.version(version, count: held.count), to: connection) else { return false }
        for index in 0..<held.count {
            let place = held[index]
            let message = TakeoverMessage.device(
                place.key, isDrained: place.isDrained, note: Array(held.note(index)))
            guard send(message, to: connection, with: place.descriptor) else { return false }
        }
        guard receive(connection) == .taken else { return false }
        // The service waits for this message at most.
        _ = send(.accepted, to: connection)
        return true
    }

    private func receive(_ connection: Int32) -> TakeoverMessage? {
        var descriptor: Int32 = -1
        let count = cl_receive_packet(connection, &packet, packet.count, &descriptor)
        if descriptor >= 0 { close(descriptor) }
        return count > 0 ? TakeoverMessage(packet[..<count]) : nil
    }

    private func send(
        _ message: TakeoverMessage, to connection: Int32, with descriptor: Int32 = -1
    ) -> Bool {
        let bytes = message.bytes
        return cl_send_packet(connection, bytes, bytes.count, descriptor) == bytes.count
    }
}

/// What a guardian wrote down of the block devices that it held.
package struct WaitingNote: Equatable, Sendable {
    /// Seconds of the epoch: when the service ended, and until when they wait or waited.
    package var sinceSeconds: UInt64
    package var untilSeconds: UInt64
    /// Names for people.
    package var devices: [String]

    /// Reads what waits, or with `letGo` what was let go, in a runtime directory; nil when there
    /// is nothing. Blocks.
    package static func read(in runtimeDirectory: String, letGo: Bool) -> WaitingNote? {
        let path = path(in: runtimeDirectory, letGo: letGo)
        guard let bytes = SystemFile.readBytes(path, byteCountMax: 1 << 20) else { return nil }
        return WaitingNote(String(decoding: bytes, as: UTF8.self))
    }

    /// Removes what was written down. Blocks.
    package static func remove(in runtimeDirectory: String, letGo: Bool) {
        unlink(path(in: runtimeDirectory, letGo: letGo))
    }

    private static func path(in runtimeDirectory: String, letGo: Bool) -> String {
        runtimeDirectory + "/"
            + (letGo ? WaitingDevices.letGoName : WaitingDevices.waitingName)
    }

    /// Reads its text.
    init?(_ text: String) {
        let lines = text.split(separator: "\n").map(String.init)
        guard lines.count > 2, let since = UInt64(lines[0]), let until = UInt64(lines[1]) else {
            return nil
        }
        sinceSeconds = since
        untilSeconds = until
        devices = Array(lines[2...])
    }
}
