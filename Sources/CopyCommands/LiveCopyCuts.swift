internal import BlockModel
internal import ClientSupport
internal import ControlDocuments
internal import CopyPlanning
internal import ImageCopy

/// The cuts that a copy of live devices has the service make: checkpoints for its passes, named so
/// that no other copy chooses their names, and the last one, which is held frozen.
final class LiveCopyCuts {
    /// A cut of a pass.
    struct PassCut {
        let name: String
        let madeAt: ContinuousClock.Instant
        fileprivate let parts: [String: CopyCut]

        /// The cut of a device.
        func part(of device: String) throws(ControlError) -> CopyCut {
            guard let part = parts[device] else {
                throw ControlError(.failed, "the service made a cut without device \(device)")
            }
            return part
        }
    }

    /// What a copy's names and records have in common.
    let token = UniqueID.random()
    private let name: String
    private let client: ControlClient
    private var cuts: [PassCut] = []
    private var count = 0

    /// Bytes that a name keeps of the last cut's.
    private static let nameByteCount = 40

    init(_ name: String, _ client: ControlClient) {
        self.name = name
        self.client = client
    }

    /// What the names of the cuts of the copy with that token hold.
    static func mark(of token: String) -> String { "\(passMark)\(token.prefix(8))-" }

    private static let passMark = ".pass-"

    /// What the names of cuts of passes begin with, for a last cut of that name.
    static func passPrefix(of name: String) -> String { name.prefix(nameByteCount) + passMark }

    var isEmpty: Bool { count == 0 }
    /// From the cut before the newest to the newest.
    private(set) var secondsBetweenNewest = 0.0
    var secondsSinceNewest: Double { cuts.last?.madeAt.elapsedSeconds ?? 0 }

    /// Makes an unfrozen cut.
    func make(_ devices: [String]) async throws -> PassCut {
        count += 1
        let name =
            "\(name.prefix(Self.nameByteCount))\(Self.mark(of: token.description))\(count)"
        let document = try await client.call(
            .POST, "/v1/checkpoints",
            body: CheckpointCreateDocument(name: name, devices: devices, freeze: ["none"]),
            as: CheckpointDocument.self)
        let madeAt = ContinuousClock.now
        if let last = cuts.last { secondsBetweenNewest = (madeAt - last.madeAt) / .seconds(1) }
        let parts = document.devices.map { part in
            (
                part.device,
                CopyCut(
                    generation: part.generation, epoch: part.epoch, size: part.size,
                    snapshot: name, snapshotId: token.description)
            )
        }
        let cut = PassCut(
            name: name, madeAt: madeAt, parts: Dictionary(parts, uniquingKeysWith: { $1 }))
        cuts.append(cut)
        return cut
    }

    /// Makes the last cut and holds it frozen; its parts, in the order of `devices`.
    func hold(_ devices: [String], milliseconds: UInt64) async throws -> [CopyCut] {
        let held = try await client.call(
            .POST, "/v1/checkpoints",
            body: CheckpointCreateDocument(
                name: name, devices: devices, holdMilliseconds: milliseconds,
                id: token.description),
            as: HeldCutDocument.self)
        guard held.devices.map(\.device) == devices else {
            throw ControlError(.failed, "the service holds a cut of other devices")
        }
        return held.devices.map { part in
            CopyCut(
                generation: part.generation, epoch: part.epoch, size: part.size, snapshot: name,
                snapshotId: token.description)
        }
    }

    /// Thaws; the checkpoint is remembered then.
    func release() async throws -> CheckpointDocument {
        try await client.call(
            .POST, "/v1/checkpoints/\(ControlClient.escaped(name))/release",
            as: CheckpointDocument.self)
    }

    /// Thaws, and nothing is remembered. What fails ends by itself at the limit of the hold.
    func abandon() async {
        _ = try? await client.call(
            .DELETE, "/v1/checkpoints/\(ControlClient.escaped(name))/hold",
            as: HeldCutDocument.self)
    }

    /// The cut that records name.
    private(set) var recorded: String?

    /// Records name the newest cut from now on.
    func wereRecorded() { recorded = cuts.last?.name }

    /// Deletes cuts of passes, but one. What cannot be deleted is deleted by the next copy to the
    /// same target.
    func forget(but kept: String?) async {
        for cut in cuts where cut.name != kept { _ = try? await Self.delete(cut.name, client) }
        cuts.removeAll { $0.name != kept }
    }

    /// Deletes a checkpoint, if it is there.
    static func delete(_ name: String, _ client: ControlClient) async throws {
        do {
            _ = try await client.call(
                .DELETE, "/v1/checkpoints/\(ControlClient.escaped(name))",
                as: CheckpointDocument.self)
        } catch let error as ControlError where error.code == .notFound {
            // Somebody deleted it already.
        }
    }
}
