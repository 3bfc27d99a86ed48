internal import BlockModel
internal import ClientCommands
internal import ClientSupport
internal import ControlDocuments
internal import CopyPlanning
internal import ImageCopy
internal import NBDAccess
internal import RingIO
internal import Synchronization

/// One live device and its target, on their way through the passes of a copy.
final class LiveCopyPart {
    let device: String
    let target: String
    private(set) var copier: ImageCopier?
    private var base: String?
    private var resumed: (name: String, cut: CopyCut)?
    /// The cut that what changes is asked since, and the newest one.
    private var since: (name: String, cut: CopyCut)?
    private var newest: (name: String, cut: CopyCut)?
    private var ranges: [ByteRange] = []
    private var works: [CopyWork] = []
    private var firstRangeCount = 0
    private var held: HeldBlocks?
    private var edges: [EdgeLook] = []
    private var notes: [String] = []

    /// Connections, one thread each.
    private static let workerCount = 4
    /// Fewer bytes are read over one connection.
    private static let manyByteCount: UInt64 = 1 << 20
    private static let progressInterval = Duration.seconds(5)

    init(device: String, target: String, found: InterruptedCopies.Part?) {
        self.device = device
        self.target = target
        base = found?.base
        resumed = found?.resumed
        since = resumed
    }

    /// An interrupted copy continues, from the cut that its record names.
    var isResumed: Bool { resumed != nil }
    var foundByteCount: UInt64 { ranges.reduce(0) { $0 + $1.length } }

    /// A cut of a pass was made.
    func cutMade(_ cut: CopyCut, isFirst: Bool) {
        newest = (cut.snapshot, cut)
        if isFirst { since = newest }
    }

    // MARK: First copy

    /// Opens the target, and copies all, or what changed since the base; returns how many bytes.
    func copyFirst(
        _ request: LiveCopyRequest, _ status: StatusDocument, _ client: ControlClient
    ) async throws -> UInt64 {
        do {
            return try await copyFirst(since: base, request, status, client)
        } catch let error as ControlError
            where error.code == .generationUnknown && request.isAutomatic && base != nil
        {
            notes.append("\(error.message): everything is copied, beside what is there")
            base = nil
            return try await copyFirst(since: nil, request, status, client)
        }
    }

    private func copyFirst(
        since base: String?, _ request: LiveCopyRequest, _ status: StatusDocument,
        _ client: ControlClient
    ) async throws -> UInt64 {
        guard let first = since?.cut else { preconditionFailure("a copy begins at a cut") }
        var known: CopyRequest.Base?
        var changes: [ByteRange]?
        if let base {
            let (epoch, found) = try await changed(since: base, until: first, client)
            known = CopyRequest.Base(name: base, generation: first.generation, epoch: epoch)
            changes = found
        }
        let copyRequest = CopyRequest(
            device: device, cut: first, snapshot: request.checkpoint, since: known,
            isForced: request.isForced, mayReplace: request.isAutomatic || request.keep != nil)
        var options = CopySource.options(
            status, record: try request.record.map { try Defaults.absolute($0) })
        options.keep = request.keep
        options.isNameOwned = request.isNameOwned
        let copyOptions = options
        let ranges = try changes.map { try RangeSpool($0) }
        let (device, target) = (device, target)
        let copier = try await SharedWork.run { () throws(CopyError) in
            let workers: [CopyWorker]
            switch Self.connect(device, status) {
            case .success(let made): workers = made
            case .failure(let error):
                throw CopyError(
                    .unreadable,
                    "device \(device) cannot be read over NBD (\(error)); see where "
                        + "the service listens with `stillpoint status`")
            }
            return try ImageCopier(
                copyRequest, target: target, changes: ranges, options: copyOptions,
                workers: workers)
        }
        precondition(copier.plan != .nothing, "no target equals a cut that was just made")
        notes += try await SharedWork.run { () throws(CopyError) in try copier.begin() }
        notes += copier.notes
        self.copier = copier
        works = [copier.work]
        firstRangeCount = changes?.count ?? 1
        try await copyAll(copier)
        return copier.work.byteCount
    }

