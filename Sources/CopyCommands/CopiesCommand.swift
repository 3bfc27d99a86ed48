package import ArgumentParser
internal import ClientSupport
internal import ControlDocuments
internal import CopyPlanning
internal import FoundationEssentials
internal import ImageCopy

/// `copies`: what there is of a target.
package struct CopiesCommand: AsyncParsableCommand {
    /// How the command is called, and its manual page.
    package static let configuration = CommandConfiguration(
        commandName: "copies",
        abstract: "List a copy and its versions: cut, time, size, state.",
        usage: "stillpoint copies TARGET [OPTIONS]",
        discussion: """
            States: complete, interrupted, changed (somebody wrote to it since), unknown (no record). \
            SINCE names the cut that the next `copy --since` can start from, if the device knows one.

            Examples:
              stillpoint copies /backup/vm1.img
              stillpoint copies /dev/sdx --json
            """)

    @Argument(help: "File or block device that is a copy.")
    var target: String

    @Option(help: ArgumentHelp("File that holds the record of the copy.", valueName: "file"))
    var record: String?

    @OptionGroup var options: ClientOptions

    package init() {}

    package mutating func run() async throws {
        let path = try Defaults.place(target)
        let named = try record.map { try Defaults.absolute($0) }
        let client = try options.client()
        let status = try await client.call(.GET, "/v1/status", as: StatusDocument.self)
        let place = CopySource.options(status, record: named)
        let entries = try await SharedWork.run { () throws(CopyError) in
            try CopyInventory.list(path, place)
        }
        guard !entries.isEmpty else {
            throw ControlError(.notFound, "there is no copy at \(path)")
        }
        let checkpoints = try await client.call(
            .GET, "/v1/checkpoints", as: [CheckpointDocument].self)
        let documents = entries.map { CopyEntryDocument($0, checkpoints) }
        try options.show(documents) { Self.table(documents) }
    }

    private static func table(_ documents: [CopyEntryDocument]) -> String {
        var table = Table(
            [
                ("COPY", .left), ("OF", .left), ("MADE", .left), ("SIZE", .right),
                ("USES", .right), ("STATE", .left), ("SINCE", .left),
            ], elastic: 0)
        for document in documents {
            let image = document.device.map { "\($0)@\(document.snapshot ?? "?")" } ?? "-"
            table.add([
                document.path, image, document.writtenAt?.formatted(.iso8601) ?? "-",
                sizeText(document.size), document.allocated.map { sizeText($0) } ?? "-",
                document.state, document.since ?? "-",
            ])
        }
        return table.lines(columns: FileHandles.output.columns)
    }
}

/// One of what `copies --json` prints.
struct CopyEntryDocument: Encodable {
    var path: String
    /// NAME of TARGET@NAME.
    var version: String?
    /// `complete`, `interrupted`, `changed` or `unknown`.
    var state: String
    var device: String?
    /// The snapshot of the cut that it equals, or is on its way to.
    var snapshot: String?
    var generation: String?
    var epoch: UInt32?
    var size: UInt64
    /// Bytes of disk space that it uses.
    var allocated: UInt64?
    var writtenAt: Date?
    /// The newest cut of the device that an increment can begin at.
    var since: String?

    init(_ entry: CopyInventory.Entry, _ checkpoints: [CheckpointDocument]) {
        path = entry.path
        version = entry.version
        state = entry.state.rawValue
        size = entry.size
        allocated = entry.allocated
        guard let record = entry.record else { return }
        let cut = record.equals ?? record.to
        device = record.device
        snapshot = cut?.snapshot
        generation = cut?.generation
        epoch = cut?.epoch
        writtenAt = record.writtenAtSeconds.map {
            Date(timeIntervalSince1970: TimeInterval($0))
        }
        guard let base = record.equals ?? record.from, entry.state != .changed else { return }
        since =
            CopySource.newestBase(of: record.device, for: base, among: checkpoints)
    }
}
