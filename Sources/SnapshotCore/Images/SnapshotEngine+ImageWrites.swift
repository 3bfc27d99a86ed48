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
        let request = ImageRequest(
            operation: operation, snapshot: snapshot, isOverlay: true, offset: offset,
            length: length)
        guard beginImageRequest(index, request) else { return .refused(fault(of: snapshot)) }
        if snapshots[snapshot].overlay == nil {
            guard let overlay = openLayer(role: .overlay, snapshot: snapshot) else {
                snapshots[snapshot].requestCount -= 1
                imageRequests[index].isUsed = false
                return .refused(.noMemory)
            }
            snapshots[snapshot].overlay = overlay
        }
        let isBlocked = overlapsEarlierWriter(index)
        requests.appendByArrival(index, to: &snapshots[snapshot].writers)
        if isBlocked {
            imageRequests[index].phase = .blocked
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
        place(of: imageRequests[request].buffers.head, request)
    }

    /// The buffer after `buffer` in the same window.
    package func nextBuffer(
        after buffer: BufferIndex, of request: RequestIndex
    ) -> (buffer: BufferIndex, block: UInt64)? {
        place(of: buffers.next(after: buffer), request)
    }

    private func place(
        of buffer: BufferIndex, _ request: RequestIndex
    ) -> (buffer: BufferIndex, block: UInt64)? {
        guard buffer != .none else { return nil }
        let chunkStart = imageRequests[request].cursor / blocksPerChunk * blocksPerChunk
        return (buffer, chunkStart + UInt64(buffers[buffer].position))
    }

    /// The window's buffers hold what is to be written: in the order of `firstBuffer` and
    /// `nextBuffer`, a bit of `zeroMask` and a CRC32C for each.
    package func imageBlocksFilled(
        _ index: RequestIndex, zeroMask: UInt16, checksums: UnsafePointer<UInt32>
    ) {
        let record = imageRequests.pointer(to: index)
        guard case .filling = record.pointee.phase else {
            preconditionFailure("blocks are filled once")
        }
        record.pointee.phase = .running
        record.pointee.step = .storing
        var filled = record.pointee.buffers
        record.pointee.buffers = BufferList()
        var position = 0
        while let buffer = buffers.pop(&filled) {
            if zeroMask & 1 << UInt16(position) != 0 {
                putZero(1 << UInt16(buffers[buffer].position), index)
                buffers.free(buffer)
            } else {
                buffers[buffer].checksum = checksums[position]
                buffers.append(buffer, to: &record.pointee.buffers)
            }
            position += 1
        }
        writeStep(index)
        settle()
    }

    /// An image request that waited continues.
    func imageAdvance(_ index: RequestIndex) {
        switch imageRequests[index].operation {
        case .read: readStep(index)
        case .write, .writeZeroes: writeStep(index)
        case .flush, .discard, .prefetch, .blockStatus:
            preconditionFailure("an image request is a read, a write or a zeroing")
        }
    }

    // MARK: A window of a write

    /// Takes the write as far as it goes now.
    func writeStep(_ index: RequestIndex) {
        let record = imageRequests.pointer(to: index)
        while true {
            if record.pointee.fault == nil,
                !isReadable(record.pointee.snapshot, overlay: true)
            {
                record.pointee.fault = fault(of: record.pointee.snapshot)
            }
            if record.pointee.fault != nil {
                endWrite(index)
                return
            }
            switch record.pointee.step {
            case .window:
                guard record.pointee.cursor * blockByteCount < record.pointee.end else {
                    finishImage(index, nil)
                    return
                }
                guard beginWindow(index) else { return }
            case .reading(let partialBlocks, _):
                guard readPartialBlocks(partialBlocks, index) else { return }
            case .filling:
                if record.pointee.buffers.isEmpty {
                    record.pointee.step = .storing
                } else {
                    record.pointee.phase = .filling
                    effects.append(.fillBlocks(index))
                    return
                }
            case .storing:
                guard storeWindow(index) else { return }
                record.pointee.cursor += record.pointee.touchedCount
                record.pointee.step = .window
            }
        }
    }

    /// Buffers for the window's blocks; whole zeroed blocks need none. False when it waits.
    private func beginWindow(_ index: RequestIndex) -> Bool {
        let record = imageRequests.pointer(to: index)
        let first = record.pointee.cursor
        let chunk = first / blocksPerChunk
        let start = max(record.pointee.offset, first * blockByteCount)
        let end = record.pointee.end
        let touched = blockMask(
            of: chunk, offset: start, end: min(end, (chunk + 1) * chunkByteCount))
        var partial: UInt16 = 0
        if start % blockByteCount != 0 { partial |= touched & (~touched &+ 1) }
        if end < (chunk + 1) * chunkByteCount, end % blockByteCount != 0 {
            partial |= 1 << UInt16((end / blockByteCount) % blocksPerChunk)
        }
        var wanted = record.pointee.operation.isWrite ? touched : partial
        guard wanted == 0 || buffers.canTakeForImage(16) else {
            record.pointee.phase = .waitingForMemory(since: now)
            requests.append(index, to: &imageMemoryWaiters)
            return false
        }
        record.pointee.touchedCount = UInt64(touched.nonzeroBitCount)
        if !record.pointee.operation.isWrite { putZero(touched & ~partial, index) }
        while wanted != 0 {
            let buffer = buffers.takeForImage()
            buffers[buffer].position = UInt8(wanted.trailingZeroBitCount)
            buffers.append(buffer, to: &record.pointee.buffers)
            wanted &= wanted &- 1
        }
        record.pointee.step = .reading(partialBlocks: partial, buffer: nil)
        return true
    }

    /// Reads these blocks into their buffers, one after the other. True when all are there.
    private func readPartialBlocks(_ partialBlocks: UInt16, _ index: RequestIndex) -> Bool {
        let record = imageRequests.pointer(to: index)
        let chunkStart = record.pointee.cursor / blocksPerChunk * blocksPerChunk
        var rest = partialBlocks
        while rest != 0 {
            let position = rest.trailingZeroBitCount
            rest &= rest &- 1
            var buffer = record.pointee.buffers.head
            while Int(buffers[buffer].position) != position { buffer = buffers.next(after: buffer) }
            record.pointee.step = .reading(partialBlocks: rest, buffer: buffer)
            guard readWindow(index, from: chunkStart + UInt64(position), count: 1) else {
                return false
            }
        }
        record.pointee.step = .filling
        return true
    }

    /// Gives the window's buffers to storage. True when all of them are stored.
    private func storeWindow(_ index: RequestIndex) -> Bool {
        let record = imageRequests.pointer(to: index)
        while !record.pointee.buffers.isEmpty {
            guard freeBatch != nil, overlayBatches < max(limits.batchCount / 4, 1) else {
                waitForSpace(index)
                return false
            }
            guard
                let (slot, taken) = takeSlots(
                    record.pointee.buffers.count, of: record.pointee.snapshot, for: .overlay)
            else {
                if sources.isSpaceComing(record.pointee.snapshot, .overlay) {
                    waitForSpace(index)
                } else {
                    record.pointee.fault = .noSpace
                    endWrite(index)
                }
                return false
            }
            let batch = openBatch(slot, count: taken, purpose: .overlay)
            batches[batch].request = index
            var position = 0
            while position < taken, let buffer = buffers.pop(&record.pointee.buffers) {
                add(buffer, at: position, to: batch)
                position += 1
            }
            overlayBatches += 1
            record.pointee.outstanding += 1
            emitBatch(batch)
        }
        if record.pointee.outstanding > 0 {
            record.pointee.phase = .storing
            return false
        }
        return true
    }

    /// When the image write that waits for memory for longest has waited as long as its snapshot's
    /// policy says: storage that takes nothing must not hold it up without limit.
    var imageDeadline: UInt64? {
        guard !imageMemoryWaiters.isEmpty else { return nil }
        let record = imageRequests[imageMemoryWaiters.head]
        guard case .waitingForMemory(let since) = record.phase else {
            preconditionFailure("a request on the list of those without memory waits for it")
        }
        let (time, overflow) = since.addingReportingOverflow(
            snapshots[record.snapshot].limitNanoseconds)
        return overflow ? nil : time
    }

    /// The image writes that waited for memory for too long find no room.
    func endOverdueImageWrites() {
        while let deadline = imageDeadline, deadline <= now,
            let index = requests.pop(&imageMemoryWaiters)
        {
            imageRequests[index].fault = .noSpace
            endWrite(index)
        }
    }

    /// A batch of an overlay was stored, or not.
    func finishOverlay(_ batch: BatchIndex, _ fault: Fault?) {
        let index = batches[batch].request
        let record = imageRequests.pointer(to: index)
        let chunk = record.pointee.cursor / blocksPerChunk
        let overlay = overlay(of: record.pointee.snapshot)
        for position in 0..<Int(batches[batch].count) {
            let buffer = batchBuffers[Int(batch.rawValue) * Self.batchBlockCountMax + position]
            let slot = batches[batch].firstSlot.advanced(by: position)
            let block = Int(buffers[buffer].position)
            if let fault {
                record.pointee.fault = fault
                free(slot)
            } else if let entry = overlayRecord(chunk, overlay) {
                replace(block, of: entry, in: overlay)
                layers[overlay].preserve(block, of: entry, at: BlockPlace(stored: slot))
            } else {
                record.pointee.fault = .noSpace
                free(slot)
            }
            buffers.free(buffer)
        }
        record.pointee.outstanding -= 1
        if record.pointee.outstanding == 0, case .storing = record.pointee.phase {
            wakeImage(index)
        }
    }

    private func endWrite(_ index: RequestIndex) {
        let record = imageRequests.pointer(to: index)
        while let buffer = buffers.pop(&record.pointee.buffers) { buffers.free(buffer) }
        if record.pointee.outstanding > 0 {
            record.pointee.phase = .storing
        } else {
            finishImage(index, record.pointee.fault)
        }
    }

    private func waitForSpace(_ index: RequestIndex) {
        imageRequests[index].phase = .waitingForSpace
        requests.append(index, to: &imageSpaceWaiters)
    }

    /// The overlay of a snapshot that an image write is under way to.
    private func overlay(of snapshot: SnapshotIndex) -> LayerIndex {
        guard let overlay = snapshots[snapshot].overlay else {
            preconditionFailure("an image that is written to has an overlay")
        }
        return overlay
    }

    private func overlayRecord(_ chunk: UInt64, _ overlay: LayerIndex) -> UInt32? {
        layers[overlay].findOrInsert(chunk, savedEntry: 0)
    }

    private func replace(_ block: Int, of entry: UInt32, in overlay: LayerIndex) {
        if layers[overlay].record(entry).pointee.preserved & 1 << UInt16(block) != 0 {
            freeBlock(block, of: entry, in: overlay)
        }
    }

    private func putZero(_ blocks: UInt16, _ index: RequestIndex) {
        guard blocks != 0 else { return }
        let record = imageRequests.pointer(to: index)
        let overlay = overlay(of: record.pointee.snapshot)
        guard let entry = overlayRecord(record.pointee.cursor / blocksPerChunk, overlay) else {
            record.pointee.fault = .noSpace
            return
        }
        var rest = blocks
        while rest != 0 {
            replace(rest.trailingZeroBitCount, of: entry, in: overlay)
            rest &= rest &- 1
        }
        layers[overlay].preserveZero(blocks, of: entry)
    }
}
