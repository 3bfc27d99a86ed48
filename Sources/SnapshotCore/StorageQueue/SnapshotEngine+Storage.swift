package import BlockModel
package import CopyOnWrite
package import EngineState

// Difference storage as the engine uses it: extents by source and purpose, batches of blocks in
// flight, what is freed.

extension SnapshotEngine {
    /// The block buffers of a storage write, in slot order.
    package func buffers(of batch: BatchIndex) -> UnsafeBufferPointer<BufferIndex> {
        UnsafeBufferPointer(
            start: batchBuffers + Int(batch.rawValue) * Self.batchBlockCountMax,
            count: Int(batches[batch].count))
    }

    /// Preserved blocks of the device that are in memory only: queued, or being written.
    package var unstoredBlockCount: Int {
        var count = storeQueue.count
        for index in 0..<limits.batchCount
        where batches[index].isUsed && batches[index].purpose == .preserving {
            count += Int(batches[index].count)
        }
        return count
    }

    /// Extents of the source that the device has.
    package func extentCount(of source: SourceIndex) -> UInt32 { sources.extentCount(of: source) }

    /// A source for a prepared or held snapshot, used when those before it are full; nil at the
    /// bound. Its extents have `extentByteCount` bytes: whole blocks, at most 4 MiB.
    package func sourceAdded(
        to snapshot: SnapshotIndex, extentByteCount: UInt64 = ExtentTable.extentByteCount
    ) -> SourceIndex? {
        guard let source = sources.add(to: snapshot, extentByteCount: extentByteCount) else {
            return nil
        }
        storageImproved()
        return source
    }

    /// The extent at `byteOffset` of the source belongs to this engine now.
    package func extentGranted(
        _ source: SourceIndex, _ purpose: StoragePurpose, byteOffset: UInt64
    ) {
        if let snapshot = sources.granted(source, purpose, byteOffset: byteOffset, &effects) {
            finishDestroying(snapshot)
        }
        storageImproved()
    }

    /// No extent: the source is full, or it fails (then nothing more is written to it).
    package func extentRefused(
        _ source: SourceIndex, _ purpose: StoragePurpose, fault: Fault
    ) {
        if let snapshot = sources.refused(source, purpose, fault: fault, &effects) {
            finishDestroying(snapshot)
        }
        storageImproved()
    }

    private func storageImproved() {
        // As at the end of a turn: an extent is granted after this turn's end has asked for it.
        pumpStorage(isTurnEnd: true)
        while let index = requests.pop(&imageSpaceWaiters) { wakeImage(index) }
        settle()
    }

    // MARK: The queue of blocks to be stored

    func enqueueForStorage(_ buffer: BufferIndex) {
        buffers[buffer].state = .queued
        buffers.append(buffer, to: &storeQueue)
    }

    func dequeueForStorage(_ buffer: BufferIndex) {
        precondition(buffers[buffer].state == .queued, "only a queued buffer leaves the queue")
        buffers.remove(buffer, from: &storeQueue)
    }

    /// Gives queued blocks to storage: full batches as they come, smaller ones at the end of a
    /// turn while little is in flight, so that slow storage sees large writes.
    func pumpStorage(isTurnEnd: Bool) {
        let size = Self.batchBlockCountMax
        while storeQueue.count >= size
            || (!storeQueue.isEmpty && isTurnEnd && preservingBatches < 2)
        {
            guard freeBatch != nil, preservingBatches < limits.batchCount * 3 / 4 else { return }
            guard batchesLeft > 0 else {
                isStoringPostponed = true
                return
            }
            guard let (slot, count) = takeSlotsForPreserving(min(storeQueue.count, size)) else {
                storageShort()
                return
            }
            shortage = nil
            let index = openBatch(slot, count: count, purpose: .preserving)
            for position in 0..<count {
                let buffer = storeQueue.head
                dequeueForStorage(buffer)
                add(buffer, at: position, to: index)
            }
            preservingBatches += 1
            batchesLeft -= 1
            counters.storedByteCount += UInt64(count) * blockByteCount
            emitBatch(index)
        }
    }

    /// No room now. Without anybody to wait for, that is overflow; `throttle` waits for more
    /// room until a writer's time is over, and then the reason is this one.
    private func storageShort() {
        shortage = sources.shortage
        guard let fault = shortage else { return }
        var isThrottled = false
        for position in 0..<chainCount where layerUses[chain[position]].role == .live {
            let snapshot = snapshots[layerUses[chain[position]].snapshot]
            if snapshot.policy == .throttle { isThrottled = true }
        }
        guard !isThrottled, chainCount > 0 else { return }
        // What cannot be stored lies in the layer of the block at the head of the queue.
        giveUp(upTo: chainPosition(of: buffers[storeQueue.head].layer), fault: fault)
    }

