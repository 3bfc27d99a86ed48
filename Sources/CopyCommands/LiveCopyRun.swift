internal import BlockModel
internal import ClientSupport
internal import ControlDocuments
internal import CopyPlanning
internal import Glibc
internal import ImageCopy
internal import NBDAccess
internal import RingIO
internal import WriterLimits

// Copies of live devices, which have no images: the targets are brought forward in passes until
// they equal the devices at a moment at which filesystems are frozen. `LiveCopyMachine` decides.
//
// Invariants
// - From the freeze to its release nothing is written, to files, records or a terminal: it may lie
//   on a filesystem that is frozen.
// - Cuts of passes are checkpoints whose names no other copy chooses; an answer about changes must
//   name the very cut that was meant.
// - Whatever fails, a hold is given up and the records say how far the targets are.

/// What a copy of live devices is to be.
struct LiveCopyRequest {
    var devices: [String]
    var targets: [String]
    var since: String?
    /// Name of the last cut.
    var checkpoint: String
    /// The name was made for this copy alone.
    var isNameOwned: Bool
    var keep: String?
    var record: String?
    var isForced: Bool
    var limits: LiveCopyMachine.Limits
    /// Bytes a second that may be written to each device's disk when it is written to too fast.
    var writeLimit: UInt64?

    /// The base is chosen by what the target equals.
    var isAutomatic: Bool { since == "auto" }
}

/// The performance of a copy of live devices; see the head of this file.
final class LiveCopyRun {
    private let client: ControlClient
    private let request: LiveCopyRequest
    private let status: StatusDocument
    private let begun = ContinuousClock.now
    private let cuts: LiveCopyCuts
    private var parts: [LiveCopyPart] = []
    private var isHolding = false
    private var heldCuts: [CopyCut] = []
    private var released: CheckpointDocument?
    private var slowed: SlowedWriters?
    /// Of the last pass, beyond what stays in memory; nil when every place for it would be frozen.
    private var spill: SpillFile?
    private var wasLimited = false

    /// Bytes that stay in memory while filesystems are frozen, and in a pass.
    private static let memoryByteCountMax = 256 << 20

    init(_ request: LiveCopyRequest, _ status: StatusDocument, _ client: ControlClient) {
        self.request = request
        self.status = status
        self.client = client
        cuts = LiveCopyCuts(request.checkpoint, client)
    }

    /// Copies.
    func perform() async throws -> [CopyDocument] {
        let found = try await InterruptedCopies.find(request, status, client)
        if let documents = try await finished(found) { return documents }
        try await found.freeName(request.checkpoint, client)
        try prepareLimit()
        // Before anything is frozen: nothing is made on a filesystem that is.
        spill = SpillFile(
            in: status.stateDirectory,
            notOn: status.devices.filter { request.devices.contains($0.name) }.map(\.path))
        var machine = LiveCopyMachine(request.limits)
        do {
            try await perform(&machine, found)
        } catch {
            slowed = nil
            if isHolding { await cuts.abandon() }
            // What a record names is what the next run continues from.
            let isFull = parts.contains { $0.copier?.isFull ?? false }
            await cuts.forget(but: isFull ? cuts.recorded : nil)
            throw error
        }
        try await forget(found.unneededNames(besidePassesOf: cuts.token, client))
        if request.keep == nil { try await forget(found.ownedNames) }
        // Last: by these cuts the same command knows that this one was killed before its end.
        await cuts.forget(but: nil)
        return parts.map { document(of: $0, machine) }
    }

