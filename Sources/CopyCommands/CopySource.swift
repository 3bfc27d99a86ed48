internal import BlockModel
internal import ClientCommands
internal import ClientSupport
internal import ControlDocuments
internal import CopyPlanning
internal import CopyTargets
internal import ImageCopy
internal import NBDAccess

/// The image that is copied, as the service describes it.
struct CopySource: Sendable {
    let client: ControlClient
    let device: String
    /// What the user called the snapshot.
    let snapshot: String
    let cut: CopyCut
    /// Name of the image's export.
    let export: String
    /// Where the service serves it, the best first.
    let addresses: [NBDServerAddress]

    /// The service, as it was when the image was found.
    let status: StatusDocument

    /// Asks the service for the image of a device in a snapshot, which `text` names.
    static func find(
        _ device: String, _ text: String, with client: ControlClient
    ) async throws -> CopySource {
        let status = try await client.call(.GET, "/v1/status", as: StatusDocument.self)
        let snapshot = try await Self.snapshot(text, client)
        let part = try Self.part(of: snapshot, device)
        guard let export = part.image, let generation = part.generation, let epoch = part.epoch
        else {
            throw ControlError(
                .busy,
                "snapshot \(text) is \(snapshot.state): only the image of one that is "
                    + "held can be copied; take it first, or name another")
        }
        return CopySource(
            client: client, device: device, snapshot: text,
            cut: CopyCut(
                generation: generation, epoch: epoch, size: part.size, snapshot: snapshot.label,
                snapshotId: snapshot.id),
            export: export,
            addresses: Self.addresses(status),
            status: status)
    }

    /// Where the service serves NBD, the best first.
    static func addresses(_ status: StatusDocument) -> [NBDServerAddress] {
        let listening = status.nbd.compactMap { text -> NBDServerAddress? in
            // An address that only a newer program knows is one this program cannot use.
            switch try? ListenAddress(parsing: text) {
            case .unix(let path): .unix(path: path)
            case .tcp(let host, let port): .tcp(host: host, port: port)
            case nil: nil
            }
        }
        let isUnix = { (address: NBDServerAddress) in
            if case .unix = address { true } else { false }
        }
        return listening.filter(isUnix) + listening.filter { !isUnix($0) }
    }

    private static func snapshot(
        _ text: String, _ client: ControlClient
    ) async throws -> SnapshotDocument {
        try await client.call(
            .GET, "/v1/snapshots/\(ControlClient.escaped(text))", as: SnapshotDocument.self)
    }

    /// The device's part of a snapshot; throws when it is not in it, or its image lost data.
    private static func part(
        of snapshot: SnapshotDocument, _ device: String
    ) throws(ControlError) -> SnapshotDocument.Device {
        guard let part = snapshot.devices.first(where: { $0.device == device }) else {
            throw ControlError(
                .notFound,
                "snapshot \(snapshot.label) is not of device \(device), but of "
                    + snapshot.devices.map(\.device).joined(separator: ", "))
        }
        if let error = part.error {
            throw ControlError(
                .corrupted,
                "the image \(device)@\(snapshot.label) lost data (\(error)); destroy the snapshot "
                    + "and copy a new one")
        }
        return part
    }

    // -- changes

    /// What changed since the cut called `name`, all of it.
    func changes(since name: String) async throws -> (base: CopyRequest.Base, ranges: RangeSpool) {
        let changes = try await ChangesReader(
            client: client, device: device, since: name, until: cut.snapshotId
        ).read()
        let document = changes.document
        guard let since = document.since, document.generation == cut.generation,
            document.until.epoch == cut.epoch, document.size == cut.size
        else {
            throw ControlError(
                .failed, "the service answered about another cut than \(device)@\(snapshot)")
        }
        guard changes.ranges.end <= cut.size else {
            throw ControlError(.failed, "the service names changes beyond the end of \(device)")
        }
        return (
            CopyRequest.Base(name: name, generation: document.generation, epoch: since.epoch),
            changes.ranges
        )
    }

    /// The newest cut that a target which equals `cut` can be brought forward from; nil when the
    /// device knows none.
    func base(for cut: CopyCut) async throws -> String? {
        let checkpoints = try await client.call(
            .GET, "/v1/checkpoints", as: [CheckpointDocument].self)
        return Self.newestBase(of: device, for: cut, among: checkpoints)
    }

    /// The newest checkpoint of the same generation that is not later than the cut: whatever
    /// changed since an older one covers what changed since the cut.
    static func newestBase(
        of device: String, for cut: CopyCut, among checkpoints: [CheckpointDocument]
    ) -> String? {
        var best: (name: String, epoch: UInt32)?
        for checkpoint in checkpoints {
            for part in checkpoint.devices
            where part.device == device && part.usable && part.generation == cut.generation
                && part.epoch <= cut.epoch && part.epoch > best?.epoch ?? 0
            {
                best = (checkpoint.name, part.epoch)
            }
        }
        return best?.name
    }

    /// Where the records of block devices are.
    static func records(_ status: StatusDocument) -> String { status.stateDirectory + "/copies" }

    /// Where the records of block devices are.
    var records: String { Self.records(status) }

    /// What a target must keep clear of.
    var surroundings: CopySurroundings { Self.surroundings(status) }

    /// What a target must keep clear of.
    static func surroundings(_ status: StatusDocument) -> CopySurroundings {
        CopySurroundings(
            origins: status.devices.map { .init(name: $0.name, path: $0.path) },
            blocks: status.blocks.map { .init(name: $0.target, path: $0.path) },
            server: server(addresses(status)))
    }

    /// Where the service serves NBD, for comparing with what a target names.
    private static func server(_ addresses: [NBDServerAddress]) -> CopySurroundings.Server {
        var server = CopySurroundings.Server()
        for address in addresses {
            switch address {
            case .unix(let path): server.sockets.append(path)
            case .tcp(_, let port): server.ports.append(port)
            }
        }
        return server
    }

    /// How copies are opened: where their records are, and what servers are reached with.
    static func options(_ status: StatusDocument, record: String? = nil) -> CopyOptions {
        var options = CopyOptions()
        options.surroundings = surroundings(status)
        options.diskRecords = records(status)
        options.recordPath = record
        options.secure = SecureConnection.begin
        return options
    }

    // -- connections

    /// Connects to the image, `count` times. Blocks.
    func connect(_ count: Int) -> Result<[CopyWorker], NBDAccessError> {
        var failure = NBDAccessError.refused("the service serves no NBD")
        for address in addresses {
            do throws(NBDAccessError) {
                var workers: [CopyWorker] = []
                for _ in 0..<count {
                    workers.append(try CopyWorker(address, export: export))
                }
                return .success(workers)
            } catch { failure = error }
        }
        return .failure(failure)
    }

    /// Throws when the image is not held any more, or lost data: nothing else that failed matters
    /// then. Also says that connections made since `find` are to this very snapshot, for its
    /// name was its own all the time.
    func checkIsHeld() async throws {
        let now: SnapshotDocument
        do {
            now = try await Self.snapshot(cut.snapshotId, client)
        } catch let error as ControlError where error.code == .notFound {
            throw ControlError(
                .notFound,
                "snapshot \(snapshot) was destroyed while \(device)@\(snapshot) was "
                    + "copied; bring the target forward with a newer one and the same --since, or "
                    + "make a full copy if this was one")
        }
        let part = try Self.part(of: now, device)
        guard part.image == export else {
            throw ControlError(
                .busy, "snapshot \(snapshot) is being destroyed; copy a newer one")
        }
    }
}
