package import BlockModel
internal import DataPlane
internal import Glibc

// One copy from its first write to its last:
//
//   workers connected -> target opened, plan made -> running recorded, synced -> resized, written
//     -> target synced -> complete recorded, synced
//
// Killed anywhere before the last step, the record says that the copy is under way and between
// which cuts; an increment is done again by the next run, which changes nothing that was right, and
// a full copy goes on after what the record says is done.
//
// A full copy that replaces a complete one is written to TARGET.unfinished, which has a record of its
// own, and takes the place of TARGET when it is complete: first the file is renamed, then its record.
// Killed between the two, the next run finds a complete record that describes TARGET, and renames it.

/// What else a copy is made with.
package struct CopyOptions: Sendable {
    /// What the target must keep clear of.
    package var surroundings = CopySurroundings()
    /// Where records of block devices are.
    package var diskRecords = ""
    /// The file that holds the record, where the user names one.
    package var recordPath: String?
    /// What was there is kept as `TARGET@NAME`.
    package var keep: String?
    /// The cut's name was made for this copy alone.
    package var isNameOwned = false

    package init() {}
}

/// A copy of an image into a target; see the head of this file. Everything blocks.
package final class ImageCopier: Sendable {
    package static let besideSuffix = ".unfinished"

    package let wish: CopyWish
    package let plan: CopyPlan
    package let work: CopyWork
    /// What the user should know of how it is done.
    package let notes: [String]
    /// What the record said before.
    package let former: CopyRecord?
    private let options: CopyOptions
    let target: CopyTarget
    let record: CopyRecordFile
    /// The complete copy that is replaced, and its record; locked until the end.
    private let replaced: (target: CopyTarget, record: CopyRecordFile)?
    let workers: [CopyWorker]
    /// How the disk was before the first write.
    private let disk: DiskState?

    /// Opens the target and decides what is to be done with it. `workers` are connected to the
    /// image that `wish` names; `changes`: what changed since the base, ascending.
    package init(
        _ wish: CopyWish, target path: String, changes: [ByteRange]? = nil,
        options: CopyOptions = CopyOptions(), workers: [CopyWorker]
    ) throws(CopyError) {
        precondition((wish.since == nil) == (changes == nil), "changes go with a base")
        self.wish = wish
        self.options = options
        self.workers = workers
        let opened = try CopyTarget(
            opening: path, creates: wish.since == nil, surroundings: options.surroundings,
            isForced: wish.isForced)
        do throws(CopyError) {
            let chosen = try Self.choose(wish, opened, changes ?? [], options)
            for worker in workers where worker.imageSize != wish.cut.size {
                throw CopyError(
                    .unreadable,
                    "the image has \(worker.imageSize) bytes over NBD, and \(wish.cut.size) by its "
                        + "snapshot")
            }
            target = chosen.target
            record = chosen.record
            replaced = chosen.replaced
            plan = chosen.plan
            notes = chosen.notes
            former = chosen.former
            disk = chosen.disk
            if case .full(let full) = chosen.plan {
                work = CopyWork(wholeImage: wish.cut.size, done: full.done)
            } else {
                work = CopyWork(chosen.plan == .nothing ? [] : changes ?? [])
            }
        } catch {
            // Nothing was decided for it, so nothing is left of it.
            if opened.isNew { unlink(path) }
            throw error
        }
    }

    private struct Choice {
        var target: CopyTarget
        var record: CopyRecordFile
        var plan: CopyPlan
        var former: CopyRecord?
        var replaced: (target: CopyTarget, record: CopyRecordFile)?
        var notes: [String] = []
        var disk: DiskState?
    }

    private static func choose(
        _ wish: CopyWish, _ target: CopyTarget, _ changes: [ByteRange], _ options: CopyOptions
    ) throws(CopyError) -> Choice {
        let file = try target.file()
        let record = recordFile(of: target, file, options)
        if !target.isBlockDevice { try finishReplacing(target, record, file) }
        let found = try record.load()
        var facts = CopyTargetFacts(path: target.path, file: file, recordPath: record.path)
        var former: CopyRecord?
        if case .record(let its) = found {
            former = its
            if target.isBlockDevice, let samples = its.samples {
                facts.samplesMatch = try target.matches(
                    samples, excluding: its.state == .running ? changes : [])
            }
        } else {
            facts.content = try target.content()
        }
        var choice = Choice(
            target: target, record: record, plan: try CopyPlan(wish, facts, found),
            former: former, disk: file.disk)
        if let why = CopyPlan.whyAnew(wish, facts, found) { choice.notes.append(why) }
        if case .full(let full) = choice.plan, full.isBeside {
            try beside(wish, &choice, options)
        }
        return choice
    }

    private static func recordFile(
        of target: CopyTarget, _ file: CopyRecord.File, _ options: CopyOptions
    ) -> CopyRecordFile {
        if let path = options.recordPath { return CopyRecordFile(named: path) }
        guard let disk = file.disk else { return CopyRecordFile(besideTarget: target.path) }
        return CopyRecordFile(of: disk, size: file.size, in: options.diskRecords)
    }

    // MARK: Replacing

    /// The new copy is made in a file beside the one that it replaces.
    private static func beside(
        _ wish: CopyWish, _ choice: inout Choice, _ options: CopyOptions
    ) throws(CopyError) {
        let path = choice.target.path + besideSuffix
        let target = try CopyTarget(opening: path, creates: true)
        let record = CopyRecordFile(besideTarget: path)
        let facts = CopyTargetFacts(path: path, file: try target.file())
        choice.replaced = (choice.target, choice.record)
        choice.target = target
        choice.record = record
        // A plan that refuses is one that cannot go on.
        if case .record(let its) = try record.load(), its.state == .running,
            case .full(let full) = try? CopyPlan(wish, facts, .record(its)), !full.done.isEmpty
        {
            choice.plan = .full(
                CopyPlan.Full(isFresh: full.isFresh, done: full.done, isBeside: true))
            return
        }
        // What is left of a copy that cannot go on.
        try target.resize(to: 0)
        choice.plan = .full(CopyPlan.Full(isFresh: true, isBeside: true))
    }

    /// A run that was killed between its two last renames left the record of TARGET under the name
    /// of the file beside it.
    private static func finishReplacing(
        _ target: CopyTarget, _ record: CopyRecordFile, _ file: CopyRecord.File
    ) throws(CopyError) {
        let left = CopyRecordFile(besideTarget: target.path + besideSuffix)
        guard case .record(let its) = try left.load(), its.state == .complete,
            its.target.inode == file.inode, its.target.size == file.size,
            its.target.changedNanoseconds == file.changedNanoseconds
        else { return }
        try left.move(to: record)
    }

    private func replace(_ former: (target: CopyTarget, record: CopyRecordFile)) throws(CopyError) {
        if let keep = options.keep, let its = self.former {
            try CopyVersions(of: former.target.path).keepByLink(its, as: keep)
        }
        guard rename(target.path, former.target.path) == 0 else {
            throw CopyError(
                .failed,
                "\(target.path) cannot be renamed to \(former.target.path) "
                    + "(\(CopyTarget.text(errno))); run the same command again")
        }
        try CopyRecordFile.syncDirectory(of: former.target.path)
        try record.move(to: former.record)
    }

    // MARK: Performing

    /// Connections that share the work.
    package var workerCount: Int { workers.count }

    /// Where the record of the copy is.
    package var recordPath: String { replaced?.record.path ?? record.path }

    /// Records what begins, before the first write. Returns what the user should know.
    package func begin() throws(CopyError) -> [String] {
        var begun: CopyRecord
        var said: [String] = []
        let file = try target.file()
        switch plan {
        case .nothing: return []
        case .full(let full):
            if full.isFresh { try target.nameIsNew() }
            begun = .running(
                device: wish.device, from: nil, to: wish.cut, file,
                done: full.done.map { .init(offset: $0.offset, length: $0.length) },
                isFresh: full.isFresh, samples: full.done.isEmpty ? nil : former?.samples)
        case .increment(let base):
            if let keep = options.keep, !target.isBlockDevice {
                said += try keepFormer(base, as: keep)
            }
            begun = .running(
                device: wish.device, from: base, to: wish.cut, file, samples: former?.samples)
        }
        begun.writtenAtSeconds = Int64(time(nil))
        try record.store(begun)
        do throws(CopyError) {
            try target.resize(to: wish.cut.size)
        } catch {
            // Nothing was written yet: all is as it was.
            if target.isNew {
                unlink(target.path)
                record.remove()
            } else if let former, replaced == nil {
                try record.store(former)
            }
            throw error
        }
        return said
    }

    private func keepFormer(_ base: CopyCut, as name: String) throws(CopyError) -> [String] {
        let versions = CopyVersions(of: target.path)
        if try versions.holds(base, as: name) { return [] }
        guard let former, former.state == .complete else {
            throw CopyError(
                .busy,
                "target \(target.path) is half-way to another cut, so \(base.snapshot) cannot be "
                    + "kept any more; finish the copy without --keep")
        }
        return try versions.keep(former, of: target.descriptor, as: name)
    }

    /// Does one worker's share, until nothing is left or something failed.
    package func copy(_ worker: Int) {
        var isFresh = false
        if case .full(let full) = plan { isFresh = full.isFresh }
        workers[worker].work(work, into: target, isFresh: isFresh)
    }

    /// Most ranges of a record: those that are left out are copied again.
    private static let doneCountMax = 1000

    /// Bytes of a copy that are given up where there is no room for its record.
    private static let recordByteCount: UInt64 = 1 << 20

    /// Records how far a full copy is that has failed. Where there is no room even for that, the
    /// last of what was copied makes room.
    package func recordFailure() throws(CopyError) {
        do throws(CopyError) {
            try recordProgress()
        } catch {
            var done = work.doneRanges
            guard !target.isBlockDevice, let last = done.popLast() else { throw error }
            let kept = last.length - min(last.length, Self.recordByteCount)
            try target.zero(
                ByteRange(offset: last.offset + kept, length: last.length - kept))
            if kept > 0 { done.append(ByteRange(offset: last.offset, length: kept)) }
            try record(done)
        }
    }

    /// Records how far a full copy is, so that it goes on from there when it is interrupted.
    package func recordProgress() throws(CopyError) { try record(work.doneRanges) }

    private func record(_ done: [ByteRange]) throws(CopyError) {
        guard case .full(let full) = plan, !done.isEmpty else { return }
        try target.sync()
        var running = CopyRecord.running(
            device: wish.device, from: nil, to: wish.cut, try target.file(),
            done: done.prefix(Self.doneCountMax).map {
                .init(offset: $0.offset, length: $0.length)
            },
            isFresh: full.isFresh, samples: try target.samples(within: done))
        running.writtenAtSeconds = Int64(time(nil))
        try record.store(running)
    }

    /// All was written: records that the target equals the cut, or `later`, up to which it was
    /// brought forward; `hasWrittenMore`: for that, something was written.
    package func finish(
        as later: CopyCut? = nil, hasWrittenMore: Bool = false
    ) throws(CopyError) {
        if plan == .nothing { return }
        try target.sync()
        // Whoever writes from now on is seen by another time of change.
        TargetSurvey.waitForNextStamp()
        var file = try target.file()
        let hasWritten =
            hasWrittenMore || work.writtenByteCount.load(ordering: .relaxed) > 0
        if hasWritten, let before = disk, before.backing == nil,
            before.touchedSectors == file.disk?.touchedSectors
        {
            // A driver that counts nothing proves nothing.
            file.disk?.touchedSectors = nil
        }
        var complete = CopyRecord.complete(
            device: wish.device, later ?? wish.cut, file, samples: try target.samples())
        complete.writtenAtSeconds = Int64(time(nil))
        complete.isNameOwned = options.isNameOwned ? true : nil
        try record.store(complete)
        if let replaced { try replace(replaced) }
    }
}

extension ImageCopier {
    /// The cut that a target equals, or that it lies on the way from, as its record says; nil when
    /// no record is there that describes a copy. What the record is worth is decided with the plan.
    package static func baseCut(
        ofTarget path: String, records: String, record: CopyRecordFile?
    ) -> CopyCut? {
        var facts = stat()
        guard stat(path, &facts) == 0 else { return nil }
        var file = record ?? CopyRecordFile(besideTarget: path)
        if record == nil, facts.st_mode & S_IFMT == S_IFBLK {
            guard let disk = DiskLook.state(ofPath: path) else { return nil }
            file = CopyRecordFile(of: disk.state, size: disk.size, in: records)
        }
        // A record that cannot be read is reported when the copy begins.
        guard case .record(let found)? = try? file.load() else { return nil }
        return found.state == .complete ? found.equals : found.from
    }
}