    private func perform(
        _ machine: inout LiveCopyMachine, _ found: InterruptedCopies
    ) async throws {
        for (device, target) in zip(request.devices, request.targets) {
            parts.append(LiveCopyPart(device: device, target: target, found: found.parts[device]))
        }
        var effect = machine.begun(isResumed: parts.allSatisfy { $0.isResumed })
        while true {
            switch effect {
            case .cut:
                try await cut()
                effect = machine.cutMade()
            case .copyFirst:
                let start = ContinuousClock.now
                let byteCount = try await copyFirst()
                effect = machine.firstCopied(byteCount: byteCount, seconds: start.elapsedSeconds)
            case .copyChanges:
                effect = machine.changesCopied(try await copyChanges(machine.passCount))
                if let estimate = machine.estimate { report(machine.passCount, estimate) }
            case .record:
                for part in parts { try await part.record() }
                cuts.wereRecorded()
                effect = machine.recorded()
            case .forgetFormer:
                await cuts.forget(but: cuts.recorded)
                effect = machine.formerForgotten()
            case .limitWriters:
                try slowed?.set()
                wasLimited = true
                effect = machine.writersLimited()
            case .liftLimit:
                try slowed?.lift()
                effect = machine.limitLifted()
            case .freeze(let milliseconds):
                let isHeld = try await freeze(milliseconds)
                effect = isHeld ? machine.frozen() : machine.holdEnded(.tooSlow)
            case .readFrozen:
                try await readFrozen()
                effect = machine.frozenRead()
            case .release: effect = machine.holdEnded(try await release())
            case .writeHeld:
                for part in parts { try await part.writeHeld() }
                effect = machine.heldWritten()
            case .complete:
                for (part, cut) in zip(parts, heldCuts) { try await part.complete(cut) }
                effect = machine.completed()
            case .finished: return
            case .giveUp(let obstacle): throw Self.error(obstacle, request)
            }
        }
    }

    // MARK: Steps

    private func prepareLimit() throws {
        guard let bytesPerSecond = request.writeLimit else { return }
        let disks = try request.devices.map { device in
            guard let path = status.devices.first(where: { $0.name == device })?.path,
                let disk = WriterLimits.disk(ofDevice: path)
            else {
                throw ControlError(.failed, "the disk of device \(device) was not found")
            }
            return disk
        }
        slowed = try SlowedWriters(
            disks: Set(disks).sorted(), bytesPerSecond: bytesPerSecond)
    }

    /// Every part gets the cut, but one that continues from an older one.
    private func cut() async throws {
        let isFirst = cuts.isEmpty && !parts.allSatisfy(\.isResumed)
        let named = parts.filter { !isFirst || !$0.isResumed }
        let cut = try await cuts.make(named.map(\.device))
        for part in named { part.cutMade(try cut.part(of: part.device), isFirst: isFirst) }
        if isFirst { cuts.wereRecorded() }
    }

    private func copyFirst() async throws -> UInt64 {
        var byteCount: UInt64 = 0
        for part in parts {
            byteCount += try await part.copyFirst(request, status, client)
        }
        return byteCount
    }

    private func copyChanges(_ number: Int) async throws -> LiveCopyMachine.Pass {
        let start = ContinuousClock.now
        for part in parts { try await part.find(client) }
        let asked = start.elapsedSeconds
        let byteCount = parts.reduce(0) { $0 + $1.foundByteCount }
        let isHeld = byteCount <= UInt64(Self.memoryByteCountMax)
        for part in parts {
            try await part.read(
                label: "copy \(part.device), pass \(number)",
                holding: isHeld ? Self.memoryByteCountMax : nil)
        }
        let read = start.elapsedSeconds - asked
        for part in parts { try await part.writeHeld() }
        return LiveCopyMachine.Pass(
            byteCount: byteCount, secondsSinceFormer: cuts.secondsBetweenNewest,
            seconds: cuts.secondsSinceNewest, askSeconds: asked, readSeconds: read)
    }

    private func freeze(_ milliseconds: UInt64) async throws -> Bool {
        isHolding = true
        do {
            heldCuts = try await cuts.hold(request.devices, milliseconds: milliseconds)
        } catch let error as ControlError where error.code == .busy && !error.isNameTaken {
            isHolding = false
            return false
        }
        for (part, cut) in zip(parts, heldCuts) { try part.check(cut) }
        return true
    }

