package import BlockModel
package import ChangeTracking
internal import CopyOnWrite
package import EngineState

// The chain of layers: what is given up, merged, dropped and freed, in bounded slices.

/// Records merged or freed in one turn of the loop.
private let recordsPerSlice = 256
private let slabsPerSlice = 16

extension SnapshotEngine {
    /// The snapshot is to go, in whatever state it is; its image requests end with an error.
    /// `snapshotGone` follows when everything that is not handed over is free.
    package func snapshotDestroyed(_ snapshot: SnapshotIndex) {
        let record = snapshots.pointer(to: snapshot)
        let previous = record.pointee.state
        record.pointee.state = .destroying
        switch previous {
        case .free, .destroying: preconditionFailure("a snapshot is destroyed once")
        case .prepared: preconditionFailure("a prepared snapshot is abandoned, not destroyed")
        case .corrupted: break
        case .held:
            guard let layer = record.pointee.layer else {
                preconditionFailure("a held snapshot has a layer")
            }
            record.pointee.layer = nil
            layerUses[layer].role = .merging
            layerUses[layer].cursor = 0
            chainChanged()
        }
        sources.close(of: snapshot, &effects)
        endImageRequests(of: snapshot)
        pumpStorage(isTurnEnd: false)
        settle()
        finishDestroying(snapshot)
    }

    /// The device has another size. What grew is changed for every query since a cut of the smaller
    /// size; images of lost ranges are corrupted, and a new generation is the caller's to begin.
    /// `larger`: the same map in memory that covers the new size, when the former does not.
    package func deviceResized(to newSize: UInt64, in larger: ChangeMap? = nil, now: UInt64) {
        timeAdvanced(to: now)
        precondition(underWayCount == 0 && !isGateOpen, "a device is resized behind its gate")
        if let larger {
            precondition(
                larger.current == map.current && larger.newestBase == map.newestBase
                    && larger.chunkCount >= map.chunkCount,
                "a map that moves to larger memory stays the same map")
            map = larger
        }
        precondition(
            map.chunkCount >= (newSize + chunkByteCount - 1) / chunkByteCount,
            "the change map covers the device")
        orphanCopies(of: nil)
        size = newSize
        var position = chainCount - 1
        while position >= 0 {
            let use = layerUses[chain[position]]
            if use.role == .live, snapshots[use.snapshot].size > newSize {
                giveUp(upTo: position, fault: .deviceGone)
                break
            }
            position -= 1
        }
        settle()
    }

    /// The origin is gone: its images cannot be read any more. Requests keep failing below.
    package func originLost(fault: Fault) {
        if newestLive >= 0 { giveUp(upTo: newestLive, fault: fault) }
        settle()
    }

    // MARK: Giving up

    /// Data of the layer at `position` is lost: every held snapshot cut at or before it is
    /// corrupted, none later. Their waiting writers continue.
    func giveUp(upTo position: Int, fault: Fault) {
        precondition(position >= 0 && position < chainCount, "a lost layer is in the chain")
        for index in 0...position {
            let layer = chain[index]
            if layerUses[layer].role == .live {
                let snapshot = layerUses[layer].snapshot
                snapshots[snapshot].state = .corrupted
                snapshots[snapshot].layer = nil
                effects.append(.snapshotCorrupted(snapshot, fault))
                endImageRequests(of: snapshot)
            }
        }
        for _ in 0...position { dropOldest() }
        chainChanged()
    }

    /// Nobody inherits from the oldest layer: its blocks are freed in slices.
    private func dropOldest() {
        let layer = chain[0]
        for index in 1..<max(chainCount, 1) { chain[index - 1] = chain[index] }
        chainCount -= 1
        orphanCopies(of: layer)
        purgeStorageQueue(of: layer)
        orphanBuffersWriting(of: layer)
        startFreeing(layer)
    }

    /// What the layer holds is freed in slices from now on.
    func startFreeing(_ layer: LayerIndex) {
        layerUses[layer].role = .freeing
        layerUses[layer].cursor = 0
        freeingCount += 1
        isFreeingHeldUp = false
    }

    /// A layer turned merging or left: what nobody inherits from is dropped, the newest live
    /// layer is found again, and writers look again at what they wait for.
    func chainChanged() {
        while chainCount > 0, layerUses[chain[0]].role != .live { dropOldest() }
        newestLive = chainCount - 1
        while newestLive >= 0, layerUses[chain[newestLive]].role != .live { newestLive -= 1 }
        while let index = requests.pop(&memoryWaiters) { wakeWrite(index) }
        guard newestLive < 0 else { return }
        // What was to be preserved in slices goes to the origin as it is.
        while let index = requests.pop(&yielded) { wake(index) }
    }