    func openBatch(_ slot: StorageSlot, count: Int, purpose: StoragePurpose) -> BatchIndex {
        guard let index = freeBatch else {
            preconditionFailure("a storage write is opened while there is one")
        }
        freeBatch = batches[index].next
        batches[index] = BatchRecord()
        batches[index].isUsed = true
        batches[index].purpose = purpose
        batches[index].count = UInt16(count)
        batches[index].firstSlot = slot
        return index
    }

    func add(_ buffer: BufferIndex, at position: Int, to batch: BatchIndex) {
        buffers[buffer].state = .writing
        sources.setChecksum(
            buffers[buffer].checksum,
            of: batches[batch].firstSlot.advanced(by: position))
        batchBuffers[Int(batch.rawValue) * Self.batchBlockCountMax + position] = buffer
    }

    func emitBatch(_ index: BatchIndex) {
        let batch = batches[index]
        let (source, byteOffset) = sources.address(of: batch.firstSlot)
        effects.append(
            .writeStorage(
                index, source, byteOffset: byteOffset, blockCount: Int(batch.count)))
    }

    /// A storage write ended: `byteCount` bytes or a fault.
    package func storageWriteFinished(_ index: BatchIndex, byteCount: UInt64, fault: Fault?) {
        precondition(batches[index].isUsed, "a storage write ends once")
        isFreeingHeldUp = false
        var outcome = fault
        if fault == nil, byteCount < UInt64(batches[index].count) * blockByteCount {
            batches[index].attempts += 1
            if batches[index].attempts < Self.attemptsMax {
                emitBatch(index)
                return
            }
            outcome = .inputOutput
        }
        let slot = batches[index].firstSlot
        if let outcome { sources.failed(sources.address(of: slot).source, outcome, &effects) }
        switch batches[index].purpose {
        case .preserving:
            finishPreserving(index, outcome)
            preservingBatches -= 1
        case .overlay:
            finishOverlay(index, outcome)
            overlayBatches -= 1
        }
        batches[index].isUsed = false
        batches[index].next = freeBatch
        freeBatch = index
        pumpStorage(isTurnEnd: !storeQueue.isEmpty && preservingBatches == 0)
        while let request = requests.pop(&imageSpaceWaiters) { wakeImage(request) }
        settle()
    }

    private func finishPreserving(_ index: BatchIndex, _ fault: Fault?) {
        for position in 0..<Int(batches[index].count) {
            let buffer = batchBuffers[Int(index.rawValue) * Self.batchBlockCountMax + position]
            let slot = batches[index].firstSlot.advanced(by: position)
            let note = buffers[buffer]
            if note.state == .orphaned {
                free(slot)
                buffers.free(buffer)
            } else if fault != nil {
                // The data is still in memory: another source may take it.
                free(slot)
                enqueueForStorage(buffer)
            } else {
                layers[note.layer].blockMoved(
                    Int(note.position), of: note.record, to: BlockPlace(stored: slot))
                buffers.free(buffer)
            }
        }
    }

    // MARK: Slots

    /// Slots in the sources of the newest live snapshot, then in those of the older ones. While a
    /// source of a newer one is only growing, the blocks wait in memory for it, unless writers wait
    /// for that memory already.
    private func takeSlotsForPreserving(_ limit: Int) -> (StorageSlot, Int)? {
        var position = chainCount - 1
        while position >= 0 {
            let use = layerUses[chain[position]]
            if use.role == .live {
                if let taken = takeSlots(limit, of: use.snapshot, for: .preserving) {
                    return taken
                }
                if memoryWaiters.isEmpty,
                    sources.isSpaceComing(use.snapshot, .preserving)
                {
                    return nil
                }
            }
            position -= 1
        }
        return nil
    }

    /// Slots in the sources of one snapshot.
    func takeSlots(
        _ limit: Int, of snapshot: SnapshotIndex, for purpose: StoragePurpose
    ) -> (StorageSlot, Int)? {
        sources.take(
            upTo: limit, of: snapshot, for: purpose,
            isUrgent: !memoryWaiters.isEmpty, &effects)
    }

    /// The slot's block is not needed any more.
    func free(_ slot: StorageSlot) { sources.free(slot, &effects) }
}
