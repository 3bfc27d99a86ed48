package import BlockModel
package import CopyOnWrite
package import EngineState

// Writes through an image, into the overlay of that image alone.
//
//   behind earlier writes of the same blocks -> per chunk: buffers -> partial blocks read ->
//   payload laid over -> stored in fresh slots -> overlay switched to them -> next chunk
//
// A block is never rewritten in place: a reader of the old slot finishes with the old block.
// A write that finds no room gets ENOSPC and corrupts nothing.

extension SnapshotEngine {
    /// A write or zeroing of a writable image arrived; its range lies within the image.
    package func imageWriteArrived(
        _ index: RequestIndex, snapshot: SnapshotIndex, operation: RequestOperation,
        offset: UInt64, length: UInt64, now: UInt64
    ) -> Admission {
        timeAdvanced(to: now)
        precondition(
            operation == .write || operation == .writeZeroes, "an image is written or zeroed")
        let number = snapshot.rawValue
        guard beginImageRequest(index, number, true, offset, length) else {
            return .refused(fault(of: number))
        }
        requests[index].operation = operation
        if snapshots[Int(number)].overlay == .max {
            guard let overlay = openLayer(role: .overlay, snapshot: number) else {
                snapshots[Int(number)].requestCount -= 1
                requests[index].phase = .idle
                return .refused(.noMemory)
            }
            snapshots[Int(number)].overlay = overlay
        }
        let isBlocked = overlapsEarlierWriter(index)
        requests.appendByArrival(index, to: &snapshots[Int(number)].writers)
        if isBlocked {
            requests[index].phase = .imageBlocked
        } else {
            writeStep(index)
            settle()
        }
        return .taken
    }

    /// The first buffer of an image write's window, for `fillBlocks`; in block order.
    package func firstBuffer(
        of request: RequestIndex
    ) -> (buffer: BufferIndex, block: UInt64)? {
        note(of: requests[request].firstBuffer, request)
    }

    /// The buffer after `buffer` in the same window.
    package func nextBuffer(
        after buffer: BufferIndex, of request: RequestIndex
    ) -> (buffer: BufferIndex, block: UInt64)? {
        note(of: buffers.records[Int(buffer.rawValue)].next, request)
    }

    private func note(
        of buffer: UInt32, _ request: RequestIndex
    ) -> (buffer: BufferIndex, block: UInt64)? {
        guard buffer != .max else { return nil }
        let record = requests[request]
        let chunkStart = record.startCursor / blocksPerChunk * blocksPerChunk
        let position = buffers.records[Int(buffer)].position
        return (BufferIndex(buffer), chunkStart + UInt64(position))
    }

    /// The window's buffers hold what is to be written: in the order of `firstBuffer` and
    /// `nextBuffer`, a bit of `zeroMask` and a CRC32C for each.
    package func imageBlocksFilled(
        _ index: RequestIndex, zeroMask: UInt16, checksums: UnsafePointer<UInt32>
    ) {
        let record = requests.pointer(to: index)
        precondition(record.pointee.phase == .imageFilling, "blocks are filled once")
        record.pointee.phase = .idle
        record.pointee.step = .storing
        var position = 0
        var buffer = record.pointee.firstBuffer
        record.pointee.firstBuffer = .max
        record.pointee.lastBuffer = .max
        while buffer != .max {
            let next = buffers.records[Int(buffer)].next
            if zeroMask & 1 << UInt16(position) != 0 {
                putZero(1 << UInt16(buffers.records[Int(buffer)].position), index)
                buffers.free(BufferIndex(buffer))
            } else {
                buffers.records[Int(buffer)].checksum = checksums[position]
                chainBuffer(buffer, index)
            }
            buffer = next
            position += 1
        }
        writeStep(index)
        settle()
    }

    /// An image request that waited continues.
    func imageAdvance(_ index: RequestIndex) {
        switch requests[index].operation {
        case .read: readStep(index)
        case .write, .writeZeroes: writeStep(index)
        case .flush, .discard, .prefetch, .blockStatus:
            preconditionFailure("an image request is a read, a write or a zeroing")
        }
    }

    // MARK: A window of a write

