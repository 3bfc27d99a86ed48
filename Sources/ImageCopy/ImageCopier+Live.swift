internal import BlockModel
internal import Glibc

// The parts of a copy of a device in use that begin where copying an image ends: the target is
// brought forward to later and later cuts.
//
// Invariants
// - A full copy's record names the cut `to` after which everything in its `done` was read: the copy
//   goes on with what changed since that cut. An increment's names its base until it is complete.

extension ImageCopier {
    /// Reads pieces of a pass after the first copy into the target, or into `blocks`: one worker's
    /// share.
    package func copy(_ pieces: CopyWork, worker: Int, into blocks: HeldBlocks? = nil) {
        // What the target holds may be older than zeroes.
        workers[worker].work(pieces, into: blocks ?? target, isFresh: false)
    }

    /// Reads pieces and shows them to `look`; the target stays as it is.
    package func look(_ pieces: CopyWork, worker: Int, at look: EdgeLook) {
        workers[worker].work(pieces, into: look, isFresh: false)
    }

    /// A place in memory for what goes to the target later.
    package func heldBlocks(byteCountMax: Int) -> HeldBlocks {
        HeldBlocks(byteCountMax: byteCountMax, beyond: target)
    }

    /// The copy is full, so that its record tells how far it is.
    package var isFull: Bool {
        if case .full = plan { return true }
        return false
    }

    /// All that changed until `cut` is in the target: makes that durable, and records it of a full
    /// copy.
    package func recordPass(_ cut: CopyCut) throws(CopyError) {
        try target.sync()
        guard isFull else { return }
        let whole = ByteRange(offset: 0, length: cut.size)
        var running = CopyRecord.running(
            device: wish.device, from: nil, to: cut, try target.file(),
            done: [.init(offset: 0, length: cut.size)],
            samples: try target.samples(within: [whole]))
        running.writtenAtSeconds = Int64(time(nil))
        try record.store(running)
    }

    /// The record of a copy that was interrupted: of the target, or of the file beside it that is to
    /// take its place.
    package static func interrupted(
        ofTarget path: String, records: String, record: CopyRecordFile?
    ) -> CopyRecord? {
        let own = record ?? recordFile(ofTarget: path, records: records)
        for file in [CopyRecordFile(besideTarget: path + besideSuffix), own] {
            // One that cannot be read is reported when the copy begins.
            if let file, case .record(let found)? = try? file.load(), found.state == .running {
                return found
            }
        }
        return nil
    }

    /// The record of a target that is a complete copy, as nobody has changed it since.
    package static func complete(
        ofTarget path: String, records: String, record: CopyRecordFile?
    ) -> CopyRecord? {
        // What cannot be read, or is in use, is reported when the copy begins.
        guard
            let reader = try? CopyReader(opening: path, records: records, record: record?.path),
            let cut = reader.cut, let file = record ?? recordFile(ofTarget: path, records: records),
            case .record(let found)? = try? file.load(), found.equals == cut
        else { return nil }
        return found
    }

    private static func recordFile(ofTarget path: String, records: String) -> CopyRecordFile? {
        guard CopyInventory.isBlockDevice(path) else { return CopyRecordFile(besideTarget: path) }
        return DiskLook.state(ofPath: path).map {
            CopyRecordFile(of: $0.state, size: $0.size, in: records)
        }
    }
}