    private static func connect(
        _ device: String, _ status: StatusDocument
    ) -> Result<[CopyWorker], NBDAccessError> {
        var failure = NBDAccessError.refused("the service serves no NBD")
        for address in CopySource.addresses(status) {
            do throws(NBDAccessError) {
                var workers: [CopyWorker] = []
                for _ in 0..<workerCount {
                    workers.append(try CopyWorker(address, export: device))
                }
                return .success(workers)
            } catch { failure = error }
        }
        return .failure(failure)
    }

    private func copyAll(_ copier: ImageCopier) async throws {
        let label = "copy \(device)"
        do {
            try await withThrowingTaskGroup(of: Void.self) { group in
                group.addTask {
                    // Cancelled when the work is done.
                    while (try? await Task.sleep(for: Self.progressInterval)) != nil {
                        try await SharedWork.run { () throws(CopyError) in
                            try copier.recordProgress()
                        }
                    }
                }
                try await SharedWork.perform(
                    label, copier.work, threads: copier.workerCount,
                    interrupted: Self.wayOut
                ) { copier.copy($0) }
                group.cancelAll()
                try await group.waitForAll()
            }
        } catch {
            // Why it failed is the news, not whether this can be recorded as well.
            try? copier.recordFailure()
            throw error
        }
    }

    private static let wayOut = "the same command again finishes the copy"

    // MARK: Passes

    /// What changed since a cut, as of now, when `until` is the newest cut; and that cut's epoch.
    private func changed(
        since name: String, until cut: CopyCut, _ client: ControlClient
    ) async throws -> (epoch: UInt32, ranges: [ByteRange]) {
        let changes = try await ChangesReader(
            client: client, device: device, since: name, until: nil
        ).read()
        let document = changes.document
        guard let since = document.since, document.generation == cut.generation,
            document.until.epoch > cut.epoch, since.epoch <= cut.epoch
        else {
            throw ControlError(
                .generationUnknown,
                "device \(device) began a new tracking history while it was copied; make a full "
                    + "copy")
        }
        guard document.size == cut.size else { throw changedSize(document.size) }
        var ranges: [ByteRange] = []
        try changes.ranges.forEach { range in
            guard range.end <= cut.size else {
                throw ControlError(
                    .failed, "the service names changes beyond the end of \(device)")
            }
            ranges.append(range)
        }
        return (since.epoch, ranges)
    }

    private func changedSize(_ size: UInt64) -> ControlError {
        ControlError(
            .busy,
            "device \(device) has \(size) bytes now, another size than when its copy began; run the "
                + "same command again")
    }

    /// Finds what changed since the cut before; from the next time on, since the newest.
    func find(_ client: ControlClient) async throws {
        guard let since, let newest else { preconditionFailure("a pass has two cuts") }
        let (epoch, found) = try await changed(since: since.name, until: newest.cut, client)
        // Somebody may have deleted the checkpoint and made another one of its name.
        guard epoch == since.cut.epoch, since.cut.generation == newest.cut.generation else {
            throw ControlError(
                .busy,
                "checkpoint \(since.name), which the copy of device \(device) made for itself, is "
                    + "another one now; run the same command again")
        }
        ranges = found
        self.since = newest
    }

    /// Reads what was found into the target, or into memory as far as `holding` bytes go, and then into
    /// `spill`. Without a label nothing is shown.
    func read(
        label: String?, holding byteCountMax: Int?, spill: SpillFile? = nil
    ) async throws {
        guard let copier else { preconditionFailure("passes follow the first copy") }
        let work = CopyWork(try RangeSpool(ranges))
        let blocks = byteCountMax.map { copier.heldBlocks(byteCountMax: $0, spill: spill) }
        held = blocks
        works.append(work)
        let count = work.byteCount < Self.manyByteCount ? 1 : copier.workerCount
        guard work.byteCount > 0 else { return }
        guard let label else {
            return try await Self.silently(work, count) {
                copier.copy(work, worker: $0, into: blocks)
            }
        }
        try await SharedWork.perform(label, work, threads: count, interrupted: Self.wayOut) {
            copier.copy(work, worker: $0, into: blocks)
        }
    }