    /// Takes the write as far as it goes now.
    func writeStep(_ index: RequestIndex) {
        let record = requests.pointer(to: index)
        while true {
            if record.pointee.fault == 0,
                !isReadable(record.pointee.snapshot, overlay: true)
            {
                record.pointee.fault = fault(of: record.pointee.snapshot).errnoValue
            }
            if record.pointee.fault != 0 {
                endWrite(index)
                return
            }
            switch record.pointee.step {
            case .window:
                let end = record.pointee.offset + record.pointee.length
                guard record.pointee.startCursor * blockByteCount < end else {
                    finishImage(index, nil)
                    return
                }
                guard beginWindow(index) else { return }
            case .reading:
                guard readPartialBlocks(index) else { return }
            case .filling:
                if record.pointee.firstBuffer == .max {
                    record.pointee.step = .storing
                } else {
                    record.pointee.phase = .imageFilling
                    effects.append(.fillBlocks(index))
                    return
                }
            case .storing:
                guard storeWindow(index) else { return }
                record.pointee.startCursor += UInt64(record.pointee.partEnd)
                record.pointee.step = .window
            }
        }
    }

    /// Buffers for the window's blocks; whole zeroed blocks need none. False when it waits.
    private func beginWindow(_ index: RequestIndex) -> Bool {
        let record = requests.pointer(to: index)
        let first = record.pointee.startCursor
        let chunk = first / blocksPerChunk
        let start = max(record.pointee.offset, first * blockByteCount)
        let end = record.pointee.offset + record.pointee.length
        let touched = blockMask(
            of: chunk, offset: start, end: min(end, (chunk + 1) * chunkByteCount))
        var partial: UInt16 = 0
        if start % blockByteCount != 0 { partial |= touched & (~touched &+ 1) }
        if end < (chunk + 1) * chunkByteCount, end % blockByteCount != 0 {
            partial |= 1 << UInt16((end / blockByteCount) % blocksPerChunk)
        }
        var wanted = record.pointee.operation == .write ? touched : partial
        guard wanted == 0 || buffers.canTakeForImage(16) else {
            record.pointee.phase = .imageWaitingForMemory
            record.pointee.waitedSince = now
            requests.append(index, to: &imageMemoryWaiters)
            return false
        }
        record.pointee.partEnd = UInt64(touched.nonzeroBitCount)
        record.pointee.partialBlocks = partial
        if record.pointee.operation == .writeZeroes { putZero(touched & ~partial, index) }
        while wanted != 0 {
            let buffer = buffers.takeForImage().rawValue
            buffers.records[Int(buffer)].position = UInt8(wanted.trailingZeroBitCount)
            chainBuffer(buffer, index)
            wanted &= wanted &- 1
        }
        record.pointee.step = .reading
        return true
    }

    /// Reads the next partial block into its buffer. True when all are there.
    private func readPartialBlocks(_ index: RequestIndex) -> Bool {
        let record = requests.pointer(to: index)
        while record.pointee.partialBlocks != 0 {
            let position = record.pointee.partialBlocks.trailingZeroBitCount
            record.pointee.partialBlocks &= record.pointee.partialBlocks &- 1
            var buffer = record.pointee.firstBuffer
            while Int(buffers.records[Int(buffer)].position) != position {
                buffer = buffers.records[Int(buffer)].next
            }
            record.pointee.targetBuffer = buffer
            let chunkStart = record.pointee.startCursor / blocksPerChunk * blocksPerChunk
            guard readWindow(index, from: chunkStart + UInt64(position), count: 1) else {
                return false
            }
        }
        record.pointee.targetBuffer = .max
        record.pointee.step = .filling
        return true
    }

    /// Gives the window's buffers to storage. True when all of them are stored.
    private func storeWindow(_ index: RequestIndex) -> Bool {
        let record = requests.pointer(to: index)
        while record.pointee.firstBuffer != .max {
            var count = 0
            var buffer = record.pointee.firstBuffer
            while buffer != .max {
                count += 1
                buffer = buffers.records[Int(buffer)].next
            }
            guard freeBatch != nil, overlayBatches < max(limits.batchCount / 4, 1) else {
                waitForSpace(index)
                return false
            }
            guard
                let (slot, taken) = takeSlots(count, of: record.pointee.snapshot, for: .overlay)
            else {
                if sources.isSpaceComing(SnapshotIndex(record.pointee.snapshot), .overlay) {
                    waitForSpace(index)
                } else {
                    record.pointee.fault = Fault.noSpace.errnoValue
                    endWrite(index)
                }
                return false
            }
            let batch = openBatch(slot, count: taken, purpose: .overlay)
            batches[batch].request = index
            for position in 0..<taken {
                let buffer = record.pointee.firstBuffer
                record.pointee.firstBuffer = buffers.records[Int(buffer)].next
                add(BufferIndex(buffer), at: position, to: batch)
            }
            overlayBatches += 1
            record.pointee.outstanding += 1
            emitBatch(batch)
        }
        record.pointee.lastBuffer = .max
        if record.pointee.outstanding > 0 {
            record.pointee.phase = .imageStoring
            return false
        }
        return true
    }

