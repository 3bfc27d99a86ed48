package import BlockModel
package import CopyOnWrite

// Difference storage as the engine uses it: extents by source and purpose, batches of blocks in
// flight, what is freed.

extension SnapshotEngine {
    /// The block buffers of a storage write, in slot order.
    package func buffers(of batch: BatchIndex) -> UnsafeBufferPointer<BufferIndex> {
        UnsafeBufferPointer(
            start: batchBuffers + Int(batch.rawValue) * Self.batchBlockCountMax,
            count: Int(batches[Int(batch.rawValue)].count))
    }

    /// Preserved blocks of the device that are in memory only: queued, or being written.
    package var unstoredBlockCount: Int {
        var count = storeCount
        for index in 0..<limits.batchCount
        where batches[index].isUsed && batches[index].purpose == .preserving {
            count += Int(batches[index].count)
        }
        return count
    }

    /// Extents of the source that the device has.
    package func extentCount(of source: SourceIndex) -> UInt32 {
        sources[Int(source.rawValue)].extentCount
    }

    /// A source for a prepared or held snapshot, used when those before it are full; nil at the
    /// bound. Its extents have `extentByteCount` bytes: whole blocks, at most 4 MiB.
    package func sourceAdded(
        to snapshot: SnapshotIndex, extentByteCount: UInt64 = ExtentTable.extentByteCount
    ) -> SourceIndex? {
        precondition(
            extentByteCount > 0 && extentByteCount % blockByteCount == 0, "extents have blocks")
        for index in 0..<limits.sourceCount where !sources[index].isUsed {
            sourceEnd = max(sourceEnd, index + 1)
            sources[index] = SourceRecord()
            sources[index].isUsed = true
            sources[index].snapshot = snapshot.rawValue
            sources[index].slotsPerExtent = UInt32(extentByteCount / blockByteCount)
            let source = UInt16(index)
            var last = snapshots[Int(snapshot.rawValue)].firstSource
            if last == .max {
                snapshots[Int(snapshot.rawValue)].firstSource = source
            } else {
                while sources[Int(last)].next != .max { last = sources[Int(last)].next }
                sources[Int(last)].next = source
            }
            storageImproved()
            return SourceIndex(source)
        }
        return nil
    }

    /// The source has room again, or works again.
    package func spaceAdded(_ source: SourceIndex) {
        let record = sources + Int(source.rawValue)
        guard record.pointee.isUsed else { return }
        record.pointee.state = .usable
        record.pointee.isOverlayFull = false
        storageImproved()
    }

    /// The extent at `byteOffset` of the source belongs to this engine now.
    package func extentGranted(
        _ source: SourceIndex, _ purpose: StoragePurpose, byteOffset: UInt64
    ) {
        let record = sources + Int(source.rawValue)
        precondition(record.pointee.isUsed, "an asking source is in use")
        setAsking(false, source, purpose)
        record.pointee.extentCount += 1
        let extent = extents.add(
            source: source, byteOffset: byteOffset, slotCount: record.pointee.slotsPerExtent)
        if record.pointee.isClosed {
            releaseIf(extents.setOpen(false, extent), extent)
            finishDestroying(record.pointee.snapshot)
        } else {
            set(purpose, of: &record.pointee.ahead, to: extent)
        }
        storageImproved()
    }

    /// No extent: the source is full, or it fails (then nothing more is written to it).
    package func extentRefused(
        _ source: SourceIndex, _ purpose: StoragePurpose, fault: Fault
    ) {
        let record = sources + Int(source.rawValue)
        precondition(record.pointee.isUsed, "an asking source is in use")
        setAsking(false, source, purpose)
        switch purpose {
        case .preserving: if record.pointee.state == .usable { record.pointee.state = .full }
        case .overlay: record.pointee.isOverlayFull = true
        }
        if fault != .noSpace { record.pointee.state = .failed }
        if record.pointee.isClosed {
            drainSource(source)
            finishDestroying(record.pointee.snapshot)
        }
        storageImproved()
    }

    private func storageImproved() {
        // As at the end of a turn: an extent is granted after this turn's end has asked for it.
        pumpStorage(isTurnEnd: true)
        while let index = pop(&imageSpaceWaiters) { wake(index) }
        settle()
    }

    // MARK: The queue of blocks to be stored