    private func readFrozen() async throws {
        let share = Self.memoryByteCountMax / parts.count
        for part in parts { try await part.lookAtEdges() }
        for part in parts {
            try await part.find(client)
            try await part.read(label: nil, holding: share, spill: spill)
        }
        for part in parts { try await part.lookAtEdges() }
    }

    private func release() async throws -> LiveCopyMachine.HoldOutcome {
        if let part = parts.first(where: { !$0.hasSameEdges }) {
            await cuts.abandon()
            isHolding = false
            return .writtenBeside(
                "live device \(part.device) was written to beside its filesystem while that was "
                    + "frozen: its first or last blocks changed")
        }
        isHolding = false
        do {
            released = try await cuts.release()
            return .kept
        } catch let error as ControlError where error.code == .busy || error.code == .notFound {
            return error.details.isEmpty ? .tooSlow : .writtenBeside(error.message)
        }
    }

    private func forget(_ names: [String]) async throws {
        for name in names { try await LiveCopyCuts.delete(name, client) }
    }

    // MARK: Words

    private func report(_ number: Int, _ estimate: LiveCopyEstimate) {
        guard FileHandles.error.columns != nil else { return }
        FileHandles.error.write(
            "pass \(number): \(sizeText(estimate.byteCount)) expected to be left, a freeze of "
                + "\(Self.text(seconds: estimate.seconds))\n")
    }

    private static func text(seconds: Double) -> String {
        seconds < 10 ? "\(Int((seconds * 1000).rounded())) ms" : "\(Int(seconds.rounded())) s"
    }

    private static func error(_ obstacle: LiveCopyObstacle, _ request: LiveCopyRequest)
        -> ControlError
    {
        let what = request.devices.joined(separator: ", ")
        switch obstacle {
        case .tooLong(let estimate, let passCount):
            return ControlError(
                .busy,
                "the copy of \(what) was not finished: after \(passCount) passes "
                    + "\(sizeText(estimate.byteCount)) are left, for which filesystems would be "
                    + "frozen \(text(seconds: estimate.seconds)) (limit "
                    + "\(text(seconds: request.limits.freezeSeconds))); allow more with --freeze-limit, "
                    + "slow writers down\(request.writeLimit == nil ? "" : " further") with "
                    + "--throttle-writers, or run the same command when less is written")
        case .notHeld(.writtenBeside(let message), let count):
            return ControlError(
                .busy, "the copy of \(what) was not finished after \(count) freezes: \(message)")
        case .notHeld(_, let count):
            return ControlError(
                .busy,
                "the copy of \(what) was not finished: \(count) freezes took too long and were "
                    + "called off; allow more with --freeze-limit, or run the same command when less "
                    + "is written")
        }
    }

    /// The copy was made by a run that was killed before it could say so.
    private func finished(_ found: InterruptedCopies) async throws -> [CopyDocument]? {
        guard let records = found.finishedRecords(request) else { return nil }
        try await forget(found.unneededNames(besidePassesOf: nil, client))
        return zip(request.targets, records).map { target, record in
            CopyDocument(alreadyEqual: record, target: target, seconds: begun.elapsedSeconds)
        }
    }

    private func document(of part: LiveCopyPart, _ machine: LiveCopyMachine) -> CopyDocument {
        var document = part.document(seconds: begun.elapsedSeconds)
        document.passes = machine.passCount
        document.consistency = released?.consistency
        if wasLimited, let limit = request.writeLimit {
            document.notes.append(
                "passes did not get shorter: writers were limited to \(sizeText(limit)) a second until the "
                    + "freeze")
        }
        document.frozenMilliseconds = (released?.freezeMicroseconds).map { $0 / 1000 }
        for error in released?.freezeErrors ?? [] { document.notes.append("not frozen: \(error)") }
        for note in document.notes { FileHandles.error.write("stillpoint: \(note)\n") }
        return document
    }
}

extension ContinuousClock.Instant {
    /// Seconds since then.
    var elapsedSeconds: Double { (ContinuousClock.now - self) / .seconds(1) }
}

extension ControlError {
    /// The name is somebody else's.
    var isNameTaken: Bool { reason == .nameTaken }
}
