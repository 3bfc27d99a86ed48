package import ArgumentParser
internal import BlockModel
internal import ClientSupport
internal import ControlDocuments
internal import CopyPlanning
internal import CopyTargets
internal import FoundationEssentials
internal import Glibc
internal import HeldSnapshots
internal import ImageCopy
internal import Synchronization

/// `copy`: images into files or block devices, whole or by what changed.
package struct CopyCommand: AsyncParsableCommand {
    /// How the command is called, and its manual page.
    package static let configuration = CommandConfiguration(
        commandName: "copy",
        abstract: "Copy a device as it is at one moment: all of it, or only what changed.",
        usage: "stillpoint copy DEVICE[@SNAPSHOT]... TARGET [--since NAME|auto] [OPTIONS]",
        discussion: """
            DEVICE@SNAPSHOT is the image of a snapshot that is held. For DEVICE alone, a snapshot is \
            made for the time of the copy (--checkpoint names its cut) and always destroyed \
            afterwards. Several devices are copied as of one moment, to DIRECTORY/DEVICE.img.

            A live device has no snapshots. It is copied in passes while it is in use. For the last \
            one its filesystems are frozen, and the target equals the device as it is then. If the \
            freeze would be longer than --freeze-limit, or something writes to the device beside its \
            filesystem, the copy fails with exit status 4; the same command continues it.

            Without --since, everything is copied; holes and zeroes become holes. With --since, only \
            what changed since that cut is copied, in place, into a target that equals the cut. \
            `--since auto` uses the newest cut that the target equals and the device still knows. If \
            there is none, everything is copied to a new file, which then replaces the target. A \
            record says which cut the target equals: TARGET.stillpoint, or for a block device a file \
            in the state directory of the service. To finish a copy that was interrupted, run the same \
            command again, or, if its snapshot is gone, name a newer snapshot and the same --since. \
            If the target does not equal the cut, the copy is refused with exit status 5: make a full \
            copy then.

            A target FILE.qcow2 is written through qemu-nbd, and never changed once it is complete: \
            what changed goes into a new file that lies on the former copy (--onto). An export of an \
            NBD server (nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH, nbds://...) is brought \
            forward in place. In an RBD image (rbd:POOL/IMAGE) each finished copy leaves a snapshot \
            with the name of its cut.

            Examples:
              stillpoint copy vm1@monday /backup/vm1.img
              stillpoint copy vm1@tuesday /backup/vm1.img --since monday
              stillpoint copy vm1 /backup/vm1.img --since auto --checkpoint wednesday --keep tuesday
              stillpoint copy vm1 vm2 --to /backup --since auto
              stillpoint copy root /backup/root.img --since auto --checkpoint friday
              stillpoint copy vm1@monday - | zstd >/backup/vm1.img.zst
              stillpoint copy vm1 /backup/tue.qcow2 --onto /backup/mon.qcow2 --checkpoint tue
              stillpoint copy vm1 rbd:backup/vm1 --since auto --checkpoint tuesday
              stillpoint copy vm1 nbd://backup.example/vm1 --since auto
            """)

    @Argument(
        help: ArgumentHelp(
            "What to copy, then the target: a file (created if it does not exist), a block device, "
                + "an export of an NBD server, rbd:POOL/IMAGE, or - for standard output.",
            valueName: "device[@snapshot]... target"))
    var operands: [String]

    @Option(
        help: ArgumentHelp(
            "The cut that the target equals: a checkpoint, a named snapshot or auto.",
            valueName: "name|auto"))
    var since: String?

    @Option(help: ArgumentHelp("Name of the cut that is made for DEVICE.", valueName: "name"))
    var checkpoint: String?

    @Option(
        help: ArgumentHelp("Keep the old contents of the target as TARGET@NAME.", valueName: "name")
    )
    var keep: String?

    @Option(
        help: "Copy every device to DIRECTORY/DEVICE.img.", completion: .directory)
    var to: String?

    @Option(
        help: ArgumentHelp(
            "File that holds the record of a single target.", valueName: "file"))
    var record: String?

    @Option(
        help: ArgumentHelp(
            "Format of a stream: raw, or diff, which is the format of `rbd export-diff`.",
            valueName: "raw|diff"))
    var format = StreamKind.raw

    @Option(
        help: ArgumentHelp(
            "How long the filesystems of live devices may be frozen, as far as can be foreseen: "
                + "0.02 to 15 seconds.", valueName: "seconds"))
    var freezeLimit = 1.0

    @Option(
        help: ArgumentHelp(
            "If passes over a live device do not get shorter, let at most so many bytes per second be "
                + "written to its disk, such as 20M, until the freeze.", valueName: "bytes"))
    var throttleWriters: String?

    @Option(
        help: ArgumentHelp(
            "The complete copy that a new FILE.qcow2 lies on.", valueName: "former.qcow2"))
    var onto: String?

    @Option(
        help: ArgumentHelp(
            "Data per second at most, such as 50M.", valueName: "bytes"))
    var limitRate: String?

    @Flag(
        help: "Tell every second on standard error how far it is; with --json as a line of JSON.")
    var progress = false

    @Flag(help: "Overwrite a target, whatever it is. Not with --since.")
    var force = false

    @OptionGroup var options: ClientOptions

    private static let auto = "auto"

    package init() {}

    package func validate() throws {
        if force, since != nil {
            throw ValidationError(
                "--force overwrites everything, --since only what changed; give one of them")
        }
        if force, keep != nil {
            throw ValidationError(
                "--force replaces what is there, --keep keeps it; give one of them")
        }
        if force, onto != nil {
            throw ValidationError("--force overwrites what is there, --onto needs a new file")
        }
        if let limitRate, parseSize(limitRate) ?? 0 == 0 {
            throw ValidationError(
                "--limit-rate \"\(limitRate)\" is no number of bytes per second, such as 50M")
        }
        if let throttleWriters, parseSize(throttleWriters) ?? 0 == 0 {
            throw ValidationError(
                "--throttle-writers \"\(throttleWriters)\" is not a number of bytes per second, such as 20M"
            )
        }
        if onto != nil, to != nil {
            throw ValidationError("--onto is of one target, and --to has several")
        }
        if to == nil, operands.count != 2 {
            throw ValidationError(
                operands.count < 2
                    ? "give what to copy (DEVICE or DEVICE@SNAPSHOT) and the target"
                    : "several devices need a directory: give --to DIRECTORY and no other target")
        }
        if to != nil, operands.isEmpty { throw ValidationError("give the devices to copy") }
        if record != nil, to != nil {
            throw ValidationError("--record names the record of one target; leave it out with --to")
        }
        guard LiveCopyMachine.Limits.freezeSecondsRange.contains(freezeLimit) else {
            throw ValidationError("--freeze-limit: give 0.02 to 15 seconds")
        }
        for (option, name) in [("--keep", keep), ("--checkpoint", checkpoint)] {
            if let name, ObjectName(name) == nil {
                throw ValidationError(
                    "\(option) \"\(name)\" is not a name: letters, digits, dots, hyphens and "
                        + "underscores, at most 64, the first a letter or digit")
            }
        }
    }

    package mutating func run() async throws {
        // A file that grows beyond the limit is reported as an error and does not end the program.
        signal(SIGXFSZ, SIG_IGN)
        let images = try (to == nil ? operands.dropLast() : operands[...]).map { text in
            try CopyImageName(text)
        }
        try check(images)
        let targets = try self.targets(images)
        let client = try options.client()
        if let run = try await liveRun(images, targets, client) {
            return try show(try await run.perform())
        }
        guard throttleWriters == nil else {
            throw ControlError(
                .unsuitable,
                "--throttle-writers is for live devices; a snapshot does not need slower writers")
        }
        let held = try await HeldImages.hold(
            images.filter { $0.snapshot == nil }.map(\.device), named: nameOfCut(images),
            with: client)
        let outcome: Result<[CopyDocument], any Error>
        do {
            var documents: [CopyDocument] = []
            var left: Set<String> = []
            for (image, target) in zip(images, targets) {
                let source = try await CopySource.find(
                    image.device, image.snapshot ?? held?.snapshot.id ?? "", with: client)
                let isOwn = image.snapshot == nil
                documents.append(
                    targetIsStream
                        ? try await stream(source, to: target)
                        : try await copy(source, to: target, isOwn: isOwn, &left))
            }
            // Only now: one cut may be the base of several targets.
            for name in left { try await forget(name, client) }
            outcome = .success(documents)
        } catch { outcome = .failure(error) }
        let problem = held?.release()
        let documents = try outcome.get()
        if let problem { throw ControlError(.failed, problem) }
        try show(documents)
    }

    /// A name that fits no snapshot that is there is of no use.
    private func check(_ images: [CopyImageName]) throws {
        if checkpoint != nil, images.contains(where: { $0.snapshot != nil }) {
            throw ValidationError(
                "--checkpoint names the cut that is made for DEVICE; a snapshot has its own")
        }
        if targetIsStream, since == Self.auto || keep != nil || record != nil || force {
            throw ValidationError(
                "a stream has no record and no versions; leave out --since auto, --keep, --record and "
                    + "--force")
        }
        if targetIsStream, onto != nil || limitRate != nil {
            throw ValidationError("--onto and --limit-rate do not go with a stream")
        }
        if keep != nil, to == nil, let target = operands.last,
            CopyPlace.isRemote(target) || target.hasSuffix(CopyRequest.qcowSuffix)
        {
            throw ValidationError(
                "--keep is for raw files: a qcow2 copy stays when the next one lies on it (--onto), "
                    + "an RBD image keeps its snapshots, and an NBD server keeps nothing")
        }
        if targetIsStream, since != nil, format == .raw {
            throw ValidationError(
                "a raw stream is always a full copy; give --format diff with --since")
        }
        if !targetIsStream, format == .diff {
            throw ValidationError("--format diff is for streams: give - as the target")
        }
    }

    var targetIsStream: Bool {
        to == nil && operands.last.map { StreamRun.takesStream($0) } == true
    }

    private func targets(_ images: [CopyImageName]) throws -> [String] {
        guard let to else {
            let target = operands[operands.count - 1]
            return [targetIsStream ? target : try Defaults.place(target)]
        }
        let directory = try Defaults.absolute(to)
        return images.map { "\(directory)/\($0.device).img" }
    }

    /// What the cut is called that is made for the copy: without a name no later increment can
    /// begin at it.
    private func nameOfCut(_ images: [CopyImageName]) -> String? {
        if let checkpoint { return checkpoint }
        guard since == Self.auto || onto != nil, images.contains(where: { $0.snapshot == nil })
        else { return nil }
        return nameOfOwnCut
    }

    var nameOfOwnCut: String { "copy-\(UInt64(max(0, time(nil))))-\(getpid())" }

    // MARK: One copy

    private func copy(
        _ image: CopySource, to target: String, isOwn: Bool, _ left: inout Set<String>
    ) async throws -> CopyDocument {
        let begun = ContinuousClock.now
        var notes: [String] = []
        var base = since
        var copyOptions = CopySource.options(
            image.status, record: try record.map { try Defaults.absolute($0) })
        copyOptions.keep = keep
        copyOptions.onto = try onto.map { try Defaults.absolute($0) }
        copyOptions.rateLimit = limitRate.flatMap { parseSize($0) }
        copyOptions.isNameOwned = isOwn && checkpoint == nil && since == Self.auto
        if since == Self.auto || (since == nil && onto != nil) {
            let found = ImageCopier.baseCut(
                ofTarget: copyOptions.onto ?? target, options: copyOptions)
            base = nil
            if let found { base = try await image.base(for: found) }
            if base == nil {
                notes += try beginsAnew(image, target, &copyOptions)
            }
        }
        var changes: RangeSpool?
        var known: CopyRequest.Base?
        if let base { (known, changes) = try await image.changes(since: base) }
        var request = CopyRequest(
            device: image.device, cut: image.cut, snapshot: isOwn ? nil : image.snapshot,
            since: known, isForced: force, mayReplace: since == Self.auto || keep != nil)
        var run = CopyRun(
            image: image, request: request, path: target, changes: changes, options: copyOptions,
            isOwn: isOwn, report: report)
        let copier: ImageCopier
        let copyNotes: [String]
        do {
            (copier, copyNotes) = try await run.perform()
        } catch let error as ControlError where error.code == .generationUnknown && mayBeginAnew {
            notes.append("\(error.message): everything is copied\(besideText(target))")
            request.since = nil
            copyOptions.onto = nil
            (base, changes) = (nil, nil)
            run = CopyRun(
                image: image, request: request, path: target, changes: nil, options: copyOptions,
                isOwn: isOwn, report: report)
            (copier, copyNotes) = try await run.perform()
        }
        notes += copyNotes
        if let name = nameLeft(by: copier.former, image) { left.insert(name) }
        for note in notes { FileHandles.error.write("stillpoint: \(note)\n") }
        return document(image, target, base: base, copier, changes, notes, begun)
    }

    /// No cut is known that an increment could begin at: the message when everything is
    /// copied.
    private func beginsAnew(
        _ image: CopySource, _ target: String, _ options: inout CopyOptions
    ) throws -> [String] {
        let base = options.onto ?? target
        guard since == Self.auto else {
            throw ControlError(
                .generationUnknown,
                "device \(image.device) no longer knows a cut that \(base) equals; make a full copy, "
                    + "without --onto")
        }
        options.onto = nil
        guard onto != nil || (!CopyPlace.isRemote(target) && access(target, F_OK) == 0) else {
            return []
        }
        return [
            "device \(image.device) no longer knows a cut that \(base) equals: everything is copied"
                + besideText(target)
        ]
    }

    /// Where everything is copied to when what is there cannot be brought forward.
    private func besideText(_ target: String) -> String {
        CopyPlace.isRemote(target) || onto != nil
            ? "" : " to a new file, which replaces the target when it is complete"
    }

    /// How progress is reported.
    private var report: ProgressReport {
        guard progress else { return .bar }
        return options.json ? .json : .lines
    }

    /// Whether everything is copied when what is there cannot be brought forward.
    private var mayBeginAnew: Bool { since == Self.auto }

    /// The cut that the former copy made for itself, which the target has left.
    private func nameLeft(by former: CopyRecord?, _ image: CopySource) -> String? {
        guard keep == nil, let former, former.isNameOwned == true, let equals = former.equals,
            !equals.isSameMoment(as: image.cut)
        else { return nil }
        return equals.snapshot
    }

    private func forget(_ name: String, _ client: ControlClient) async throws {
        do {
            _ = try await client.call(
                .DELETE, "/v1/checkpoints/\(ControlClient.escaped(name))",
                as: CheckpointDocument.self)
        } catch let error as ControlError where error.code == .notFound {
            // Somebody deleted it already.
        }
    }

    private func document(
        _ image: CopySource, _ target: String, base: String?, _ copier: ImageCopier,
        _ changes: RangeSpool?, _ notes: [String], _ begun: ContinuousClock.Instant
    ) -> CopyDocument {
        let isNothing = copier.plan == .nothing
        let work = copier.work
        return CopyDocument(
            device: image.device, snapshot: image.cut.snapshot, target: target,
            full: base == nil, since: base, generation: image.cut.generation,
            epoch: image.cut.epoch, size: image.cut.size,
            ranges: isNothing ? 0 : Int(changes?.count ?? 1),
            changedBytes: isNothing ? 0 : work.byteCount,
            transferredBytes: work.readByteCount.load(ordering: .relaxed),
            writtenBytes: work.writtenByteCount.load(ordering: .relaxed),
            zeroedBytes: work.zeroedByteCount.load(ordering: .relaxed), already: isNothing,
            notes: notes,
            seconds: (ContinuousClock.now - begun) / .seconds(1))
    }

    private func stream(_ image: CopySource, to target: String) async throws -> CopyDocument {
        let begun = ContinuousClock.now
        var changes: RangeSpool?
        if let since { changes = try await image.changes(since: since).ranges }
        let name = checkpoint ?? image.cut.snapshot
        let work = try await StreamRun(
            image: image, format: format == .raw ? .raw : .difference(from: since, to: name),
            changes: changes
        ).perform(to: target)
        return CopyDocument(
            device: image.device, snapshot: image.cut.snapshot, target: target,
            full: since == nil, since: since, generation: image.cut.generation,
            epoch: image.cut.epoch, size: image.cut.size, ranges: Int(changes?.count ?? 1),
            changedBytes: work.byteCount,
            transferredBytes: work.readByteCount.load(ordering: .relaxed),
            writtenBytes: work.writtenByteCount.load(ordering: .relaxed),
            zeroedBytes: work.zeroedByteCount.load(ordering: .relaxed), already: false, notes: [],
            seconds: (ContinuousClock.now - begun) / .seconds(1))
    }

    // MARK: Output

    private func show(_ documents: [CopyDocument]) throws {
        if targetIsStream {
            // Standard output is the stream's.
            for document in documents { FileHandles.error.write("stillpoint: " + document.text) }
            return
        }
        if to == nil, let document = documents.first {
            return try options.show(document) { document.text }
        }
        try options.show(documents) { documents.map(\.text).joined() }
    }
}