    private func purgeStorageQueue(of layer: LayerIndex) {
        var buffer = storeQueue.head
        while buffer != .none {
            let following = buffers.next(after: buffer)
            let note = buffers[buffer]
            if note.layer == layer {
                dequeueForStorage(buffer)
                layers[layer].forget(Int(note.position), of: note.record)
                buffers.free(buffer)
            }
            buffer = following
        }
    }

    /// Nobody wants these blocks stored any more. Their slots and buffers are the storage write's
    /// until it ends, and however it ends nothing looks for their layer in the chain again.
    private func orphanBuffersWriting(of layer: LayerIndex) {
        guard preservingBatches > 0 else { return }
        for index in 0..<limits.batchCount
        where batches[index].isUsed && batches[index].purpose == .preserving {
            for buffer in buffers(of: BatchIndex(UInt32(index))) {
                let note = buffers[buffer]
                guard note.state == .writing, note.layer == layer else { continue }
                layers[layer].forget(Int(note.position), of: note.record)
                buffers[buffer].state = .orphaned
            }
        }
    }

    // MARK: Merging

    /// Chain position of the oldest merging layer.
    func mergingPosition() -> Int? {
        for position in 0..<chainCount where layerUses[chain[position]].role == .merging {
            return position
        }
        return nil
    }

    /// Hands what the layer `from` knows of `chunk` to the older layer `into`. False when the
    /// older one is at its metadata limit.
    func merge(chunk: UInt64, from: LayerIndex, into: LayerIndex) -> Bool {
        guard let source = layers[from].find(chunk) else { return true }
        return merge(record: source, from: from, into: into)
    }

    private func merge(record source: UInt32, from: LayerIndex, into: LayerIndex) -> Bool {
        let old = layers[from].record(source)
        guard !old.pointee.isMerged else { return true }
        guard
            let target = layers[into].findOrInsert(
                old.pointee.chunk, savedEntry: old.pointee.savedEntry)
        else { return false }
        let new = layers[into].record(target)
        var rest = old.pointee.preserved
        while rest != 0 {
            let position = rest.trailingZeroBitCount
            let bit: UInt16 = 1 << UInt16(position)
            rest &= ~bit
            counters.mergedBlockCount += 1
            if new.pointee.preserved & bit != 0 {
                freeBlock(position, of: source, in: from)
            } else if old.pointee.zero & bit != 0 {
                layers[from].forget(position, of: source)
                layers[into].preserveZero(bit, of: target)
            } else {
                let place = layers[from].place(of: position, in: source)
                layers[from].forget(position, of: source)
                layers[into].preserve(position, of: target, at: place)
                if place.isInMemory {
                    buffers[place.buffer].layer = into
                    buffers[place.buffer].record = target
                }
            }
        }
        if layerUses[from].copyCount > 0 {
            handOverCopies(of: source, from: from, to: target, into: into)
        }
        layers[from].recordMerged(source)
        return true
    }

    /// The copies of a record go where its blocks went. Those of blocks that the heir has preserved
    /// too, which no mask shows: they are dropped there when they end.
    private func handOverCopies(
        of source: UInt32, from: LayerIndex, to target: UInt32, into: LayerIndex
    ) {
        var rest = layerUses[from].copyCount
        for index in 0..<limits.copyCount
        where copies[index].isUsed && !copies[index].isOrphaned && copies[index].layer == from {
            if copies[index].record == source {
                copies[index].layer = into
                copies[index].record = target
                layerUses[from].copyCount -= 1
                layerUses[into].copyCount += 1
            }
            rest -= 1
            if rest == 0 { break }
        }
        let new = layers[into].record(target)
        new.pointee.copying |= layers[from].record(source).pointee.copying
        layers[from].record(source).pointee.copying = 0
    }

    /// Frees what a preserved block takes, wherever it is, and forgets it.
    func freeBlock(_ position: Int, of record: UInt32, in layer: LayerIndex) {
        if layers[layer].record(record).pointee.zero & 1 << UInt16(position) == 0 {
            let place = layers[layer].place(of: position, in: record)
            if place.isInMemory {
                switch buffers[place.buffer].state {
                case .queued:
                    dequeueForStorage(place.buffer)
                    buffers.free(place.buffer)
                case .writing:
                    // The slot and the buffer are the storage write's until it ends.
                    buffers[place.buffer].state = .orphaned
                case .free, .copying, .orphaned, .imageWrite:
                    preconditionFailure("a preserved block in memory is queued or being written")
                }
            } else {
                free(place.slot)
            }
        }
        layers[layer].forget(position, of: record)
    }

