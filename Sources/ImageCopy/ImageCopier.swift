// One copy from its first write to its last:
//
//   workers connected -> target opened, plan made -> running recorded, synced -> resized, written
//     -> target synced -> complete recorded, synced
//
// Killed anywhere before the last step, the record says that the copy is under way and between
// which cuts; everything is done again by the next run, which changes nothing that was right.

/// A copy of an image into a target; see the head of this file. Everything blocks.
package final class ImageCopier: Sendable {
    package let wish: CopyWish
    package let plan: CopyPlan
    private let target: CopyTarget
    private let record: CopyRecordFile
    private let workers: [CopyWorker]

    /// Opens the target and decides what is to be done with it. `workers` are connected to the
    /// image that `wish` names.
    package init(_ wish: CopyWish, target path: String, workers: [CopyWorker]) throws(CopyError) {
        self.wish = wish
        self.workers = workers
        target = try CopyTarget(opening: path, creates: wish.since == nil)
        record = CopyRecordFile(besideTarget: path)
        plan = try CopyPlan(wish, try target.facts(), try record.load())
        for worker in workers where worker.imageSize != wish.cut.size {
            throw CopyError(
                .unreadable,
                "the image has \(worker.imageSize) bytes over NBD, and \(wish.cut.size) by its "
                    + "snapshot")
        }
    }

    /// Connections that share the work.
    package var workerCount: Int { workers.count }

    /// Records what begins, before the first write.
    package func begin() throws(CopyError) {
        let from: CopyCut?
        switch plan {
        case .nothing: return
        case .full(let isFresh):
            from = nil
            if isFresh { try target.nameIsNew() }
        case .increment(let base): from = base
        }
        try record.store(
            .running(device: wish.device, from: from, to: wish.cut, try target.facts().file))
        try target.resize(to: wish.cut.size)
    }

    /// Does one worker's share, until nothing is left or something failed.
    package func copy(_ work: CopyWork, worker: Int) {
        workers[worker].work(work, into: target, isFresh: plan == .full(isFresh: true))
    }

    /// All was written: records that the target equals the cut.
    package func finish() throws(CopyError) {
        if plan == .nothing { return }
        try target.sync()
        try record.store(
            .complete(device: wish.device, wish.cut, try target.facts().file))
    }
}
