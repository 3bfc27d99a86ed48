package import ArgumentParser
internal import BlockModel
internal import ClientCommands
internal import ClientSupport
internal import ControlDocuments
internal import CopyPlanning
internal import Glibc
internal import ImageCopy
internal import NBDAccess
internal import Synchronization

/// `restore`: a copy back onto a device, or to a path.
package struct RestoreCommand: AsyncParsableCommand {
    /// How the command is called, and its manual page.
    package static let configuration = CommandConfiguration(
        commandName: "restore",
        abstract: "Write a copy back onto a device, or to a file or block device.",
        usage: "stillpoint restore COPY DEVICE|PATH [--yes] [OPTIONS]",
        discussion: """
            A restore onto a device goes through the service: changes are tracked, and snapshots that \
            are held are preserved. If the device still knows the cut that the copy equals, only \
            what changed since then is read and written. A device that is in use is refused. If the \
            device is larger than the copy, the rest is zeroed. To finish a restore that was \
            interrupted, run the same command again.

            A target with a slash in it is a path: a file (created if it does not exist) or a block \
            device. COPY is a file, a block device, or - for a stream of `copy --format diff` or \
            `rbd export-diff`.

            Examples:
              stillpoint restore /backup/vm1.img vm1 --yes
              stillpoint restore /backup/vm1.img@sunday ./vm1-of-sunday.img
              rbd export-diff pool/vm1@monday - | stillpoint restore - vm1 --yes
            """)

    @Argument(help: "Copy: a file, a block device, or - for a stream.")
    var copy: String

    @Argument(help: ArgumentHelp("Where to restore it.", valueName: "device|path"))
    var target: String

    @Flag(help: "Overwrite the target without asking.")
    var yes = false

    @Option(help: ArgumentHelp("File that holds the record of the copy.", valueName: "file"))
    var record: String?

    @OptionGroup var options: ClientOptions

    private static let threadCount = 4
    private static let stream = "-"

    package init() {}

    package mutating func run() async throws {
        signal(SIGXFSZ, SIG_IGN)
        let begun = ContinuousClock.now
        let client = try options.client()
        let status = try await client.call(.GET, "/v1/status", as: StatusDocument.self)
        let place = try await RestorePlace.find(target, client, status)
        var source: CopyReader?
        if copy != Self.stream { source = try await reader(status) }
        let changes = try await quick(source, place, client)
        try confirm(place, changes)
        var result = RestoreDocument(copy: copy, target: target, quick: changes != nil)
        result.since = changes?.base
        try await write(source, place, changes?.ranges, client, &result)
        result.seconds = (ContinuousClock.now - begun) / .seconds(1)
        try options.show(result) { result.text }
    }

    private func reader(_ status: StatusDocument) async throws -> CopyReader {
        let path = try Defaults.place(copy)
        let options = CopySource.options(
            status, record: try record.map { try Defaults.absolute($0) })
        return try await SharedWork.run { () throws(CopyError) in
            try CopyReader(opening: path, options: options)
        }
    }

    /// What changed on the device since the cut of the copy; nil where all has to be written.
    private func quick(
        _ source: CopyReader?, _ place: RestorePlace, _ client: ControlClient
    ) async throws -> (base: String, ranges: RangeSpool)? {
        guard let source, case .device(let device, _) = place, let cut = source.cut,
            source.device == device.name, cut.size == source.size
        else { return nil }
        let checkpoints = try await client.call(
            .GET, "/v1/checkpoints", as: [CheckpointDocument].self)
        guard let base = CopySource.newestBase(of: device.name, for: cut, among: checkpoints)
        else { return nil }
        let changes = try await ChangesReader(
            client: client, device: device.name, since: base, until: nil
        ).read()
        guard changes.ranges.end <= device.size else {
            throw ControlError(.failed, "the service names changes beyond the end of a device")
        }
        return (base, changes.ranges)
    }

    private func confirm(
        _ place: RestorePlace, _ changes: (base: String, ranges: RangeSpool)?
    ) throws {
        guard !yes, let what = place.whatIsLost else { return }
        guard isatty(STDIN_FILENO) == 1, copy != Self.stream else {
            throw ControlError(.invalid, "\(what) will be overwritten; confirm that with --yes")
        }
        let extent = changes.map {
            "what changed since \($0.base) (\(sizeText($0.ranges.byteCount)))"
        }
        FileHandles.error.write("Overwrite \(extent ?? "all") of \(what)? [y/N] ")
        let answer = readLine() ?? ""
        guard ["y", "Y", "yes"].contains(answer) else {
            throw ControlError(.failed, "nothing was written")
        }
    }

    private func write(
        _ source: CopyReader?, _ place: RestorePlace, _ ranges: RangeSpool?,
        _ client: ControlClient, _ result: inout RestoreDocument
    ) async throws {
        guard let source else { return try await writeStream(place, client, &result) }
        let size = source.size
        let sinks = try await place.open(copySize: size, threads: Self.threadCount, client)
        result.size = size
        let work =
            ranges.map { CopyWork($0) } ?? CopyWork(wholeImage: max(size, sinks.byteCount))
        do {
            try await SharedWork.perform(
                "restore \(target)", work, threads: sinks.all.count,
                interrupted: "\(target) is half restored; the same command finishes it"
            ) { index in
                source.work(work, into: sinks.all[index])
            }
        } catch let error as ControlError {
            try await place.explain(error, client)
            throw error
        }
        try await SharedWork.run { () throws(CopyError) in try sinks.finish() }
        result.changedBytes = work.byteCount
        result.transferredBytes = work.readByteCount.load(ordering: .relaxed)
        result.writtenBytes = work.writtenByteCount.load(ordering: .relaxed)
        result.zeroedBytes = work.zeroedByteCount.load(ordering: .relaxed)
    }

    private func writeStream(
        _ place: RestorePlace, _ client: ControlClient, _ result: inout RestoreDocument
    ) async throws {
        let reader = DifferenceReader(STDIN_FILENO)
        let head = try await SharedWork.run { () throws(CopyError) in try reader.head() }
        if let from = head.from { try await place.checkEquals(from, client) }
        let sinks = try await place.open(
            copySize: head.size, threads: 1, client)
        let outcome = try await SharedWork.run { () throws(CopyError) in
            let outcome = try reader.apply(head, to: sinks.all[0], end: sinks.byteCount)
            try sinks.finish()
            return outcome
        }
        result.since = head.from
        result.size = head.size
        result.changedBytes = outcome.writtenByteCount + outcome.zeroedByteCount
        result.transferredBytes = outcome.writtenByteCount
        result.writtenBytes = outcome.writtenByteCount
        result.zeroedBytes = outcome.zeroedByteCount
    }
}

/// What `restore --json` prints.
struct RestoreDocument: Encodable {
    var copy: String
    var target: String
    /// Only what changed since the cut of the copy was written.
    var quick: Bool
    /// The cut since which changes were asked for.
    var since: String?
    /// Bytes of the copy.
    var size: UInt64 = 0
    /// Bytes of the ranges that were restored.
    var changedBytes: UInt64 = 0
    /// Bytes of them that were read: holes are not.
    var transferredBytes: UInt64 = 0
    var writtenBytes: UInt64 = 0
    var zeroedBytes: UInt64 = 0
    var seconds: Double = 0

    init(copy: String, target: String, quick: Bool) {
        self.copy = copy
        self.target = target
        self.quick = quick
    }

    /// For people.
    var text: String {
        let what = since.map { "\(sizeText(changedBytes)) that changed since \($0)" } ?? "all"
        let rate = Double(transferredBytes) / max(seconds, 0.001)
        return "restored \(copy) to \(target): \(what), \(sizeText(writtenBytes)) written, "
            + "\(sizeText(UInt64(rate)))/s\n"
    }
}