    // MARK: Slices

    func performSlice() {
        if let position = mergingPosition() { mergeSlice(position) }
        guard freeingCount > 0, !isFreeingHeldUp else { return }
        for layer in 0..<layerCapacity where layerUses[layer].role == .freeing {
            if freeSlice(LayerIndex(UInt16(layer))) { return }
        }
        isFreeingHeldUp = true
    }

    private func mergeSlice(_ position: Int) {
        // The chain begins with a live layer, so an older neighbour is always there; all merging
        // layers between the two were merged before, since the oldest goes first.
        precondition(position > 0, "a merging layer has an heir")
        let from = chain[position]
        let into = chain[position - 1]
        let end = min(
            layerUses[from].cursor + UInt32(recordsPerSlice), layers[from].recordCount)
        while layerUses[from].cursor < end {
            guard merge(record: layerUses[from].cursor, from: from, into: into) else {
                giveUp(upTo: position - 1, fault: .noMemory)
                return
            }
            layerUses[from].cursor += 1
        }
        guard end == layers[from].recordCount else { return }
        for index in position + 1..<max(chainCount, position + 1) {
            chain[index - 1] = chain[index]
        }
        chainCount -= 1
        startFreeing(from)
        chainChanged()
    }

    /// False when only copies or storage writes under way are left to wait for.
    private func freeSlice(_ layer: LayerIndex) -> Bool {
        let end = min(
            layerUses[layer].cursor + UInt32(recordsPerSlice), layers[layer].recordCount)
        while layerUses[layer].cursor < end {
            let record = layerUses[layer].cursor
            var rest = layers[layer].record(record).pointee.preserved
            while rest != 0 {
                freeBlock(rest.trailingZeroBitCount, of: record, in: layer)
                rest &= rest &- 1
            }
            layerUses[layer].cursor += 1
        }
        guard end == layers[layer].recordCount || layers[layer].isShrinking else { return true }
        guard !hasCopies(of: layer), !hasBuffersWriting(of: layer) else {
            return false
        }
        guard layers[layer].deallocate(slabs: slabsPerSlice) else { return true }
        layerUses[layer].role = .free
        freeingCount -= 1
        finishDestroying(layerUses[layer].snapshot)
        return true
    }

    private func hasCopies(of layer: LayerIndex) -> Bool {
        guard copiesInUse > 0 else { return false }
        for index in 0..<limits.copyCount
        where copies[index].isUsed && copies[index].layer == layer { return true }
        return false
    }

    private func hasBuffersWriting(of layer: LayerIndex) -> Bool {
        for index in 0..<limits.batchCount where batches[index].isUsed {
            guard batches[index].purpose == .preserving else { continue }
            for buffer in buffers(of: BatchIndex(UInt32(index)))
            where buffers[buffer].layer == layer { return true }
        }
        return false
    }

    /// Says that the snapshot is gone once its layer, overlay and requests are and no extent is on
    /// its way to it: its space is free once it is destroyed.
    func finishDestroying(_ snapshot: SnapshotIndex) {
        let record = snapshots.pointer(to: snapshot)
        guard record.pointee.state == .destroying, record.pointee.requestCount == 0 else { return }
        if let overlay = record.pointee.overlay {
            startFreeing(overlay)
            record.pointee.overlay = nil
        }
        for layer in 0..<layerCapacity
        where layerUses[layer].role != .free && layerUses[layer].snapshot == snapshot { return }
        guard !sources.isAsking(of: snapshot) else { return }
        record.pointee.state = .free
        effects.append(.snapshotGone(snapshot))
    }

    /// A free layer slot turned into an empty layer.
    func openLayer(role: LayerUse.Role, snapshot: SnapshotIndex) -> LayerIndex? {
        for layer in 0..<layerCapacity where layerUses[layer].role == .free {
            (layers + layer).initialize(
                to: DifferenceLayer(byteCountMax: limits.layerByteCountMax))
            layerUses[layer] = LayerUse(role: role, snapshot: snapshot)
            return LayerIndex(UInt16(layer))
        }
        return nil
    }
}
