package import BlockModel
package import CopyOnWrite
package import EngineState

// Image reads, window by window: each block from the overlay, memory, storage or the origin.
//
// A block read from the origin is right if it is still not preserved when its read has ended,
// because a write waits until the old data is in memory. So at the end of a window every such
// block is resolved again; what was preserved meanwhile is read again from there.

/// Where a block of an image is now.
enum ResolvedBlock {
    case origin
    case zero
    case memory(BufferIndex)
    case stored(StorageSlot)
}

extension SnapshotEngine {
    /// A read of an image arrived; its range lies within the image. `overlay`: of the writable
    /// image.
    package func imageReadArrived(
        _ index: RequestIndex, snapshot: SnapshotIndex, overlay: Bool, offset: UInt64,
        length: UInt64, now: UInt64
    ) -> Admission {
        timeAdvanced(to: now)
        let request = ImageRequest(
            operation: .read, snapshot: snapshot, isOverlay: overlay, offset: offset,
            length: length)
        guard beginImageRequest(index, request) else { return .refused(fault(of: snapshot)) }
        readStep(index)
        settle()
        return .taken
    }

    /// Where the origin and storage reads of this image request put their bytes, while one of them
    /// is under way.
    package func target(of request: RequestIndex) -> ImageTarget {
        guard case .reading(_, let buffer?) = imageRequests[request].step else { return .payload }
        return .buffer(buffer)
    }

    /// An origin read of an image request ended: of `offset` and `length` as in its effect.
    package func imageOriginReadFinished(
        _ index: RequestIndex, offset: UInt64, length: UInt64, byteCount: UInt64, fault: Fault?
    ) {
        if fault == nil, byteCount < length, mayRetry(index) {
            effects.append(.readOriginForImage(index, offset: offset, length: length))
            return
        }
        readEnded(index, fault ?? (byteCount < length ? .inputOutput : nil))
        settle()
    }

    /// A storage read of an image request ended: of `slot`, `firstBlock` and `blockCount` as in
    /// its effect, with the CRC32C of each block read (ignored unless all were).
    package func imageStorageReadFinished(
        _ index: RequestIndex, slot: StorageSlot, firstBlock: UInt64, blockCount: Int,
        byteCount: UInt64, fault: Fault?, checksums: UnsafePointer<UInt32>
    ) {
        let expected = UInt64(blockCount) * blockByteCount
        if fault == nil, byteCount < expected, mayRetry(index) {
            emitStorageRead(index, slot, firstBlock, blockCount)
            return
        }
        var lost: Int? = fault != nil || byteCount < expected ? 0 : nil
        if lost == nil {
            for position in 0..<blockCount
            where checksums[position]
                != sources.checksum(of: slot.advanced(by: position))
            {
                lost = position
                break
            }
        }
        if let lost {
            storedBlockLost(
                index, slot.advanced(by: lost),
                block: firstBlock + UInt64(lost), fault ?? .inputOutput)
        }
        sources.readEnded(slot, &effects)
        readEnded(index, lost == nil ? nil : .inputOutput)
        settle()
    }

    private func mayRetry(_ index: RequestIndex) -> Bool {
        imageRequests[index].attempts += 1
        return imageRequests[index].attempts < Self.attemptsMax
    }

    // MARK: Windows

    /// Reads window after window until one has to wait for its reads.
    func readStep(_ index: RequestIndex) {
        let record = imageRequests.pointer(to: index)
        let endBlock = (record.pointee.end - 1) / blockByteCount + 1
        while true {
            guard isReadable(record.pointee.snapshot, overlay: record.pointee.isOverlay) else {
                finishImage(index, fault(of: record.pointee.snapshot))
                return
            }
            guard record.pointee.cursor < endBlock else {
                finishImage(index, nil)
                return
            }
            let isFirst = record.pointee.cursor == record.pointee.offset / blockByteCount
            guard isFirst || imageBlocksLeft > 0 else {
                giveWay(image: index)
                return
            }
            let count = min(limits.imageWindowBlockCount, endBlock - record.pointee.cursor)
            imageBlocksLeft -= Int(count)
            guard readWindow(index, from: record.pointee.cursor, count: count) else { return }
            record.pointee.cursor += count
        }
    }

