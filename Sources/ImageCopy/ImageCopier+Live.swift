internal import BlockModel
package import CopyPlanning
package import CopyTargets
internal import Glibc

// The parts of a copy of a device in use that begin where copying an image ends: the target is
// brought forward to later and later cuts.
//
// Invariants
// - A full copy's record names the cut `to` after which everything in its `done` was read: the copy
//   continues with what changed since that cut. An increment's names its base until it is complete.

extension ImageCopier {
    /// Reads pieces of a pass after the first copy into the target, or into `blocks`: one worker's
    /// share.
    package func copy(_ pieces: CopyWork, worker: Int, into blocks: HeldBlocks? = nil) {
        // What the target holds may be older than zeroes.
        workers[worker].work(pieces, into: blocks ?? fileTarget, isFresh: false)
    }

    /// Reads pieces and shows them to `look`; the target stays as it is.
    package func look(_ pieces: CopyWork, worker: Int, at look: EdgeLook) {
        workers[worker].work(pieces, into: look, isFresh: false)
    }

    /// A place in memory, and in a spill file if there is one, for what goes to the target later.
    package func heldBlocks(byteCountMax: Int, spill: SpillFile?) -> HeldBlocks {
        HeldBlocks(byteCountMax: byteCountMax, spill: spill, beyond: fileTarget)
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
        let file = try target.file()
        let whole = ByteRange(offset: 0, length: cut.size)
        // A file is brought forward by the next pass wherever the last one was interrupted.
        let samples =
            file.isBlockDevice ? try target.samples(within: [whole], written: nil) : nil
        var running = CopyRecord.running(
            device: request.device, from: nil, to: cut, file,
            done: [.init(offset: 0, length: cut.size)], samples: samples)
        running.writtenAtSeconds = Int64(time(nil))
        try record.store(running)
    }

    /// Several threads write to it at once, also to places that another one has written to before:
    /// a file or a block device.
    private var fileTarget: CopyTarget {
        guard let target = target as? CopyTarget else {
            preconditionFailure("live devices are copied to files and block devices")
        }
        return target
    }

    /// The record of a copy that was interrupted: of the target, or of the file beside it that is
    /// to take its place.
    package static func interrupted(
        ofTarget path: String, options: CopyOptions
    ) -> CopyRecord? {
        // What cannot be looked at is reported when the copy begins.
        let own = try? CopyPlace(path).recordFile(options)
        for file in [CopyRecordFile(besideTarget: path + CopyPlace.besideSuffix), own] {
            if let file, case .record(let found)? = try? file.load(), found.state == .running {
                return found
            }
        }
        return nil
    }

    /// The record of a target that is a complete copy, as nobody has changed it since.
    package static func complete(
        ofTarget path: String, options: CopyOptions
    ) -> CopyRecord? {
        // What cannot be read, or is in use, is reported when the copy begins.
        guard let reader = try? CopyReader(opening: path, options: options),
            let cut = reader.cut, let file = try? CopyPlace(path).recordFile(options),
            case .record(let found)? = try? file.load(), found.equals == cut
        else { return nil }
        return found
    }
}
