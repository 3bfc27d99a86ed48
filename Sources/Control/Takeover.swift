internal import CLinux
internal import DataPlane
internal import Glibc

/// A block device that outlives the service.
struct HeldDevice: Sendable {
    /// Number of the block device, unique among those that are held.
    var key: UInt64
    /// Its open /dev/fuse.
    var descriptor: Int32
    /// Nothing that was read from it is in hand.
    var isDrained: Bool
    /// What the next service must know: a line for people, then a `BlockNote`.
    var note: [UInt8]
}

/// What the guardian of the service before holds, received and not yet confirmed: that guardian
/// goes on holding it until then. See `TakeoverMessage`.
final class Takeover: Sendable {
    /// Time for an answer: the guardian may wait for the last requests of a killed service.
    private static let answerSeconds = Int(GuardianProcess.waitSeconds) + 10

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
        let connection = cl_connect_in(directory, TakeoverMessage.socketName)
        guard connection >= 0 else {
            let reason = errno
            // The socket of a guardian that is gone stays behind.
            if reason == ENOENT || reason == ECONNREFUSED { return .success(nil) }
            return .failure(silent(errnoText(reason)))
        }
        var limit = timeval(tv_sec: answerSeconds, tv_usec: 0)
        for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
            setsockopt(
                connection, SOL_SOCKET, option, &limit, socklen_t(MemoryLayout<timeval>.size))
        }
        let outcome = receiveAll(connection)
        guard case .success(let devices) = outcome else {
            close(connection)
            return outcome.map { _ in nil }
        }
        return .success(Takeover(devices, owning: connection))
    }

    private static func receiveAll(_ connection: Int32) -> Result<[HeldDevice], ControlError> {
        guard send(.ask(TakeoverMessage.known), to: connection) else {
            return .failure(silent("it takes no question"))
        }
        switch receive(connection).message {
        case .version(_, let count):
            var devices: [HeldDevice] = []
            for _ in 0..<count {
                let (message, descriptor) = receive(connection)
                guard case .device(let key, let isDrained, let note)? = message, descriptor >= 0
                else {
                    if descriptor >= 0 { close(descriptor) }
                    for device in devices { close(device.descriptor) }
                    return .failure(silent("it handed over \(devices.count) of \(count)"))
                }
                devices.append(
                    HeldDevice(
                        key: key, descriptor: descriptor, isDrained: isDrained, note: note))
            }
            return .success(devices)
        case .versions(let theirs):
            let own = TakeoverMessage.known
            return .failure(
                ControlError(
                    .busy,
                    "block devices wait for a service of another program: the guardian that holds "
                        + "them (process \(cl_peer_process(connection))) speaks versions "
                        + "\(theirs.lowerBound) to \(theirs.upperBound), this program "
                        + "\(own.lowerBound) to \(own.upperBound); start that program again, or end "
                        + "the guardian (kill -9) and with it those devices"))
        default: return .failure(silent("it does not answer"))
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
    ) -> (message: TakeoverMessage?, descriptor: Int32) {
        var packet = [UInt8](repeating: 0, count: TakeoverMessage.byteCountMax)
        var descriptor: Int32 = -1
        let count = cl_receive_packet(connection, &packet, packet.count, &descriptor)
        return (count > 0 ? TakeoverMessage(packet[..<count]) : nil, descriptor)
    }
}