/// What a stream is made of.
enum StreamKind: String, CaseIterable, ExpressibleByArgument { case raw, diff }

/// DEVICE, or DEVICE@SNAPSHOT.
struct CopyImageName: Sendable {
    let device: String
    let snapshot: String?

    init(_ text: String) throws(ControlError) {
        let parts = text.split(separator: "@", maxSplits: 1, omittingEmptySubsequences: false)
        guard ObjectName(String(parts[0])) != nil, parts.count == 1 || !parts[1].isEmpty,
            parts.count == 1 || !parts[1].contains(":")
        else {
            throw ControlError(
                .invalid,
                "\"\(text)\" names neither a device nor an image: give DEVICE, or DEVICE@SNAPSHOT "
                    + "such as vm1@monday")
        }
        device = String(parts[0])
        snapshot = parts.count == 2 ? String(parts[1]) : nil
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
    /// The target equalled the cut already.
    var already: Bool
    /// What the user should know of how it was done.
    var notes: [String]
    var seconds: Double
    /// Of a live device: passes after the first copy, and how its freeze went.
    var passes: Int?
    var consistency: String?
    var frozenMilliseconds: UInt64?

    /// For people.
    var text: String {
        let image = "\(device)@\(snapshot)"
        if already { return "\(target) equals \(image) already\n" }
        let what =
            full ? "all \(sizeText(size))" : "\(sizeText(changedBytes)) in \(ranges) range(s)"
        let rate = Double(transferredBytes) / max(seconds, 0.001)
        let frozen = frozenMilliseconds.map {
            ", frozen \($0) ms after \(passes ?? 0) pass(es), \(consistency ?? "crash")-consistent"
        }
        return "copied \(image) to \(target): \(what), "
            + "\(sizeText(transferredBytes)) transferred, \(sizeText(UInt64(rate)))/s"
            + (frozen ?? "") + "\n"
    }
}

extension CopyDocument {
    /// Of a target whose record says that it equals the cut already.
    init(alreadyEqual record: CopyRecord, target: String, seconds: Double) {
        self.init(
            device: record.device, snapshot: record.equals?.snapshot ?? "", target: target,
            full: false, since: nil, generation: record.equals?.generation ?? "",
            epoch: record.equals?.epoch ?? 0, size: record.equals?.size ?? 0, ranges: 0,
            changedBytes: 0, transferredBytes: 0, writtenBytes: 0, zeroedBytes: 0, already: true,
            notes: [], seconds: seconds)
    }
}
