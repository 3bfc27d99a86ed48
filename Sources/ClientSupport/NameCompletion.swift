package import ArgumentParser
internal import ControlDocuments
internal import NIOCore

// What the shell offers for names: the service is asked, and nothing is offered when it does not
// answer.

extension CompletionKind {
    /// Names of devices.
    package static let deviceNames = names(of: "/v1/devices") { (device: DeviceDocument) in
        [device.name]
    }

    /// Names of snapshots, ids of those without one.
    package static let snapshotNames = names(of: "/v1/snapshots") { (snapshot: SnapshotDocument) in
        [snapshot.label]
    }

    /// Names of checkpoints.
    package static let checkpointNames = names(of: "/v1/checkpoints") {
        (checkpoint: CheckpointDocument) in
        [checkpoint.name]
    }

    /// What changes can be asked since.
    package static let baseNames = names(of: "/v1/checkpoints", besides: ["generation"]) {
        (checkpoint: CheckpointDocument) in
        [checkpoint.name]
    }

    /// Images, as `DEVICE@SNAPSHOT`.
    static let imageNames = names(of: "/v1/snapshots") { (snapshot: SnapshotDocument) in
        snapshot.devices.compactMap(\.image)
    }

    /// Devices and images.
    package static let targetNames = CompletionKind.custom { words, index, prefix in
        await offered("/v1/devices", words) { (device: DeviceDocument) in [device.name] }
            + offered("/v1/snapshots", words) { (snapshot: SnapshotDocument) in
                snapshot.devices.compactMap(\.image)
            }
    }

    /// Paths of local block devices.
    package static let blockPaths = names(of: "/v1/blocks") { (block: BlockDocument) in [block.path]
    }

    /// Longest wait for the service: somebody waits at a prompt.
    private static let timeLimit = TimeAmount.seconds(2)

    private static func names<Document: Decodable & Sendable>(
        of list: String, besides words: [String] = [],
        _ names: @escaping @Sendable (Document) -> [String]
    ) -> CompletionKind {
        .custom { line, _, _ in words + (await offered(list, line, names)) }
    }

    /// `line`: the words of the command line, which may name the socket.
    private static func offered<Document: Decodable & Sendable>(
        _ list: String, _ line: [String], _ names: @Sendable (Document) -> [String]
    ) async -> [String] {
        var options = ClientOptions()
        options.control = control(in: line)
        do {
            return try await options.client().call(
                .GET, list, timeLimit: timeLimit, as: [Document].self
            ).flatMap(names)
        } catch {
            // An error message would interrupt the typing.
            return []
        }
    }

    private static func control(in line: [String]) -> String? {
        for (index, word) in line.enumerated() {
            if word.hasPrefix("--control=") { return String(word.dropFirst("--control=".count)) }
            if word == "--control", index + 1 < line.count { return line[index + 1] }
        }
        return nil
    }
}
