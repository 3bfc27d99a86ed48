// What is to be done with a target, decided from what its record says, what it looks like and
// what is wanted. No I/O.
//
// Invariants
// - An increment begins only at a target whose every block that differs from the wanted image lies
//   in the changes since the base: it equals the base or a cut between the base and the wanted one, or
//   was interrupted on its way between two such cuts. (Killed just after its last write, a copy is
//   complete though nobody was told so: the same base with a newer snapshot must go on.)
// - Without force nothing is overwritten but a copy of the same device.

/// What is wanted: the image of a device at a cut.
package struct CopyWish: Sendable {
    /// A remembered cut, as the service tells it.
    package struct Base: Equatable, Sendable {
        package var name: String
        package var generation: String
        /// The epoch that ended at the cut.
        package var epoch: UInt32

        package init(name: String, generation: String, epoch: UInt32) {
            self.name = name
            self.generation = generation
            self.epoch = epoch
        }
    }

    package var device: String
    package var cut: CopyCut
    /// The cut that `--since` names.
    package var since: Base?
    /// Overwrite whatever the target holds.
    package var isForced: Bool

    package init(
        device: String, cut: CopyCut, since: Base?, isForced: Bool
    ) {
        self.device = device
        self.cut = cut
        self.since = since
        self.isForced = isForced
    }
}

/// What lies beside the target.
package enum CopyRecordFound: Equatable, Sendable {
    case none
    /// Something that is no record.
    case damaged
    case record(CopyRecord)
}

/// What the target holds at this moment.
package struct CopyTargetFacts: Equatable, Sendable {
    package var path: String
    package var file: CopyRecord.File
    /// What a block device without a record seems to hold, such as "an ext4 filesystem".
    package var content: String?

    package init(path: String, file: CopyRecord.File, content: String? = nil) {
        self.path = path
        self.file = file
        self.content = content
    }

    /// A file without a byte.
    package var isEmpty: Bool { !file.isBlockDevice && file.size == 0 }
}