    private static func silently(
        _ work: CopyWork, _ count: Int, _ body: @escaping @Sendable (Int) -> Void
    ) async throws {
        let interruption = Interruption.whenAsked {
            work.failed(CopyError(.interrupted, "interrupted; \(wayOut)"))
        }
        defer { interruption.withdraw() }
        await withTaskGroup(of: Void.self) { group in
            for index in 0..<count {
                group.addTask {
                    do {
                        try await SharedWork.run { () throws(CopyError) in body(index) }
                    } catch { work.failed(CopyError(.failed, "\(error)")) }
                }
            }
        }
        do throws(CopyError) { try work.check() } catch { throw ControlError(error) }
    }

    /// Writes what was read into memory.
    func writeHeld() async throws {
        guard let blocks = held else { return }
        held = nil
        try await SharedWork.run { () throws(CopyError) in try blocks.flush() }
    }

    /// Makes durable what was written, and records it.
    func record() async throws {
        guard let copier, let newest else { preconditionFailure("passes follow the first copy") }
        try await SharedWork.run { () throws(CopyError) in try copier.recordPass(newest.cut) }
    }

    // MARK: The last cut

    /// The last cut must be of the generation and the size that the passes were of.
    func check(_ cut: CopyCut) throws {
        edges = []
        guard let newest, cut.generation == newest.cut.generation else {
            throw ControlError(
                .generationUnknown,
                "device \(device) began a new tracking history while it was copied; make a full "
                    + "copy")
        }
        guard cut.size == newest.cut.size else { throw changedSize(cut.size) }
    }

    /// Reads both ends of the device. A mark there may stand for sectors of a neighbour too, so the
    /// service cannot tell by it whether somebody wrote.
    func lookAtEdges() async throws {
        guard let copier, let newest else { preconditionFailure("passes follow the first copy") }
        let look = EdgeLook()
        let work = CopyWork(try RangeSpool(EdgeLook.ranges(size: newest.cut.size)))
        try await SharedWork.run { () throws(CopyError) in
            copier.look(work, worker: 0, at: look)
            try work.check()
        }
        edges.append(look)
    }

    /// Both ends were the same each time.
    var hasSameEdges: Bool { edges.allSatisfy { $0 == edges.first } }

    /// Records that the target equals the last cut.
    func complete(_ cut: CopyCut) async throws {
        guard let copier else { preconditionFailure("passes follow the first copy") }
        let hasWritten = works.contains { $0.writtenByteCount.load(ordering: .relaxed) > 0 }
        try await SharedWork.run { () throws(CopyError) in
            try copier.finish(as: cut, hasWrittenMore: hasWritten)
        }
        newest = (cut.snapshot, cut)
    }

    /// The result.
    func document(seconds: Double) -> CopyDocument {
        guard let copier, let newest else { preconditionFailure("passes follow the first copy") }
        func total(_ count: (CopyWork) -> UInt64) -> UInt64 { works.reduce(0) { $0 + count($1) } }
        return CopyDocument(
            device: device, snapshot: newest.cut.snapshot, target: target, full: copier.isFull,
            since: base, generation: newest.cut.generation, epoch: newest.cut.epoch,
            size: newest.cut.size, ranges: firstRangeCount,
            changedBytes: copier.work.byteCount,
            transferredBytes: total { $0.readByteCount.load(ordering: .relaxed) },
            writtenBytes: total { $0.writtenByteCount.load(ordering: .relaxed) },
            zeroedBytes: total { $0.zeroedByteCount.load(ordering: .relaxed) }, already: false,
            notes: notes, seconds: seconds)
    }
}
