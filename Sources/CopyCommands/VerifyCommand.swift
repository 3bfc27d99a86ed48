package import ArgumentParser
internal import BlockModel
internal import ClientSupport
internal import ControlDocuments
internal import CopyPlanning
internal import ImageCopy
internal import NBDAccess
internal import Synchronization

/// `verify`: a copy against an image, byte by byte.
package struct VerifyCommand: AsyncParsableCommand {
    /// How the command is called, and its manual page.
    package static let configuration = CommandConfiguration(
        commandName: "verify",
        abstract: "Compare a copy with an image, byte by byte.",
        usage: "stillpoint verify COPY DEVICE@SNAPSHOT [--audit] [OPTIONS]",
        discussion: """
            If bytes differ, the exit status is 1 and the message names the first ranges. With --audit \
            the copy may be of an earlier cut; every block that differs must then have been reported \
            as changed between the two.

            Examples:
              stillpoint verify /backup/vm1.img vm1@monday
              stillpoint verify /backup/vm1.img@sunday vm1@monday --audit
            """)

    @Argument(help: "File or block device that is a copy.")
    var copy: String

    @Argument(help: ArgumentHelp("The image.", valueName: "device@snapshot"))
    var image: String

    @Flag(help: "Check that every block that differs was reported as changed.")
    var audit = false

    @Option(help: ArgumentHelp("File that holds the record of the copy.", valueName: "file"))
    var record: String?

    @OptionGroup var options: ClientOptions

    private static let threadCount = 4
    private static let rangesShown = 8

    package init() {}

    package mutating func run() async throws {
        let name = try CopyImageName(image)
        guard let snapshot = name.snapshot else {
            throw ControlError(
                .invalid,
                "\"\(image)\" does not name an image: give DEVICE@SNAPSHOT, such as vm1@monday")
        }
        let path = try Defaults.place(copy)
        let begun = ContinuousClock.now
        let source = try await CopySource.find(
            name.device, snapshot, with: try options.client())
        let reader = try await reader(path, source)
        var reported: RangeSpool?
        var since: String?
        if audit { (since, reported) = try await changes(since: reader, source) }
        let ranges = reported
        let size = source.cut.size
        let sink = try await SharedWork.run { () throws(CopyError) in
            try CompareSink(reader, reported: ranges, size: size)
        }
        let work = CopyWork(wholeImage: source.cut.size)
        let connected = try await connect(source)
        try await SharedWork.perform(
            "verify \(copy)", work, threads: Self.threadCount,
            interrupted: "what was compared until now was not reported"
        ) { index in
            connected[index].work(work, into: sink, isFresh: false)
        }
        try await source.checkIsHeld()
        var differences = sink.differences
        if reader.size > source.cut.size, !keepsSize(path) {
            differences.byteCount += reader.size - source.cut.size
            differences.first.append(
                ByteRange(offset: source.cut.size, length: reader.size - source.cut.size))
        }
        try report(differences, source, since, reported, begun)
    }

    /// What is larger than its copy from the beginning.
    private func keepsSize(_ path: String) -> Bool {
        path.contains("://") || CopyInventory.isBlockDevice(path)
    }

    private func reader(_ path: String, _ source: CopySource) async throws -> CopyReader {
        let options = CopySource.options(
            source.status, record: try record.map { try Defaults.absolute($0) })
        return try await SharedWork.run { () throws(CopyError) in
            try CopyReader(opening: path, options: options)
        }
    }

    private func connect(_ source: CopySource) async throws -> [CopyWorker] {
        try await SharedWork.run { () throws(CopyError) in
            switch source.connect(Self.threadCount) {
            case .success(let workers): return workers
            case .failure(let error):
                throw CopyError(.failed, "\(source.export) cannot be opened over NBD (\(error))")
            }
        }
    }

    /// What the service reports as changed between the cut of the copy and the image.
    private func changes(
        since reader: CopyReader, _ source: CopySource
    ) async throws -> (String, RangeSpool) {
        guard let cut = reader.cut else {
            throw ControlError(
                .generationUnknown,
                "copy \(copy) cannot be audited: \(reader.doubt ?? "it equals no cut")")
        }
        guard reader.device == source.device else {
            throw ControlError(
                .invalid, "copy \(copy) is of device \(reader.device ?? "?"), not \(source.device)")
        }
        guard let base = try await source.base(for: cut) else {
            throw ControlError(
                .generationUnknown,
                "the cut of copy \(copy) (\(cut.snapshot)) is not known to device "
                    + "\(source.device) any more; without --audit all of it is compared")
        }
        return (base, try await source.changes(since: base).ranges)
    }

    private func report(
        _ differences: CompareSink.Differences, _ source: CopySource, _ since: String?,
        _ reported: RangeSpool?, _ begun: ContinuousClock.Instant
    ) throws {
        let image = "\(source.device)@\(source.snapshot)"
        if audit {
            guard differences.missedByteCount == 0 else {
                throw ControlError(
                    .failed,
                    "\(differences.missedByteCount) bytes of \(copy) differ from \(image) and were "
                        + "not reported as changed since \(since ?? "its cut"), at "
                        + "\(Self.text(differences.firstMissed)); the change map is wrong, or the "
                        + "copy is: make a full copy and report this")
            }
        } else if differences.byteCount > 0 {
            throw ControlError(
                .failed,
                "\(copy) differs from \(image) in \(differences.byteCount) bytes of blocks, at "
                    + "\(Self.text(differences.first)); make the copy again")
        }
        let result = VerifyDocument(
            copy: copy, device: source.device, snapshot: source.cut.snapshot,
            size: source.cut.size, differingBytes: differences.byteCount, since: since,
            reportedBytes: reported?.byteCount,
            seconds: (ContinuousClock.now - begun) / .seconds(1))
        try options.show(result) { result.text }
    }

    private static func text(_ ranges: [ByteRange]) -> String {
        let shown = ranges.prefix(rangesShown).map { "\($0.offset) (\($0.length) bytes)" }
        return shown.joined(separator: ", ") + (ranges.count > rangesShown ? " and more" : "")
    }
}

/// What `verify --json` prints.
struct VerifyDocument: Encodable {
    var copy: String
    var device: String
    var snapshot: String
    var size: UInt64
    /// Bytes of blocks that differ; more than none with `--audit` alone.
    var differingBytes: UInt64
    /// The cut since which changes were asked for.
    var since: String?
    /// Bytes that were reported as changed.
    var reportedBytes: UInt64?
    var seconds: Double

    /// For people.
    var text: String {
        guard let reportedBytes else {
            return "\(copy) equals \(device)@\(snapshot): \(sizeText(size)) compared\n"
        }
        return "every block of \(copy) that differs from \(device)@\(snapshot) was reported: "
            + "\(sizeText(differingBytes)) differ, \(sizeText(reportedBytes)) reported\n"
    }
}
