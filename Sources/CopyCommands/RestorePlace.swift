internal import ClientCommands
internal import ClientSupport
internal import ControlDocuments
internal import CopyPlanning
internal import CopyTargets
internal import Glibc
internal import ImageCopy
internal import NBDAccess

/// Where a copy is restored to.
enum RestorePlace {
    /// A device of the service, over NBD at these addresses.
    case device(DeviceDocument, [NBDServerAddress])
    /// A file or block device, and what a restore must keep clear of.
    case path(String, CopySurroundings)

    /// Looks the target up; refuses a device that is in use.
    static func find(
        _ target: String, _ client: ControlClient, _ status: StatusDocument
    ) async throws -> RestorePlace {
        guard !CopyPlace.isRemote(target), !target.hasSuffix(CopyRequest.qcowSuffix) else {
            throw ControlError(
                .invalid,
                "\(target): a restore writes raw bytes onto a device, a file or a block device; name "
                    + "one of them")
        }
        guard !target.contains("/") else {
            return .path(try Defaults.absolute(target), CopySource.surroundings(status))
        }
        guard let device = status.devices.first(where: { $0.name == target }) else {
            throw ControlError(
                .notFound,
                "there is no device \(target); `stillpoint device list` names those there are, and a "
                    + "path has a slash in it (./\(target))")
        }
        guard !device.readOnly else {
            throw ControlError(
                .busy,
                "device \(target) is attached read-only; detach it and attach it without --read-only"
            )
        }
        let blocks = status.blocks.filter { $0.target == target }.map(\.path)
        guard blocks.isEmpty else {
            throw ControlError(
                .busy,
                "device \(target) is in use as block device \(blocks.joined(separator: ", ")); "
                    + "unmount and detach it first (stillpoint block detach)")
        }
        guard device.connections == 0 else {
            throw ControlError(
                .busy,
                "device \(target) is in use by \(device.connections) NBD connection(s); end them "
                    + "first")
        }
        return .device(device, CopySource.addresses(status))
    }

    /// What is overwritten, for people; nil when nothing is.
    var whatIsLost: String? {
        switch self {
        case .device(let device, _): "device \(device.name) (\(sizeText(device.size)))"
        case .path(let path, _): access(path, F_OK) == 0 ? path : nil
        }
    }

    /// Opens it for as many threads. `copySize`: bytes that are coming.
    func open(
        copySize: UInt64, threads: Int, _ client: ControlClient
    ) async throws -> RestoreSinks {
        switch self {
        case .device(let device, let addresses):
            try Self.check(copySize, device.name, device.size)
            return try await SharedWork.run { () throws(CopyError) in
                var last = CopyError(.failed, "the service serves no NBD")
                for address in addresses {
                    do throws(CopyError) {
                        let sinks = try (0..<threads).map { _ throws(CopyError) in
                            try NBDSink(address, export: device.name)
                        }
                        return .device(sinks, size: device.size)
                    } catch { last = error }
                }
                throw last
            }
        case .path(let path, let surroundings):
            return try await SharedWork.run { () throws(CopyError) in
                let target = try CopyTarget(
                    opening: path, creates: true, surroundings: surroundings, isForced: true)
                let size = try target.file().size
                guard !target.isBlockDevice || copySize <= size else {
                    throw CopyError(
                        .unsuitable,
                        "\(path) has \(size) bytes, the copy \(copySize); name a larger device")
                }
                try target.resize(to: copySize)
                return .path(target, threads: threads, size: size)
            }
        }
    }

    private static func check(
        _ copySize: UInt64, _ name: String, _ size: UInt64
    ) throws(ControlError) {
        guard copySize <= size else {
            throw ControlError(
                .unsuitable,
                "device \(name) has \(size) bytes, the copy \(copySize); enlarge the origin and run "
                    + "`stillpoint device resize \(name)`")
        }
    }

    /// Throws unless the target equals the cut of that name: only there may a stream continue.
    func checkEquals(_ name: String, _ client: ControlClient) async throws {
        guard case .device(let device, _) = self else {
            throw ControlError(
                .generationUnknown,
                "the stream begins at the cut \(name), and nothing says that the target equals it; "
                    + "restore a full stream first, or merge the two (rbd merge-diff)")
        }
        let changes = try await ChangesReader(
            client: client, device: device.name, since: name, until: nil
        ).read()
        guard changes.ranges.byteCount == 0 else {
            throw ControlError(
                .generationUnknown,
                "the stream begins at the cut \(name), and \(changes.ranges.byteCount) bytes of "
                    + "device \(device.name) changed since; restore that cut first")
        }
    }

    /// Throws what is behind an error where the service knows: the device is gone.
    func explain(_ error: ControlError, _ client: ControlClient) async throws {
        guard case .device(let device, _) = self else { return }
        _ = try await client.call(
            .GET, "/v1/devices/\(ControlClient.escaped(device.name))", as: DeviceDocument.self)
    }
}

/// What a restore writes to: a sink for each thread.
struct RestoreSinks: Sendable {
    let all: [any CopySink]
    /// Bytes of the target; 0 for a file.
    let byteCount: UInt64
    private let last: @Sendable () throws(CopyError) -> Void

    /// Over NBD.
    static func device(_ sinks: [NBDSink], size: UInt64) -> RestoreSinks {
        RestoreSinks(
            all: sinks, byteCount: size,
            last: { () throws(CopyError) in try sinks[0].flush() })
    }

    /// A file or block device.
    static func path(_ target: CopyTarget, threads: Int, size: UInt64) -> RestoreSinks {
        let isBlockDevice = target.isBlockDevice
        return RestoreSinks(
            all: Array(repeating: target, count: threads),
            byteCount: isBlockDevice ? size : 0,
            last: { () throws(CopyError) in
                try target.sync()
                if target.isNew { try target.nameIsNew() }
            })
    }

    private init(
        all: [any CopySink], byteCount: UInt64,
        last: @escaping @Sendable () throws(CopyError) -> Void
    ) {
        self.all = all
        self.byteCount = byteCount
        self.last = last
    }

    /// All was written: it reaches stable storage.
    func finish() throws(CopyError) { try last() }
}
