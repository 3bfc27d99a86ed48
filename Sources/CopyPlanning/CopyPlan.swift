package import BlockModel

// What is to be done with a target, decided from what its record says, what it looks like and
// what is wanted. No I/O.
//
// Invariants
// - An increment begins only at a target whose every block that differs from the wanted image lies
//   in the changes since the base: it equals the base or a cut between the base and the wanted one,
//   or was interrupted on its way between two such cuts. (Killed just after its last write, a copy
//   is complete though nobody was told so: the same base with a newer snapshot must continue.)
// - Without force nothing is overwritten but what is left of a copy of the same device. A complete
//   copy of another cut is a version that somebody keeps: where it may be replaced, a file is
//   written beside it first.
// - What cannot be told for certain of a block device counts as different.

/// What is to be done; see the head of this file.
package enum CopyPlan: Equatable, Sendable {
    /// The target equals the cut already.
    case nothing
    /// Everything is copied.
    case full(Full)
    /// What changed since the base is copied into what equals `from`, or lies on the way from it.
    case increment(from: CopyCut)

    /// How everything is copied.
    package struct Full: Equatable, Sendable {
        /// What is not written reads as zero.
        package var isFresh = false
        /// What an interrupted copy of the same cut has copied.
        package var done: [ByteRange] = []
        /// The target is a complete copy: the new one is made beside it and takes its place in
        /// the end.
        package var isBeside = false

        package init(isFresh: Bool = false, done: [ByteRange] = [], isBeside: Bool = false) {
            self.isFresh = isFresh
            self.done = done
            self.isBeside = isBeside
        }
    }

    /// Decides.
    package init(
        _ request: CopyRequest, _ target: CopyTargetFacts, _ found: CopyRecordFound
    ) throws(CopyError) {
        if !target.canGrow, target.file.size < request.cut.size {
            throw CopyError(
                .unsuitable,
                "target \(target.path) has \(target.file.size) bytes, the image "
                    + "\(request.cut.size); name a larger device")
        }
        self =
            request.since == nil
            ? try Self.whole(request, target, found) : try Self.increment(request, target, found)
    }

    // MARK: Everything

    private static func whole(
        _ request: CopyRequest, _ target: CopyTargetFacts, _ found: CopyRecordFound
    ) throws(CopyError) -> CopyPlan {
        if target.isEmpty { return .full(Full(isFresh: true)) }
        if request.isForced {
            guard case .record(let record) = found else { return .full(Full()) }
            return .full(
                Full(isBeside: record.state == .complete && !target.file.isBlockDevice))
        }
        switch found {
        case .record(let record): return try over(record, request, target)
        case .none, .damaged:
            if let refusal = noCopy(target, found) { throw refusal }
            return .full(Full())
        }
    }

    private static let wayOut = "name another target, or overwrite it with --force"

    /// A target without a record; nil for a block device that holds nothing.
    private static func noCopy(
        _ target: CopyTargetFacts, _ found: CopyRecordFound
    ) -> CopyError? {
        if found == .damaged {
            return CopyError(
                .busy,
                "\(target.recordPath) is damaged or not the record of a copy, so \(target.path) may be "
                    + "anything; \(wayOut)")
        }
        if target.file.isBlockDevice, target.content == nil { return nil }
        let what = target.content.map { "holds \($0)" } ?? "exists and has no record of a copy"
        return CopyError(.busy, "target \(target.path) \(what); \(wayOut)")
    }

    /// What may be done to a target that has a record.
    private static func over(
        _ record: CopyRecord, _ request: CopyRequest, _ target: CopyTargetFacts
    ) throws(CopyError) -> CopyPlan {
        guard record.device == request.device else {
            throw CopyError(
                .busy,
                "target \(target.path) is a copy of device \(record.device), not of "
                    + "\(request.device); \(wayOut)")
        }
        // Somebody wrote to the copy: it is still one. Another file is in its place: it is not.
        guard isSameTarget(record, target) else {
            throw CopyError(
                .busy,
                "target \(target.path) is another file or disk than the copy that its record "
                    + "describes; \(wayOut)")
        }
        switch record.state {
        case .running: return .full(resumption(record, request, target))
        case .complete:
            guard let equals = record.equals else {
                preconditionFailure("a complete record names the cut the target equals")
            }
            let isUnchanged = isUnchanged(record, target)
            if isUnchanged, equals.isSameMoment(as: request.cut) { return .nothing }
            // There is no place beside a block device.
            guard request.mayReplace, !target.file.isBlockDevice || target.keepsVersions else {
                throw CopyError(
                    .busy,
                    "target \(target.path) is a complete copy of \(record.device)@"
                        + "\(equals.snapshot)\(isUnchanged ? "" : ", changed since"); "
                        + waysOn(from: equals, target))
            }
            return .full(Full(isBeside: !target.file.isBlockDevice))
        }
    }

    /// What can be done with a complete copy.
    private static func waysOn(from equals: CopyCut, _ target: CopyTargetFacts) -> String {
        if target.path.hasSuffix(CopyRequest.qcowSuffix) {
            return "name a new file, and this one with --onto, or replace it with --force"
        }
        return "bring it forward with --since \(equals.snapshot), "
            + (target.file.isBlockDevice ? "" : "keep it as a version with --keep NAME, ")
            + "or replace it with --force"
    }

    /// A full copy that was interrupted continues where it was when it is of the same cut.
    private static func resumption(
        _ record: CopyRecord, _ request: CopyRequest, _ target: CopyTargetFacts
    ) -> Full {
        guard record.from == nil, record.to?.isSameMoment(as: request.cut) == true,
            target.samplesMatch != false, isAsLeft(record, target),
            target.file.isBlockDevice || target.file.size == request.cut.size
        else { return Full() }
        let done = (record.done ?? []).compactMap {
            ByteRange(checking: $0.offset, length: $0.length, within: request.cut.size)
        }
        // A block device that cannot be proved unchanged is copied again.
        if target.file.isBlockDevice, !done.isEmpty, target.samplesMatch != true { return Full() }
        return Full(isFresh: record.isFresh == true && !target.file.isBlockDevice, done: done)
    }

    /// A copy that was interrupted in order left a file that nobody wrote to since. Of one that was
    /// killed the time of the last change tells nothing, only samples do.
    private static func isAsLeft(_ record: CopyRecord, _ target: CopyTargetFacts) -> Bool {
        target.file.isBlockDevice || record.isSettled != true
            || record.target.changedNanoseconds == target.file.changedNanoseconds
    }

    /// Why a full copy that was interrupted does not continue where it was; nil when it does, or
    /// none was.
    package static func whyAnew(
        _ request: CopyRequest, _ target: CopyTargetFacts, _ found: CopyRecordFound
    ) -> String? {
        guard case .record(let record) = found, record.state == .running, record.from == nil,
            let to = record.to, request.since == nil, !(record.done ?? []).isEmpty
        else { return nil }
        if !to.isSameMoment(as: request.cut) {
            return "\(target.path) was interrupted as a copy of \(record.device)@\(to.snapshot); a "
                + "copy of another cut starts over"
        }
        if resumption(record, request, target).done.isEmpty {
            return "\(target.path) is not as the interrupted copy left it; the copy starts over"
        }
        return nil
    }

    // MARK: The same target

    /// It is the file or disk that the record describes, whatever it holds now.
    private static func isSameTarget(_ record: CopyRecord, _ target: CopyTargetFacts) -> Bool {
        guard record.target.isBlockDevice == target.file.isBlockDevice else { return false }
        if target.file.isBlockDevice {
            guard let now = target.file.disk, let former = record.target.disk else { return false }
            return now.verdict(since: former) != .another
        }
        return record.target.inode == target.file.inode || isUnchanged(record, target)
    }

    /// Nobody wrote to it since the record was made.
    private static func isUnchanged(_ record: CopyRecord, _ target: CopyTargetFacts) -> Bool {
        guard record.target.isBlockDevice == target.file.isBlockDevice,
            record.target.size == target.file.size
        else { return false }
        guard target.file.isBlockDevice else {
            return record.target.changedNanoseconds == target.file.changedNanoseconds
        }
        guard let now = target.file.disk, let former = record.target.disk else { return false }
        switch now.verdict(since: former) {
        case .another, .written: return false
        case .unwritten: return true
        case .unknown: return target.samplesMatch == true
        }
    }

    // MARK: Increment

    private static func unfit(_ text: String, wayOut: String? = nil) -> CopyError {
        let first = wayOut.map { "\($0), or " } ?? ""
        return CopyError(
            .unfit,
            "\(text); \(first)make a full copy (without --since; --force replaces a complete one)")
    }

    private static func increment(
        _ request: CopyRequest, _ target: CopyTargetFacts, _ found: CopyRecordFound
    ) throws(CopyError) -> CopyPlan {
        let record: CopyRecord
        switch found {
        case .none:
            throw unfit(
                target.file.isBlockDevice
                    ? "no record says which cut the disk \(target.path) equals "
                        + "(\(target.recordPath) would)"
                    : "target \(target.path) has no record \(target.recordPath) that says which "
                        + "cut it equals")
        case .damaged:
            throw unfit("\(target.recordPath) is damaged")
        case .record(let found): record = found
        }
        guard record.device == request.device else {
            throw unfit(
                "target \(target.path) is a copy of device \(record.device), not of "
                    + request.device)
        }
        guard record.target.isBlockDevice == target.file.isBlockDevice,
            !target.file.isBlockDevice || isSameTarget(record, target)
        else { throw unfit("target \(target.path) is not the copy that its record describes") }
        switch record.state {
        case .complete: return try fromComplete(record, request, target)
        case .running: return try fromRunning(record, request, target)
        }
    }

    private static func fromComplete(
        _ record: CopyRecord, _ request: CopyRequest, _ target: CopyTargetFacts
    ) throws(CopyError) -> CopyPlan {
        guard let equals = record.equals, let since = request.since else {
            preconditionFailure("a complete record names the cut the target equals")
        }
        guard isUnchanged(record, target) else {
            throw unfit(
                target.file.isBlockDevice
                    ? "target \(target.path) was written to since it was copied, or nothing "
                        + "proves that it was not"
                    : "target \(target.path) was changed since it was copied")
        }
        if equals.isSameMoment(as: request.cut) { return .nothing }
        guard equals.generation == since.generation else {
            throw unfit(
                "target \(target.path) equals a cut of another history of device \(request.device)")
        }
        guard equals.epoch <= request.cut.epoch else {
            throw unfit(
                "target \(target.path) equals the cut of \(equals.snapshot) (epoch "
                    + "\(equals.epoch)), which is later than that of \(request.snapshot)",
                wayOut: "name a newer snapshot")
        }
        guard since.epoch <= equals.epoch else {
            throw unfit(
                "target \(target.path) equals the cut of \(equals.snapshot) (epoch "
                    + "\(equals.epoch)), not that of \(since.name) (epoch \(since.epoch))",
                wayOut: "name the cut it equals with --since")
        }
        return .increment(from: equals)
    }

    private static func fromRunning(
        _ record: CopyRecord, _ request: CopyRequest, _ target: CopyTargetFacts
    ) throws(CopyError) -> CopyPlan {
        guard let to = record.to, let since = request.since else {
            preconditionFailure("a running record names the cut it leads to")
        }
        guard let from = record.from else {
            throw unfit("target \(target.path) is a full copy that was interrupted")
        }
        guard from.generation == since.generation, to.generation == request.cut.generation else {
            throw unfit(
                "target \(target.path) was interrupted in another history of device "
                    + request.device)
        }
        guard since.epoch <= from.epoch else {
            throw unfit(
                "target \(target.path) was interrupted on its way from the cut of "
                    + "\(from.snapshot) (epoch \(from.epoch)) to that of \(to.snapshot)",
                wayOut: "finish it with --since \(from.snapshot)")
        }
        // Blocks of the later cut are there already, and changes until an earlier one lack them.
        guard to.epoch <= request.cut.epoch else {
            throw unfit(
                "target \(target.path) was interrupted on its way to the cut of \(to.snapshot) "
                    + "(epoch \(to.epoch)), which is later than that of \(request.snapshot)",
                wayOut: "finish it with that snapshot or a newer one")
        }
        guard !target.file.isBlockDevice else {
            guard target.samplesMatch == true else {
                throw unfit(
                    "target \(target.path) was interrupted and written to since, or nothing "
                        + "proves that it was not")
            }
            return .increment(from: from)
        }
        let isSized = target.file.size == from.size || target.file.size == to.size
        guard isSized, record.target.inode == target.file.inode else {
            throw unfit("target \(target.path) is another file than the copy that was interrupted")
        }
        guard isAsLeft(record, target), target.samplesMatch != false else {
            throw unfit("target \(target.path) was interrupted and written to since")
        }
        return .increment(from: from)
    }

    // MARK: Overlays

    /// Decides about a file that is to lie on `former`, a complete copy that is never written to.
    package init(
        overlay request: CopyRequest, _ target: CopyTargetFacts, _ found: CopyRecordFound,
        onto former: CopyTargetFacts, _ formerFound: CopyRecordFound
    ) throws(CopyError) {
        if !target.isEmpty {
            switch found {
            case .none, .damaged:
                if let refusal = Self.noCopy(target, found) { throw refusal }
            case .record(let record):
                guard record.device == request.device, Self.isSameTarget(record, target) else {
                    throw CopyError(
                        .busy,
                        "target \(target.path) is another copy than the one that was begun; name "
                            + "another target")
                }
                if record.state == .complete {
                    guard Self.isUnchanged(record, target),
                        record.equals?.isSameMoment(as: request.cut) == true
                    else {
                        throw CopyError(
                            .busy,
                            "target \(target.path) is already a complete copy; name another target, "
                                + "and \(target.path) with --onto")
                    }
                    self = .nothing
                    return
                }
            }
        }
        if case .record(let record) = formerFound, record.state == .running {
            throw Self.unfit("\(former.path) is not complete", wayOut: "finish it first")
        }
        self = try Self.increment(request, former, formerFound)
        // Nothing changed: the overlay is empty, and a copy none the less.
        if self == .nothing { self = .increment(from: request.cut) }
    }
}