    /// When the image write that waits for memory for longest has waited as long as its snapshot's
    /// policy says: storage that takes nothing must not hold it up without limit.
    var imageDeadline: UInt64? {
        guard !imageMemoryWaiters.isEmpty else { return nil }
        let record = requests[imageMemoryWaiters.head]
        let (time, overflow) = record.waitedSince.addingReportingOverflow(
            snapshots[Int(record.snapshot)].limitNanoseconds)
        return overflow ? .max : time
    }

    /// The image writes that waited for memory for too long find no room.
    func endOverdueImageWrites() {
        while let deadline = imageDeadline, deadline <= now,
            let index = requests.pop(&imageMemoryWaiters)
        {
            requests[index].fault = Fault.noSpace.errnoValue
            endWrite(index)
        }
    }

    /// A batch of an overlay was stored, or not.
    func finishOverlay(_ batch: BatchIndex, _ fault: Fault?) {
        let index = batches[batch].request
        let record = requests.pointer(to: index)
        let chunk = record.pointee.startCursor / blocksPerChunk
        let overlay = Int(snapshots[Int(record.pointee.snapshot)].overlay)
        for position in 0..<Int(batches[batch].count) {
            let buffer = batchBuffers[Int(batch.rawValue) * Self.batchBlockCountMax + position]
            let slot = StorageSlot(batches[batch].firstSlot + UInt32(position))
            let block = Int(buffers.records[Int(buffer.rawValue)].position)
            if let fault {
                record.pointee.fault = fault.errnoValue
                free(slot)
            } else if let entry = overlayRecord(chunk, overlay) {
                replace(block, of: entry, in: overlay)
                layers[overlay].preserve(block, of: entry, at: BlockPlace(stored: slot))
            } else {
                record.pointee.fault = Fault.noSpace.errnoValue
                free(slot)
            }
            buffers.free(buffer)
        }
        record.pointee.outstanding -= 1
        if record.pointee.outstanding == 0, record.pointee.phase == .imageStoring { wake(index) }
    }

    private func endWrite(_ index: RequestIndex) {
        let record = requests.pointer(to: index)
        while record.pointee.firstBuffer != .max {
            let buffer = record.pointee.firstBuffer
            record.pointee.firstBuffer = buffers.records[Int(buffer)].next
            buffers.free(BufferIndex(buffer))
        }
        record.pointee.lastBuffer = .max
        if record.pointee.outstanding > 0 {
            record.pointee.phase = .imageStoring
        } else {
            finishImage(index, Fault(errnoValue: record.pointee.fault))
        }
    }

    private func waitForSpace(_ index: RequestIndex) {
        requests[index].phase = .imageWaitingForSpace
        requests.append(index, to: &imageSpaceWaiters)
    }

    private func overlayRecord(_ chunk: UInt64, _ overlay: Int) -> UInt32? {
        layers[overlay].findOrInsert(chunk, savedEntry: 0)
    }

    private func replace(_ block: Int, of entry: UInt32, in overlay: Int) {
        if layers[overlay].record(entry).pointee.preserved & 1 << UInt16(block) != 0 {
            freeBlock(block, of: entry, in: overlay)
        }
    }

    private func putZero(_ blocks: UInt16, _ index: RequestIndex) {
        guard blocks != 0 else { return }
        let record = requests.pointer(to: index)
        let overlay = Int(snapshots[Int(record.pointee.snapshot)].overlay)
        guard let entry = overlayRecord(record.pointee.startCursor / blocksPerChunk, overlay)
        else {
            record.pointee.fault = Fault.noSpace.errnoValue
            return
        }
        var rest = blocks
        while rest != 0 {
            replace(rest.trailingZeroBitCount, of: entry, in: overlay)
            rest &= rest &- 1
        }
        layers[overlay].preserveZero(blocks, of: entry)
    }

    private func chainBuffer(_ buffer: UInt32, _ index: RequestIndex) {
        let record = requests.pointer(to: index)
        buffers.records[Int(buffer)].next = .max
        if record.pointee.firstBuffer == .max {
            record.pointee.firstBuffer = buffer
        } else {
            buffers.records[Int(record.pointee.lastBuffer)].next = buffer
        }
        record.pointee.lastBuffer = buffer
    }
}
