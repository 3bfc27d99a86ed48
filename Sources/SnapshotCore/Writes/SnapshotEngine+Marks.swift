package import BlockModel
internal import ChangeTracking
internal import CopyOnWrite
internal import EngineState

// Marks by hand: blocks are declared as changed, for every later query until now and for every
// query until a snapshot that is held now.
//
// The second is why they are not like writes: the answer for a held snapshot comes from the entry
// saved at the first change after its cut, so that entry is marked too, in the epoch that ended
// at the cut. Each layer gets an entry of its own for that, the oldest first: one that reads the
// entry of a newer layer must see it as it was before that one was marked.

extension SnapshotEngine {
    /// Pages of the map that the range needs and that are not reserved, at most `countMax`.
    package func unreservedPages(of range: ByteRange, countMax: Int) -> [UInt64] {
        guard !range.isEmpty, !isTrackingLost else { return [] }
        var pages: [UInt64] = []
        var rest = chunks(touching: range)
        while pages.count < countMax, !rest.isEmpty, let page = unreservedPage(rest) {
            pages.append(page)
            let next = min((page + 1) * ChangeMap.entriesPerPage, rest.upperBound)
            rest = next..<rest.upperBound
        }
        return pages
    }

    /// True when every held snapshot has room to save the entries of `chunkCount` more chunks.
    package func hasRoomForMarks(chunkCount: UInt64) -> Bool {
        for position in 0..<chainCount where layerUses[chain[position]].role == .live {
            let layer = layers.pointer(to: chain[position])
            guard layer.pointee.hasRoom(forRecords: chunkCount) else { return false }
        }
        return true
    }

    /// Snapshots held now: what a mark costs grows with them.
    package var heldCount: Int {
        (0..<chainCount).count { layerUses[chain[$0]].role == .live }
    }

    /// The blocks of the range are declared as changed. Its pages must be reserved.
    package func changesDeclared(in range: ByteRange) {
        precondition(range.end <= size, "a marked range lies within the device")
        precondition(!range.isEmpty, "a mark names blocks")
        precondition(!isTrackingLost, "nothing is marked once tracking is lost")
        for chunk in chunks(touching: range) {
            let blocks = blockMask(of: chunk, offset: range.offset, end: range.end)
            declareToSnapshots(blocks, of: chunk)
            map.mark(blocks, of: chunk)
        }
        settle()
    }

    private func declareToSnapshots(_ blocks: UInt16, of chunk: UInt64) {
        var position = 0
        // Giving up for want of metadata shortens the chain.
        while position <= newestLive {
            let layer = chain[position]
            let snapshot = snapshots[layerUses[layer].snapshot]
            // Of a former generation nothing is answered.
            guard layerUses[layer].role == .live, snapshot.generation == generationOrdinal else {
                position += 1
                continue
            }
            guard let record = recordForMark(of: chunk, at: position) else {
                giveUp(upTo: position, fault: .noMemory)
                position = 0
                continue
            }
            let entry = layers[layer].record(record)
            let saved = ChangeEntry(rawValue: entry.pointee.savedEntry)
            entry.pointee.savedEntry =
                saved.marking(
                    blocks, current: snapshot.cutEpoch, newestBase: snapshot.baseBefore
                ).rawValue
            position += 1
        }
    }

    /// The layer's record of the chunk, made where there is none; nil at the metadata limit.
    private func recordForMark(of chunk: UInt64, at position: Int) -> UInt32? {
        if position == newestLive { return touch(chunk) }
        return layers[chain[position]].findOrInsert(
            chunk,
            savedEntry: (savedEntry(of: chunk, from: position + 1) ?? map.entry(of: chunk)).rawValue
        )
    }
}
