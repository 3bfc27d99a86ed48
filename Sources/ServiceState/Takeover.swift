internal import CLinux
internal import ControlDocuments
internal import Glibc
internal import Guardianship
internal import Host

/// A block device that outlives the service.
package struct HeldDevice: Sendable {
    /// Number of the block device, unique among those that are held.
    package var key: UInt64
    /// Its open /dev/fuse.
    package var descriptor: Int32
    /// Nothing that was read from it is in hand.
    package var isDrained: Bool
    /// What the next service must know: a line for people, then a `BlockNote`.
    package var note: [UInt8]
}

/// What the guardian of the service before holds, received and not yet confirmed: that guardian
/// holds it until then. See `TakeoverMessage`.
final class Takeover: Sendable {
    /// Time for an answer: the guardian may wait for the last requests of a killed service.
    private static let answerSeconds = Int(GuardianProcess.waitSeconds) + 10
    /// A guardian that holds nothing ends when it has recorded the service's death, and
    /// a connection that it has not accepted then ends: the next attempt finds its socket gone.
    private static let attemptCountMax = 3

    let devices: [HeldDevice]
    private let connection: Int32

    private init(_ devices: [HeldDevice], owning connection: Int32) {
        self.devices = devices
        self.connection = connection
    }

    deinit { close(connection) }

    /// Asks the guardian of the service before; nil when there is none that waits. An error when
    /// there is one with which nothing is agreed on. Blocks.
    static func begin(in stateDirectory: String) -> Result<Takeover?, ControlError> {
        let directory = open(stateDirectory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard directory >= 0 else {
            return .failure(ControlError(.failed, "\(stateDirectory): \(errnoText(errno))"))
        }
        defer { close(directory) }
        for _ in 0..<attemptCountMax {
            let connection = cl_connect_in(directory, TakeoverMessage.socketName)
            guard connection >= 0 else {
                let reason = errno
                // The socket of a guardian that is gone stays behind.
                if reason == ENOENT || reason == ECONNREFUSED { return .success(nil) }
                return .failure(silent(errnoText(reason)))
            }
            switch ask(connection) {
            case .devices(let devices):
                return .success(Takeover(devices, owning: connection))
            case .ended: close(connection)
            case .failed(let error):
                close(connection)
                return .failure(error)
            }
        }
        return .failure(silent("it ends each connection"))
    }

    /// What came of asking over one connection.
    private enum Answer {
        case devices([HeldDevice])
        /// The guardian has ended the connection before its first word.
        case ended
        case failed(ControlError)
    }

    private static func ask(_ connection: Int32) -> Answer {
        var limit = timeval(tv_sec: answerSeconds, tv_usec: 0)
        for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
            setsockopt(
                connection, SOL_SOCKET, option, &limit, socklen_t(MemoryLayout<timeval>.size))
        }
        guard send(.ask(TakeoverMessage.known), to: connection) else {
            let reason = errno
            return reason == EPIPE || reason == ECONNRESET
                ? .ended : .failed(silent("it takes no question: \(errnoText(reason))"))
        }
        let first = receive(connection)
        if first.hasEnded { return .ended }
        switch first.message {
        case .version(_, let count):
            var devices: [HeldDevice] = []
            for _ in 0..<count {
                let (message, descriptor, _) = receive(connection)
                guard case .device(let key, let isDrained, let note)? = message, descriptor >= 0
                else {
                    if descriptor >= 0 { close(descriptor) }
                    for device in devices { close(device.descriptor) }
                    return .failed(silent("it handed over \(devices.count) of \(count)"))
                }
                devices.append(
                    HeldDevice(
                        key: key, descriptor: descriptor, isDrained: isDrained, note: note))
            }
            return .devices(devices)
        case .versions(let theirs):
            let own = TakeoverMessage.known
            return .failed(
                ControlError(
                    .busy,
                    "block devices wait for a service of another program: the guardian that holds "
                        + "them (process \(cl_peer_process(connection))) speaks versions "
                        + "\(theirs.lowerBound) to \(theirs.upperBound), this program "
                        + "\(own.lowerBound) to \(own.upperBound); start that program again, or end "
                        + "the guardian (kill -9) and with it those devices"))
        default: return .failed(silent("it does not answer"))
        }
    }

    private static func silent(_ reason: String) -> ControlError {
        ControlError(
            .busy,
            "block devices wait for the next service, and the guardian that holds them cannot be "
                + "asked (\(reason)); try again, or end it (kill -9) and with it those devices")
    }

    /// Everything is held by another guardian: the former one may go. Blocks.
    func confirm() {
        guard Self.send(.taken, to: connection) else { return }
        _ = Self.receive(connection)
    }

    private static func send(_ message: TakeoverMessage, to connection: Int32) -> Bool {
        let bytes = message.bytes
        return cl_send_packet(connection, bytes, bytes.count, -1) == bytes.count
    }

    private static func receive(
        _ connection: Int32
    ) -> (message: TakeoverMessage?, descriptor: Int32, hasEnded: Bool) {
        var packet = [UInt8](repeating: 0, count: TakeoverMessage.byteCountMax)
        var descriptor: Int32 = -1
        let count = cl_receive_packet(connection, &packet, packet.count, &descriptor)
        let hasEnded = count == 0 || (count < 0 && errno == ECONNRESET)
        return (count > 0 ? TakeoverMessage(packet[..<count]) : nil, descriptor, hasEnded)
    }
}