/// What is to be done; see the head of this file.
package enum CopyPlan: Equatable, Sendable {
    /// The target equals the cut already.
    case nothing
    /// Everything is copied. `isFresh`: what is not written reads as zero.
    case full(isFresh: Bool)
    /// What changed since the base is copied into what equals `from`, or lies on the way from it.
    case increment(from: CopyCut)

    /// Decides.
    package init(
        _ wish: CopyWish, _ target: CopyTargetFacts, _ found: CopyRecordFound
    ) throws(CopyError) {
        if target.file.isBlockDevice, target.file.size < wish.cut.size {
            throw CopyError(
                .unsuitable,
                "target \(target.path) has \(target.file.size) bytes, the image "
                    + "\(wish.cut.size); name a larger device")
        }
        guard wish.since != nil else {
            if target.isEmpty {
                self = .full(isFresh: true)
                return
            }
            if !wish.isForced { try Self.checkMayBeOverwritten(wish, target, found) }
            self = .full(isFresh: false)
            return
        }
        self = try Self.increment(wish, target, found)
    }

    private static func checkMayBeOverwritten(
        _ wish: CopyWish, _ target: CopyTargetFacts, _ found: CopyRecordFound
    ) throws(CopyError) {
        let wayOut = "name another target, or overwrite it with --force"
        switch found {
        case .none:
            if target.file.isBlockDevice, target.content == nil { return }
            let what = target.content.map { "holds \($0)" } ?? "exists and has no record of a copy"
            throw CopyError(.busy, "target \(target.path) \(what); \(wayOut)")
        case .damaged:
            throw CopyError(
                .busy,
                "\(target.path)\(CopyRecord.suffix) is no record of a copy, so \(target.path) may be "
                    + "anything; \(wayOut)")
        case .record(let record):
            guard record.device == wish.device else {
                throw CopyError(
                    .busy,
                    "target \(target.path) is a copy of device \(record.device), not of "
                        + "\(wish.device); \(wayOut)")
            }
            // Somebody wrote to the copy: it is still one. Another file is in its place: it is not.
            guard record.target.inode == target.file.inode || isUnchanged(record, target) else {
                throw CopyError(
                    .busy,
                    "target \(target.path) is another file than the copy that its record "
                        + "describes; \(wayOut)")
            }
        }
    }

    private static func isUnchanged(_ record: CopyRecord, _ target: CopyTargetFacts) -> Bool {
        record.target.isBlockDevice == target.file.isBlockDevice
            && record.target.size == target.file.size
            && (target.file.isBlockDevice
                || record.target.changedNanoseconds == target.file.changedNanoseconds)
    }

    // MARK: Increment

    private static func unfit(_ text: String, wayOut: String? = nil) -> CopyError {
        let first = wayOut.map { "\($0), or " } ?? ""
        return CopyError(.unfit, "\(text); \(first)make a full copy, without --since")
    }

    private static func increment(
        _ wish: CopyWish, _ target: CopyTargetFacts, _ found: CopyRecordFound
    ) throws(CopyError) -> CopyPlan {
        let record: CopyRecord
        switch found {
        case .none:
            throw unfit(
                "target \(target.path) has no record \(target.path)\(CopyRecord.suffix) that says "
                    + "which cut it equals")
        case .damaged:
            throw unfit("\(target.path)\(CopyRecord.suffix) is damaged")
        case .record(let found): record = found
        }
        guard record.device == wish.device else {
            throw unfit(
                "target \(target.path) is a copy of device \(record.device), not of "
                    + wish.device)
        }
        guard record.target.isBlockDevice == target.file.isBlockDevice else {
            throw unfit("target \(target.path) is not the copy that its record describes")
        }
        switch record.state {
        case .complete: return try fromComplete(record, wish, target)
        case .running: return try fromRunning(record, wish, target)
        }
    }

    private static func fromComplete(
        _ record: CopyRecord, _ wish: CopyWish, _ target: CopyTargetFacts
    ) throws(CopyError) -> CopyPlan {
        guard let equals = record.equals, let since = wish.since else {
            preconditionFailure("a complete record names the cut the target equals")
        }
        guard isUnchanged(record, target) else {
            throw unfit("target \(target.path) was changed since it was copied")
        }
        if equals.isSameMoment(as: wish.cut) { return .nothing }
        guard equals.generation == since.generation else {
            throw unfit(
                "target \(target.path) equals a cut of another history of device \(wish.device)")
        }
        guard equals.epoch <= wish.cut.epoch else {
            throw unfit(
                "target \(target.path) equals the cut of \(equals.snapshot) (epoch "
                    + "\(equals.epoch)), which is later than that of \(wish.cut.snapshot)",
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
        _ record: CopyRecord, _ wish: CopyWish, _ target: CopyTargetFacts
    ) throws(CopyError) -> CopyPlan {
        guard let to = record.to, let since = wish.since else {
            preconditionFailure("a running record names the cut it leads to")
        }
        guard let from = record.from else {
            throw unfit("target \(target.path) is a full copy that was interrupted")
        }
        guard from.generation == since.generation, to.generation == wish.cut.generation else {
            throw unfit(
                "target \(target.path) was interrupted in another history of device "
                    + wish.device)
        }
        guard since.epoch <= from.epoch else {
            throw unfit(
                "target \(target.path) was interrupted on its way from the cut of "
                    + "\(from.snapshot) (epoch \(from.epoch)) to that of \(to.snapshot)",
                wayOut: "finish it with --since \(from.snapshot)")
        }
        // Blocks of the later cut are there already, and changes until an earlier one lack them.
        guard to.epoch <= wish.cut.epoch else {
            throw unfit(
                "target \(target.path) was interrupted on its way to the cut of \(to.snapshot) "
                    + "(epoch \(to.epoch)), which is later than that of \(wish.cut.snapshot)",
                wayOut: "finish it with that snapshot or a newer one")
        }
        let isSized =
            target.file.isBlockDevice || target.file.size == from.size
            || target.file.size == to.size
        guard isSized, record.target.inode == target.file.inode else {
            throw unfit("target \(target.path) is another file than the copy that was interrupted")
        }
        return .increment(from: from)
    }
}