    /// Emits the reads of a window. True when nothing has to be waited for.
    func readWindow(_ index: RequestIndex, from start: UInt64, count: UInt64) -> Bool {
        let record = imageRequests.pointer(to: index)
        record.pointee.window.firstBlock = start
        record.pointee.window.blockCount = UInt32(count)
        record.pointee.window.fromOrigin = InlineArray(repeating: .max)
        record.pointee.attempts = 0
        emitReads(index, isFirst: true)
        if record.pointee.outstanding == 0 { return true }
        record.pointee.phase = .reading
        return false
    }

    private func readEnded(_ index: RequestIndex, _ fault: Fault?) {
        let record = imageRequests.pointer(to: index)
        guard case .reading = record.pointee.phase else {
            preconditionFailure("a read ends while it is waited for")
        }
        precondition(record.pointee.outstanding > 0, "a read ends once")
        record.pointee.outstanding -= 1
        if record.pointee.fault == nil { record.pointee.fault = fault }
        guard record.pointee.outstanding == 0 else { return }
        if record.pointee.fault == nil,
            isReadable(record.pointee.snapshot, overlay: record.pointee.isOverlay)
        {
            emitReads(index, isFirst: false)
            if record.pointee.outstanding > 0 { return }
        }
        record.pointee.phase = .running
        if !record.pointee.operation.isRead {
            writeStep(index)
        } else if let fault = record.pointee.fault {
            finishImage(index, fault)
        } else {
            record.pointee.cursor += UInt64(record.pointee.window.blockCount)
            readStep(index)
        }
    }

    /// First: every block of the window from where it is; blocks of the origin keep their bit.
    /// Then: those with a bit that were preserved meanwhile; afterwards no bit is left.
    private func emitReads(_ index: RequestIndex, isFirst: Bool) {
        let record = imageRequests.pointer(to: index)
        let start = record.pointee.window.firstBlock
        let count = UInt64(record.pointee.window.blockCount)
        var bits = record.pointee.window.fromOrigin
        record.pointee.window.fromOrigin = InlineArray(repeating: 0)
        var run = ReadRun()
        var position: UInt64 = 0
        while position < count {
            let block = start + position
            let end = min(count, position + blocksPerChunk - block % blocksPerChunk)
            if isUntouched(
                block / blocksPerChunk, of: record.pointee.snapshot,
                overlay: record.pointee.isOverlay)
            {
                // One look-up for each chunk tells what was not overwritten.
                let added = end - position
                if isFirst, !run.extend(with: .origin, block: block, count: added) {
                    emit(run, index)
                    run = ReadRun(.origin, block: block, count: added)
                }
                position = end
                continue
            }
            for position in position..<end {
                let bit: UInt64 = 1 << (position & 63)
                guard bits[Int(position >> 6)] & bit != 0 else { continue }
                let block = start + position
                let place = resolve(
                    block, of: record.pointee.snapshot, overlay: record.pointee.isOverlay)
                switch place {
                case .origin:
                    // The second time the origin's bytes are confirmed.
                    if !isFirst { continue }
                case .zero, .memory, .stored:
                    bits[Int(position >> 6)] &= ~bit
                }
                if !run.extend(with: place, block: block, count: 1) {
                    emit(run, index)
                    run = ReadRun(place, block: block, count: 1)
                }
            }
            position = end
        }
        emit(run, index)
        if isFirst { record.pointee.window.fromOrigin = bits }
    }

    private func emit(_ run: ReadRun, _ index: RequestIndex) {
        guard run.count > 0 else { return }
        let record = imageRequests.pointer(to: index)
        switch run.place {
        case .origin:
            var from = run.firstBlock * blockByteCount
            var to = (run.firstBlock + run.count) * blockByteCount
            switch target(of: index) {
            case .payload:
                from = max(from, record.pointee.offset)
                to = min(to, record.pointee.end)
            case .buffer:
                to = min(to, snapshots[record.pointee.snapshot].size)
            }
            record.pointee.outstanding += 1
            effects.append(.readOriginForImage(index, offset: from, length: to - from))
        case .zero:
            effects.append(
                .fillZero(
                    index, firstBlock: run.firstBlock, blockCount: Int(run.count),
                    into: target(of: index)))
        case .memory(let buffer):
            effects.append(
                .copyFromMemory(
                    index, buffer, block: run.firstBlock, into: target(of: index)))
        case .stored(let slot):
            record.pointee.outstanding += 1
            sources.readBegan(slot)
            emitStorageRead(index, slot, run.firstBlock, Int(run.count))
        }
    }

