internal import BlockModel
package import CopyPlanning
package import CopyTargets
internal import Glibc
internal import Synchronization

// One copy from its first write to its last:
//
//   workers connected -> target opened, plan made -> running recorded, synced -> resized, written
//     -> target synced -> complete recorded, synced
//
// Killed anywhere before the last step, the record says that the copy is under way and between
// which cuts; an increment is done again by the next run, which changes nothing that was right, and
// a full copy continues after what the record says is done.
//
// A full copy that replaces a complete one is written to TARGET.unfinished, which has a record of
// its own, and takes the place of TARGET when it is complete: first the file is renamed, then its
// record.
// Killed between the two, the next run finds a complete record that describes TARGET, and renames
// it.

/// A copy of an image into a target; see the head of this file. Everything blocks.
package final class ImageCopier: Sendable {
    package let request: CopyRequest
    package let plan: CopyPlan
    package let work: CopyWork
    /// What the user should know of how it is done.
    package let notes: [String]
    /// What the record said before.
    package let former: CopyRecord?
    private let options: CopyOptions
    private let changes: RangeSpool?
    let target: any CopyMedium
    let record: CopyRecordFile
    /// The complete copy that is replaced, and its record; locked until the end.
    private let replaced: (target: any CopyMedium, record: CopyRecordFile)?
    let workers: [CopyWorker]
    /// Where the workers write to; empty before `begin`.
    private let sinks = Mutex<[any CopySink]>([])
    /// How the disk was before the first write.
    private let disk: DiskState?

    /// Opens the target and decides what is to be done with it. `workers` are connected to the
    /// image that `request` names; `changes`: what changed since the base.
    package init(
        _ request: CopyRequest, target path: String, changes: RangeSpool? = nil,
        options: CopyOptions = CopyOptions(), workers: [CopyWorker]
    ) throws(CopyError) {
        precondition((request.since == nil) == (changes == nil), "changes go with a base")
        self.request = request
        self.options = options
        self.workers = workers
        self.changes = changes
        let place = try CopyPlace(path)
        let opened = try place.open(
            creates: request.since == nil || options.onto != nil, isForced: request.isForced,
            request,
            options)
        do throws(CopyError) {
            let chosen = try Self.choose(request, place, opened, changes, options)
            for worker in workers where worker.imageSize != request.cut.size {
                throw CopyError(
                    .unreadable,
                    "the image has \(worker.imageSize) bytes over NBD, and \(request.cut.size) by its "
                        + "snapshot")
            }
            target = chosen.target
            record = chosen.record
            replaced = chosen.replaced
            plan = chosen.plan
            notes = chosen.notes
            former = chosen.former
            disk = chosen.disk
            switch chosen.plan {
            case .full(let full):
                work = CopyWork(
                    wholeImage: request.cut.size, done: full.done, rateLimit: options.rateLimit)
            case .increment:
                work = CopyWork(changes ?? RangeSpool.none, rateLimit: options.rateLimit)
            case .nothing: work = CopyWork(RangeSpool.none)
            }
        } catch {
            // Nothing was decided for it, so nothing is left of it.
            opened.withdraw()
            throw error
        }
    }

    private struct Choice {
        var target: any CopyMedium
        var record: CopyRecordFile
        var plan: CopyPlan
        var former: CopyRecord?
        var replaced: (target: any CopyMedium, record: CopyRecordFile)?
        var notes: [String] = []
        var disk: DiskState?
    }

    private static func choose(
        _ request: CopyRequest, _ place: CopyPlace, _ target: any CopyMedium,
        _ changes: RangeSpool?,
        _ options: CopyOptions
    ) throws(CopyError) -> Choice {
        let file = try target.file()
        let record = CopyRecordFile.of(target.path, file, options)
        if !file.isBlockDevice { try finishReplacing(target, record, file) }
        let found = try record.load()
        var facts = CopyTargetFacts(path: target.path, file: file, recordPath: record.path)
        facts.canGrow = target.canGrow
        facts.keepsVersions = target.keepsVersions
        facts.isEmpty = facts.isEmpty || target.isNew
        var former: CopyRecord?
        if case .record(let its) = found {
            former = its
            facts.samplesMatch = try target.holds(
                its, except: its.state == .running ? changes : nil)
        } else if !facts.isEmpty {
            facts.content = try target.content()
        }
        var choice = Choice(
            target: target, record: record, plan: .nothing, former: former, disk: file.disk)
        if let onto = options.onto {
            let base = try QcowChain.facts(of: onto)
            choice.plan = try CopyPlan(
                overlay: request, facts, found, onto: base.facts, base.found)
        } else {
            choice.plan = try CopyPlan(request, facts, found)
        }
        if let why = CopyPlan.whyAnew(request, facts, found) { choice.notes.append(why) }
        if choice.plan != .nothing { try target.checkName(of: request.cut) }
        guard case .full(var full) = choice.plan else { return choice }
        try place.checkNothingLiesOnIt()
        if full.isBeside {
            try beside(request, place, &choice, options)
        } else if target.beginsFresh, full.done.isEmpty {
            full.isFresh = true
            choice.plan = .full(full)
        }
        return choice
    }

    // MARK: Replacing

    /// The new copy is made in a file beside the one that it replaces.
    private static func beside(
        _ request: CopyRequest, _ place: CopyPlace, _ choice: inout Choice, _ options: CopyOptions
    ) throws(CopyError) {
        let place = place.beside
        let target = try place.open(creates: true, isForced: true, request, options)
        let record = CopyRecordFile(besideTarget: target.path)
        var facts = CopyTargetFacts(path: target.path, file: try target.file())
        choice.replaced = (choice.target, choice.record)
        choice.target = target
        choice.record = record
        if case .record(let its) = try record.load(), its.state == .running {
            facts.samplesMatch = try target.holds(its, except: nil)
            // A plan that refuses is one that cannot continue.
            if case .full(let full) = try? CopyPlan(request, facts, .record(its)),
                !full.done.isEmpty
            {
                choice.plan = .full(
                    CopyPlan.Full(isFresh: full.isFresh, done: full.done, isBeside: true))
                return
            }
        }
        // What is left of a copy that cannot continue.
        try target.empty()
        choice.plan = .full(CopyPlan.Full(isFresh: true, isBeside: true))
    }

    /// A run that was killed between its two last renames left the record of TARGET under the name
    /// of the file beside it.
    private static func finishReplacing(
        _ target: any CopyMedium, _ record: CopyRecordFile, _ file: CopyRecord.File
    ) throws(CopyError) {
        let left = CopyRecordFile(besideTarget: target.path + CopyPlace.besideSuffix)
        guard case .record(let its) = try left.load(), its.state == .complete,
            its.target.inode == file.inode, its.target.size == file.size,
            its.target.changedNanoseconds == file.changedNanoseconds
        else { return }
        try left.move(to: record)
    }

    private func replace(
        _ former: (target: any CopyMedium, record: CopyRecordFile)
    ) throws(CopyError) {
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
        var notes: [String] = []
        let file = try target.file()
        switch plan {
        case .nothing: return []
        case .full(let full):
            begun = .running(
                device: request.device, from: nil, to: request.cut, file,
                done: full.done.map { .init(offset: $0.offset, length: $0.length) },
                isFresh: full.isFresh, samples: full.done.isEmpty ? nil : former?.samples)
        case .increment(let base):
            if let keep = options.keep, !file.isBlockDevice {
                notes += try keepFormer(base, as: keep)
            }
            // An overlay that is not finished is made again: nothing depends on what it holds.
            var samples = former?.samples
            if samples == nil, options.onto == nil {
                samples = try target.samples(within: nil, written: nil)
            }
            begun = .running(
                device: request.device, from: base, to: request.cut, file, samples: samples)
        }
        begun.onto = try options.onto.map { path throws(CopyError) in
            try QcowChain.reference(to: path, from: target.path)
        }
        begun.writtenAtSeconds = Int64(time(nil))
        try record.store(begun)
        do throws(CopyError) {
            try target.prepare(request.cut.size, for: plan)
            let made = try target.sinks(workers.count)
            sinks.withLock { $0 = made }
        } catch {
            // Nothing was written yet: all is as it was.
            if target.isNew {
                target.withdraw()
                record.remove()
            } else if let former, replaced == nil {
                try record.store(former)
            }
            throw error
        }
        return notes
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
        guard let file = target as? CopyTarget else {
            preconditionFailure("only files have versions beside them")
        }
        return try versions.keep(former, of: file.descriptor, as: name)
    }

    /// Does one worker's share, until nothing is left or something failed. Of a target that takes
    /// fewer connections some workers have no share.
    package func copy(_ worker: Int) {
        var isFresh = false
        if case .full(let full) = plan { isFresh = full.isFresh }
        guard let sink = sinks.withLock({ $0.indices.contains(worker) ? $0[worker] : nil }) else {
            return
        }
        workers[worker].work(work, into: sink, isFresh: isFresh)
    }

    /// Most ranges of a record: those that are left out are copied again.
    private static let doneCountMax = 1000

    /// Bytes of a copy that are given up where there is no room for its record.
    private static let recordByteCount: UInt64 = 1 << 20

    /// Records how far a copy is that has failed. Where there is no room even for that, the last of
    /// what was copied makes room.
    package func recordFailure() throws(CopyError) {
        let done = work.doneRanges
        try target.sync()
        try target.settle()
        do throws(CopyError) {
            try record(done, isSettled: true)
        } catch {
            var done = done
            guard let file = target as? CopyTarget, !file.isBlockDevice, let last = done.popLast()
            else { throw error }
            let kept = last.length - min(last.length, Self.recordByteCount)
            try file.zero(
                ByteRange(offset: last.offset + kept, length: last.length - kept))
            if kept > 0 { done.append(ByteRange(offset: last.offset, length: kept)) }
            try target.settle()
            try record(done, isSettled: true)
        }
    }

    /// Records how far a full copy is, so that it continues from there when it is interrupted.
    package func recordProgress() throws(CopyError) {
        guard case .full = plan, target.syncsWhileWriting else { return }
        let done = work.doneRanges
        guard !done.isEmpty else { return }
        try target.sync()
        try record(done, isSettled: false)
    }

    private func record(_ done: [ByteRange], isSettled: Bool) throws(CopyError) {
        var running: CopyRecord
        switch plan {
        case .nothing: return
        case .full(let full):
            let samples = try target.samples(within: done, written: nil)
            running = .running(
                device: request.device, from: nil, to: request.cut, try target.file(),
                done: done.prefix(Self.doneCountMax).map {
                    .init(offset: $0.offset, length: $0.length)
                },
                isFresh: full.isFresh, samples: samples)
        case .increment:
            // What says how it began stays; only the time of the last write is news.
            guard case .record(let begun) = try record.load() else { return }
            running = begun
            running.target = try target.file()
        }
        running.isSettled = isSettled ? true : nil
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
        try target.settle()
        let cut = later ?? request.cut
        try target.complete(cut)
        try target.describe(request.device, cut)
        var file = try target.file()
        let hasWritten =
            hasWrittenMore || work.writtenByteCount.load(ordering: .relaxed) > 0
        if hasWritten, let before = disk, before.backing == nil,
            before.touchedSectors == file.disk?.touchedSectors
        {
            // A driver that counts nothing proves nothing.
            file.disk?.touchedSectors = nil
        }
        var samples: [CopyRecord.Sample]?
        if file.isBlockDevice {
            let isIncrement = if case .increment = plan { true } else { false }
            samples = try target.samples(within: nil, written: isIncrement ? changes : nil)
        }
        var complete = CopyRecord.complete(
            device: request.device, cut, file, samples: samples)
        if let onto = options.onto, case .increment(let base) = plan {
            complete.onto = try QcowChain.reference(to: onto, from: target.path)
            complete.ontoCut = base
        }
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
        ofTarget path: String, options: CopyOptions
    ) -> CopyCut? {
        // What cannot be looked at is reported when the copy begins.
        guard let file = try? CopyPlace(path).recordFile(options),
            case .record(let found)? = try? file.load()
        else { return nil }
        return found.state == .complete ? found.equals : found.from
    }
}
