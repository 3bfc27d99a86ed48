package import ControlDocuments
internal import FoundationEssentials
internal import Glibc
internal import Host
package import Origins
package import RingIO

// What outlives the service, in one directory that one service at a time uses.
//
// Invariants
// - The directory is locked (flock) from `open` until the object goes or the process dies.
// - Nothing is written while filesystems are frozen (`freezeLock`).
// - `devices.json` is replaced as a whole, durably, before the command that changed it answers; so
//   are `blocks.json` and `checkpoints.json` (`CheckpointStore`).

/// A device to attach again at the next start.
package struct RememberedDevice: Codable, Equatable, Sendable {
    /// The name of the device.
    package var name: String
    /// The absolute path of the origin; of a live device as it was asked for.
    package var path: String
    /// The origin is opened for reading only.
    package var readOnly: Bool
    /// As asked for; nil: what the origin says.
    package var sectorSize: UInt32?
    /// Nobody else writes to the origin, as the operator said; nil: not said.
    package var exclusive: Bool?
    /// Tracked in use; nil: served.
    package var live: Bool?

    package init(
        name: String, path: String, readOnly: Bool, sectorSize: UInt32? = nil,
        exclusive: Bool? = nil, live: Bool? = nil
    ) {
        self.name = name
        self.path = path
        self.readOnly = readOnly
        self.sectorSize = sectorSize
        self.exclusive = exclusive
        self.live = live
    }
}

/// What a file of the state holds.
protocol StateContents: Codable {
    /// Of the format: 1.
    var version: Int { get }
}

/// The durable state of a service; see the head of this file.
package final class StateDirectory: Sendable {
    /// The directory, as it was named at the start.
    package let path: String
    /// Held shared to write a file or start a program, and exclusively while filesystems are
    /// frozen.
    package let freezeLock = AsyncReadWriteLock()
    /// Most bytes of a state file that are read.
    package static let fileByteCountMax = 16 << 20

    private struct Contents: StateContents {
        var version: Int
        var devices: [RememberedDevice]
    }

    private let lock: LockedDirectory

    /// Makes the directory where missing and locks it. Blocks.
    package init(opening path: String) throws {
        lock = try LockedDirectory(making: path, name: "state directory", option: "--state-dir")
        self.path = path
    }

    /// Reads the devices to attach. Blocks.
    package func load() throws -> [RememberedDevice] {
        try read("devices.json", Contents.self, without: "remembered devices")?.devices ?? []
    }

    /// Reads a file of the state; nil where there is none. `what`: what the service starts without
    /// when the file is moved away, for the message about one that is damaged. Blocks.
    func read<Contents: StateContents>(
        _ name: String, _ type: Contents.Type, without what: String
    ) throws -> Contents? {
        let file = path + "/" + name
        guard let bytes = try readWhole(file, byteCountMax: Self.fileByteCountMax) else {
            return nil
        }
        let contents: Contents
        do {
            contents = try DocumentCoding.decoder().decode(Contents.self, from: Data(bytes))
        } catch {
            throw ControlError(
                .failed, "\(file) is damaged; move it away to start without \(what)",
                details: ["reason": "\(error)"])
        }
        guard contents.version == 1 else {
            throw ControlError(
                .failed,
                "\(file) has version \(contents.version), which this program does not know; "
                    + "use the program that wrote it, or move the file away")
        }
        return contents
    }

    /// Replaces the devices to attach, durably.
    package func save(_ devices: [RememberedDevice], on blocking: BlockingPool) async throws {
        let contents = Contents(version: 1, devices: devices.sorted { $0.name < $1.name })
        try await replace(
            "devices.json",
            with: [UInt8](try DocumentCoding.encoder(pretty: true).encode(contents)),
            on: blocking)
    }

    /// Replaces a file of the state, durably.
    package func replace(_ name: String, with bytes: [UInt8], on blocking: BlockingPool)
        async throws
    {
        let file = path + "/" + name
        await freezeLock.lockShared()
        defer { freezeLock.unlock() }
        let outcome = await blocking.run { () -> Result<Void, HostError> in
            do throws(HostError) {
                return .success(try DurableFile.replace(file, with: bytes))
            } catch { return .failure(error) }
        }
        guard let outcome else { throw ControlError.tooManyOperations }
        if case .failure(let failure) = outcome {
            throw ControlError(
                .failed,
                "the state could not be recorded (\(failure)), so nothing was changed; free "
                    + "some space or repair the state directory and try again")
        }
    }
}

extension ControlError {
    /// The blocking pool's queue is full.
    package static let tooManyOperations = ControlError(
        .busy, "too many operations wait; try again when some have finished")

    /// Nothing new is begun any more.
    package static let stopping = ControlError(
        .stopping, "the service is stopping; try again when it has been started again")

    /// `names`: of the devices, for a suggestion.
    package static func noSuchDevice(_ text: String, among names: [String] = []) -> ControlError {
        ControlError(
            .noSuchDevice,
            "device \(text) was not found; `stillpoint device list` shows them"
                + suggestion(for: text, among: names))
    }

    /// The data plane's word for a failed attach, in the control plane's.
    package init(_ error: AttachError) {
        switch error.kind {
        case .notFound: self.init(.noSuchFile, error.message)
        case .busy: self.init(.busy, error.message)
        case .unsuitable: self.init(.unsuitable, error.message)
        case .failed: self.init(.failed, error.message)
        }
    }
}