    func enqueueForStorage(_ buffer: BufferIndex) {
        let note = buffers.records + Int(buffer.rawValue)
        note.pointee.state = .queued
        note.pointee.next = .max
        note.pointee.previous = storeTail
        if storeTail == .max {
            storeHead = buffer.rawValue
        } else {
            buffers.records[Int(storeTail)].next = buffer.rawValue
        }
        storeTail = buffer.rawValue
        storeCount += 1
    }

    func dequeueForStorage(_ buffer: BufferIndex) {
        let note = buffers.records[Int(buffer.rawValue)]
        precondition(note.state == .queued, "only a queued buffer leaves the queue")
        if note.previous == .max {
            storeHead = note.next
        } else {
            buffers.records[Int(note.previous)].next = note.next
        }
        if note.next == .max {
            storeTail = note.previous
        } else {
            buffers.records[Int(note.next)].previous = note.previous
        }
        storeCount -= 1
    }

    /// Gives queued blocks to storage: full batches as they come, smaller ones at the end of a
    /// turn while little is in flight, so that slow storage sees large writes.
    func pumpStorage(isTurnEnd: Bool) {
        let size = Self.batchBlockCountMax
        while storeCount >= size || (storeCount > 0 && isTurnEnd && preservingBatches < 2) {
            guard freeBatch != .max, preservingBatches < limits.batchCount * 3 / 4 else { return }
            guard batchesLeft > 0 else {
                isStoringPostponed = true
                return
            }
            guard let (slot, count) = takeSlotsForPreserving(min(storeCount, size)) else {
                storageShort()
                return
            }
            shortage = nil
            let index = openBatch(slot, count: count, purpose: .preserving)
            for position in 0..<count {
                let buffer = BufferIndex(storeHead)
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
        shortage = nil
        for index in 0..<sourceEnd
        where sources[index].isUsed && sources[index].isAsking.0 && !sources[index].isClosed {
            return
        }
        var fault = Fault.noSpace
        for index in 0..<sourceEnd
        where sources[index].isUsed && sources[index].state == .failed
            && !sources[index].isOutOfSpace
        {
            fault = .inputOutput
        }
        shortage = fault
        var isThrottled = false
        for position in 0..<chainCount where layerUses[Int(chain[position])].role == .live {
            let snapshot = snapshots[Int(layerUses[Int(chain[position])].snapshot)]
            if snapshot.policy == .throttle { isThrottled = true }
        }
        guard !isThrottled, chainCount > 0 else { return }
        // What cannot be stored lies in the layer of the block at the head of the queue.
        giveUp(upTo: chainPosition(of: buffers.records[Int(storeHead)].layer), fault: fault)
    }

    func openBatch(_ slot: StorageSlot, count: Int, purpose: StoragePurpose) -> UInt32 {
        let index = freeBatch
        freeBatch = batches[Int(index)].next
        batches[Int(index)] = BatchRecord()
        batches[Int(index)].isUsed = true
        batches[Int(index)].purpose = purpose
        batches[Int(index)].count = UInt16(count)
        batches[Int(index)].firstSlot = slot.rawValue
        return index
    }

    func add(_ buffer: BufferIndex, at position: Int, to batch: UInt32) {
        let note = buffers.records + Int(buffer.rawValue)
        note.pointee.state = .writing
        extents.setChecksum(
            note.pointee.checksum,
            of: StorageSlot(batches[Int(batch)].firstSlot + UInt32(position)))
        batchBuffers[Int(batch) * Self.batchBlockCountMax + position] = buffer
    }

    func emitBatch(_ index: UInt32) {
        let batch = batches[Int(index)]
        let (source, byteOffset) = extents.address(of: StorageSlot(batch.firstSlot))
        effects.append(
            .writeStorage(
                BatchIndex(index), source, byteOffset: byteOffset, blockCount: Int(batch.count)))
    }

    /// A storage write ended: `byteCount` bytes or a fault.
    package func storageWriteFinished(_ batch: BatchIndex, byteCount: UInt64, fault: Fault?) {
        let index = batch.rawValue
        precondition(batches[Int(index)].isUsed, "a storage write ends once")
        var outcome = fault
        if fault == nil, byteCount < UInt64(batches[Int(index)].count) * blockByteCount {
            batches[Int(index)].attempts += 1
            if batches[Int(index)].attempts < Self.attemptsMax {
                emitBatch(index)
                return
            }
            outcome = .inputOutput
        }
        let slot = StorageSlot(batches[Int(index)].firstSlot)
        if let outcome { sourceFailed(extents.address(of: slot).source, outcome) }
        switch batches[Int(index)].purpose {
        case .preserving:
            finishPreserving(index, outcome)
            preservingBatches -= 1
        case .overlay:
            finishOverlay(index, outcome)
            overlayBatches -= 1
        }
        batches[Int(index)].isUsed = false
        batches[Int(index)].next = freeBatch
        freeBatch = index
        pumpStorage(isTurnEnd: storeCount > 0 && preservingBatches == 0)
        while let request = pop(&imageSpaceWaiters) { wake(request) }
        settle()
    }

    private func finishPreserving(_ index: UInt32, _ fault: Fault?) {
        for position in 0..<Int(batches[Int(index)].count) {
            let buffer = batchBuffers[Int(index) * Self.batchBlockCountMax + position]
            let slot = StorageSlot(batches[Int(index)].firstSlot + UInt32(position))
            let note = buffers.records[Int(buffer.rawValue)]
            if note.state == .orphaned {
                free(slot)
                buffers.free(buffer)
            } else if fault != nil {
                // The data is still in memory: another source may take it.
                free(slot)
                enqueueForStorage(buffer)
            } else {
                layers[Int(note.layer)].blockMoved(
                    Int(note.position), of: note.record, to: BlockPlace(stored: slot))
                buffers.free(buffer)
            }
        }
    }

    private func sourceFailed(_ source: SourceIndex, _ fault: Fault) {
        // Also when it says ENOSPC: its extents have room, and would be tried again forever.
        let record = sources + Int(source.rawValue)
        record.pointee.state = .failed
        record.pointee.isOutOfSpace = fault == .noSpace
        closeOpenExtents(source)
    }

    // MARK: Slots

    /// Slots in the sources of the newest live snapshot, then in those of the older ones. While a
    /// source of a newer one is only growing, the blocks wait in memory for it, unless writers wait
    /// for that memory already.
    private func takeSlotsForPreserving(_ limit: Int) -> (StorageSlot, Int)? {
        var position = chainCount - 1
        while position >= 0 {
            let use = layerUses[Int(chain[position])]
            if use.role == .live {
                if let taken = takeSlots(limit, of: use.snapshot, for: .preserving) {
                    return taken
                }
                if memoryWaiters.isEmpty, isSpaceComing(use.snapshot, .preserving) { return nil }
            }
            position -= 1
        }
        return nil
    }

    /// True when a source of the snapshot was asked for an extent and has not answered.
    func isSpaceComing(_ snapshot: UInt16, _ purpose: StoragePurpose) -> Bool {
        var index = snapshots[Int(snapshot)].firstSource
        while index != .max {
            let isUsable = sources[Int(index)].state != .failed
            if isUsable, isAsking(SourceIndex(index), purpose) { return true }
            index = sources[Int(index)].next
        }
        return false
    }

    /// Slots in the sources of one snapshot, one source after the other.
    func takeSlots(
        _ limit: Int, of snapshot: UInt16, for purpose: StoragePurpose
    ) -> (StorageSlot, Int)? {
        var index = snapshots[Int(snapshot)].firstSource
        while index != .max {
            let source = SourceIndex(index)
            if sources[Int(index)].state != .failed {
                if let taken = takeSlots(limit, source: source, for: purpose) { return taken }
                // The next source's turn comes when this one is full, not while it grows.
                if isAsking(source, purpose), memoryWaiters.isEmpty { return nil }
            }
            index = sources[Int(index)].next
        }
        return nil
    }

    private func takeSlots(
        _ limit: Int, source: SourceIndex, for purpose: StoragePurpose
    ) -> (StorageSlot, Int)? {
        let record = sources + Int(source.rawValue)
        let open = get(purpose, of: record.pointee.open)
        if open != .max {
            if let taken = extents.take(upTo: limit, of: open) {
                if extents.isNearlyFull(open) { askForExtent(source, purpose) }
                return taken
            }
            set(purpose, of: &record.pointee.open, to: .max)
            releaseIf(extents.setOpen(false, open), open)
        }
        var next = get(purpose, of: record.pointee.ahead)
        set(purpose, of: &record.pointee.ahead, to: .max)
        if next == .max, purpose == .preserving || !record.pointee.isOverlayFull {
            askForExtent(source, purpose)
        }
        if next == .max, isFull(record.pointee, purpose),
            let reusable = extents.findReusable(source: source)
        {
            _ = extents.setOpen(true, reusable)
            next = reusable
        }
        guard next != .max else { return nil }
        set(purpose, of: &record.pointee.open, to: next)
        return extents.take(upTo: limit, of: next)
    }

    private func isFull(_ source: SourceRecord, _ purpose: StoragePurpose) -> Bool {
        source.state == .full || (purpose == .overlay && source.isOverlayFull)
    }

    private func askForExtent(_ source: SourceIndex, _ purpose: StoragePurpose) {
        let record = sources[Int(source.rawValue)]
        guard record.state == .usable, !isFull(record, purpose),
            get(purpose, of: record.ahead) == .max, !isAsking(source, purpose)
        else { return }
        guard extents.extentCount < ExtentTable.extentCountMax else {
            // As many blocks as this device can number: no source has room for more of them.
            switch purpose {
            case .preserving: sources[Int(source.rawValue)].state = .full
            case .overlay: sources[Int(source.rawValue)].isOverlayFull = true
            }
            return
        }
        setAsking(true, source, purpose)
        effects.append(.requestExtent(source, purpose))
    }

    /// The slot's block is not needed any more.
    func free(_ slot: StorageSlot) {
        let extent = ExtentTable.extent(of: slot)
        releaseIf(extents.free(slot), extent)
    }

    func releaseIf(_ isIdle: Bool, _ extent: UInt32) {
        guard isIdle else { return }
        let (source, byteOffset) = extents.release(extent)
        let record = sources + Int(source.rawValue)
        record.pointee.extentCount -= 1
        // What comes back can be asked for again.
        if record.pointee.state == .full { record.pointee.state = .usable }
        record.pointee.isOverlayFull = false
        effects.append(.releaseExtent(source, byteOffset: byteOffset))
        drainSource(source)
    }

    /// The snapshot of these sources is gone: they live until their last block is freed.
    func closeSources(of snapshot: UInt16) {
        var index = snapshots[Int(snapshot)].firstSource
        snapshots[Int(snapshot)].firstSource = .max
        while index != .max {
            let source = SourceIndex(index)
            index = sources[Int(index)].next
            sources[Int(source.rawValue)].isClosed = true
            effects.append(.sourceClosed(source))
            closeOpenExtents(source)
            drainSource(source)
        }
    }

    private func closeOpenExtents(_ source: SourceIndex) {
        let record = sources + Int(source.rawValue)
        let held = [
            record.pointee.open.0, record.pointee.open.1, record.pointee.ahead.0,
            record.pointee.ahead.1,
        ]
        record.pointee.open = (.max, .max)
        record.pointee.ahead = (.max, .max)
        let state = record.pointee.state
        for extent in held where extent != .max {
            releaseIf(extents.setOpen(false, extent), extent)
        }
        if record.pointee.isUsed { record.pointee.state = state }
    }

    private func drainSource(_ source: SourceIndex) {
        let record = sources + Int(source.rawValue)
        guard record.pointee.isUsed, record.pointee.isClosed, record.pointee.extentCount == 0,
            !record.pointee.isAskingAny
        else { return }
        record.pointee.isUsed = false
        while sourceEnd > 0, !sources[sourceEnd - 1].isUsed { sourceEnd -= 1 }
        effects.append(.sourceDrained(source))
    }

    private func get(_ purpose: StoragePurpose, of pair: (UInt32, UInt32)) -> UInt32 {
        switch purpose {
        case .preserving: pair.0
        case .overlay: pair.1
        }
    }

    private func set(
        _ purpose: StoragePurpose, of pair: inout (UInt32, UInt32), to extent: UInt32
    ) {
        switch purpose {
        case .preserving: pair.0 = extent
        case .overlay: pair.1 = extent
        }
    }

    func isAsking(_ source: SourceIndex, _ purpose: StoragePurpose) -> Bool {
        switch purpose {
        case .preserving: sources[Int(source.rawValue)].isAsking.0
        case .overlay: sources[Int(source.rawValue)].isAsking.1
        }
    }

    private func setAsking(_ value: Bool, _ source: SourceIndex, _ purpose: StoragePurpose) {
        switch purpose {
        case .preserving: sources[Int(source.rawValue)].isAsking.0 = value
        case .overlay: sources[Int(source.rawValue)].isAsking.1 = value
        }
    }
}
