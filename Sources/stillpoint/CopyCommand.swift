import ArgumentParser
import BlockModel
import Control
import ImageCopy
import Synchronization

/// `copy`: an image into a file or block device, whole or by what changed.
struct CopyCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "copy",
        abstract: "Copy an image into a file, wholly or only what changed.",
        usage: "stillpoint copy DEVICE@SNAPSHOT TARGET [--since NAME] [OPTIONS]",
        discussion: """
            Without --since everything is copied; holes and zeroes become holes. With --since only \
            what changed since that cut is copied, in place, into a target that equals it. \
            TARGET.stillpoint records which cut the target equals. A copy that was interrupted is \
            finished by the same command; when its snapshot is gone, by one with a newer snapshot \
            and the same --since. A target that does not fit is refused with exit status 5: make a \
            full copy then.

            Examples:
              stillpoint copy vm1@monday /backup/vm1.img
              stillpoint copy vm1@tuesday /backup/vm1.img --since monday
            """)

    @Argument(help: ArgumentHelp("What to copy.", valueName: "device@snapshot"))
    var image: String

    @Argument(help: "File (made when it is missing) or block device that becomes the copy.")
    var target: String

    @Option(
        help: ArgumentHelp(
            "The cut that the target equals: a checkpoint or a named snapshot.", valueName: "name"))
    var since: String?

    @Flag(help: "Overwrite a target that is no copy of this device. Not with --since.")
    var force = false

    @OptionGroup var options: ClientOptions

    func validate() throws {
        if force, since != nil {
            throw ValidationError(
                "--force overwrites everything, --since only what changed; give one of them")
        }
    }

    mutating func run() async throws {
        let path = try Defaults.absolute(target)
        let image = try await CopySource.find(image, with: try options.client())
        let begun = ContinuousClock.now
        var ranges: [ByteRange]?
        var base: CopyWish.Base?
        if let since {
            let changes = try await image.changes(since: since)
            ranges = changes.ranges
            base = changes.base
        }
        let wish = CopyWish(
            device: image.device, cut: image.cut, since: base, isForced: force)
        let work = ranges.map { CopyWork($0) } ?? CopyWork(wholeImage: image.cut.size)
        let run = CopyRun(image: image, wish: wish, path: path, work: work)
        let plan = try await run.perform()
        let isNothing = plan == .nothing
        let result = CopyDocument(
            device: image.device, snapshot: image.cut.snapshot, target: path, full: since == nil,
            since: since, generation: image.cut.generation, epoch: image.cut.epoch,
            size: image.cut.size, ranges: isNothing ? 0 : ranges?.count ?? 1,
            changedBytes: isNothing ? 0 : work.byteCount,
            transferredBytes: work.readByteCount.load(ordering: .relaxed),
            writtenBytes: work.writtenByteCount.load(ordering: .relaxed),
            zeroedBytes: work.zeroedByteCount.load(ordering: .relaxed),
            seconds: (ContinuousClock.now - begun) / .seconds(1))
        try options.show(result) { Self.text(result, isNothing: isNothing) }
    }

    private static func text(_ result: CopyDocument, isNothing: Bool) -> String {
        let image = "\(result.device)@\(result.snapshot)"
        if isNothing { return "\(result.target) equals \(image) already\n" }
        let what =
            result.full
            ? "all \(sizeText(result.size))"
            : "\(sizeText(result.changedBytes)) in \(result.ranges) range(s)"
        let rate = Double(result.transferredBytes) / max(result.seconds, 0.001)
        return "copied \(image) to \(result.target): \(what), "
            + "\(sizeText(result.transferredBytes)) transferred, \(sizeText(UInt64(rate)))/s\n"
    }
}

/// What `copy --json` prints.
struct CopyDocument: Encodable {
    var device: String
    var snapshot: String
    var target: String
    /// Everything was copied, not only what changed.
    var full: Bool
    var since: String?
    var generation: String
    var epoch: UInt32
    /// Bytes of the image, and of the copy.
    var size: UInt64
    /// Ranges that were copied.
    var ranges: Int
    /// Bytes of these ranges.
    var changedBytes: UInt64
    /// Bytes of them that came from the service: not those known to be zero.
    var transferredBytes: UInt64
    var writtenBytes: UInt64
    /// Bytes made to read as zero.
    var zeroedBytes: UInt64
    var seconds: Double
}