    private func emitStorageRead(
        _ index: RequestIndex, _ slot: StorageSlot, _ firstBlock: UInt64, _ blockCount: Int
    ) {
        let (source, byteOffset) = sources.address(of: slot)
        effects.append(
            .readStorageForImage(
                index, source, byteOffset: byteOffset, slot: slot,
                firstBlock: firstBlock, blockCount: blockCount))
    }

    /// True when no layer of the image has anything of the chunk: its blocks are the origin's.
    func isUntouched(_ chunk: UInt64, of snapshot: SnapshotIndex, overlay: Bool) -> Bool {
        let record = snapshots.pointer(to: snapshot)
        if overlay, let own = record.pointee.overlay, layers[own].find(chunk) != nil {
            return false
        }
        for index in firstPosition(of: record.pointee)..<chainCount
        where layers[chain[index]].find(chunk) != nil {
            return false
        }
        return true
    }

    /// Where the block of the image is at this moment.
    func resolve(_ block: UInt64, of snapshot: SnapshotIndex, overlay: Bool) -> ResolvedBlock {
        let chunk = block / blocksPerChunk
        let position = Int(block % blocksPerChunk)
        let record = snapshots[snapshot]
        if overlay, let own = record.overlay, let found = find(position, of: chunk, in: own) {
            return found
        }
        for index in firstPosition(of: record)..<chainCount {
            if let found = find(position, of: chunk, in: chain[index]) { return found }
        }
        return .origin
    }

    /// Where the chain begins for the image of a held snapshot.
    func firstPosition(of snapshot: SnapshotRecord) -> Int {
        guard let layer = snapshot.layer else {
            preconditionFailure("a held snapshot has a layer")
        }
        return chainPosition(of: layer)
    }

    private func find(_ position: Int, of chunk: UInt64, in layer: LayerIndex) -> ResolvedBlock? {
        guard let entry = layers[layer].find(chunk) else { return nil }
        let bit: UInt16 = 1 << UInt16(position)
        let record = layers[layer].record(entry)
        guard record.pointee.preserved & bit != 0 else { return nil }
        if record.pointee.zero & bit != 0 { return .zero }
        let place = layers[layer].place(of: position, in: entry)
        return place.isInMemory ? .memory(place.buffer) : .stored(place.slot)
    }

    // MARK: Loss

    /// A stored block could not be read back, or is not what was stored.
    private func storedBlockLost(
        _ index: RequestIndex, _ slot: StorageSlot, block: UInt64, _ fault: Fault
    ) {
        let record = imageRequests[index]
        let chunk = block / blocksPerChunk
        let position = Int(block % blocksPerChunk)
        if record.isOverlay, let overlay = snapshots[record.snapshot].overlay,
            holds(slot, position, chunk, overlay)
        {
            snapshots[record.snapshot].isOverlayLost = true
            effects.append(.overlayCorrupted(record.snapshot, fault))
            return
        }
        for index in 0..<chainCount where holds(slot, position, chunk, chain[index]) {
            giveUp(upTo: index, fault: fault)
            return
        }
        // Freed while it was read: this was the last user.
    }

    private func holds(
        _ slot: StorageSlot, _ position: Int, _ chunk: UInt64, _ layer: LayerIndex
    ) -> Bool {
        switch find(position, of: chunk, in: layer) {
        case .stored(let found): found == slot
        case .origin, .zero, .memory, nil: false
        }
    }
}

/// Neighbouring blocks of a window that one read can fetch.
private struct ReadRun {
    var place = ResolvedBlock.origin
    var firstBlock: UInt64 = 0
    var count: UInt64 = 0

    init() {}

    init(_ place: ResolvedBlock, block: UInt64, count: UInt64) {
        self.place = place
        firstBlock = block
        self.count = count
    }

    /// True when the blocks from `block` belong to the run and were added.
    mutating func extend(with next: ResolvedBlock, block: UInt64, count added: UInt64) -> Bool {
        guard count > 0, block == firstBlock + count else { return false }
        switch (place, next) {
        case (.origin, .origin), (.zero, .zero):
            break
        case (.stored(let first), .stored(let slot)):
            guard slot == first.advanced(by: Int(count)),
                ExtentTable.extent(of: slot) == ExtentTable.extent(of: first)
            else { return false }
        case (.origin, _), (.zero, _), (.memory, _), (.stored, _):
            return false
        }
        count += added
        return true
    }
}
