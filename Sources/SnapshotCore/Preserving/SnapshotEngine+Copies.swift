package import BlockModel
internal import ChangeTracking
package import CopyOnWrite
package import EngineState

// Preserving: which blocks a write needs copied, the copies in progress, and who waits for them.

extension SnapshotEngine {
    /// The block buffers of a copy, in block order.
    package func buffers(of copy: CopyIndex) -> UnsafeBufferPointer<BufferIndex> {
        UnsafeBufferPointer(
            start: copyBuffers + Int(copy.rawValue) * 16,
            count: Int(copies[copy].count))
    }

    /// The origin read of a copy ended: `byteCount` bytes or a fault. On full success `zeroMask`
    /// has a bit for each block of the copy that is all zero, and `checksums` the CRC32C of each
    /// block (anything for zero ones).
    package func copyReadFinished(
        _ index: CopyIndex, byteCount: UInt64, fault: Fault?, zeroMask: UInt16,
        checksums: UnsafePointer<UInt32>
    ) {
        precondition(copies[index].isUsed, "a copy's read ends once")
        isFreeingHeldUp = false
        if copies[index].isOrphaned {
            releaseCopy(index, freeBuffers: true)
            settle()
            return
        }
        var outcome = fault
        if fault == nil, byteCount < copyLength(copies[index]) {
            copies[index].attempts += 1
            if copies[index].attempts < Self.attemptsMax {
                emitCopyRead(index)
                return
            }
            outcome = .inputOutput
        }
        if let outcome {
            // Orphans this copy with the rest of its layer and wakes its waiters.
            giveUp(upTo: chainPosition(of: copies[index].layer), fault: outcome)
            precondition(copies[index].isOrphaned, "giving a layer up orphans its copies")
            releaseCopy(index, freeBuffers: true)
        } else {
            keepCopy(index, zeroMask: zeroMask, checksums: checksums)
        }
        settle()
    }

    // MARK: What is needed

    /// Blocks of `chunk` that the newest live image still needs from the origin.
    func neededBlocks(of chunk: UInt64) -> UInt16 {
        var needed = imageMask(of: chunk)
        var position = newestLive
        while needed != 0 && position < chainCount {
            let layer = layers.pointer(to: chain[position])
            if let record = layer.pointee.find(chunk) {
                needed &= ~layer.pointee.record(record).pointee.preserved
            }
            position += 1
        }
        return needed
    }

    /// Blocks of `chunk` that lie in the newest live image.
    private func imageMask(of chunk: UInt64) -> UInt16 {
        let size = snapshots[layerUses[chain[newestLive]].snapshot].size
        if (chunk + 1) * chunkByteCount <= size { return .max }
        guard chunk * chunkByteCount < size else { return 0 }
        return blockMask(of: chunk, offset: 0, end: size)
    }

    /// The chunk's record in the newest live layer, made with the entry saved if there is none;
    /// nil at the metadata limit. What layers above know of the chunk is merged first.
    func touch(_ chunk: UInt64) -> UInt32? {
        var position = newestLive + 1
        while position < chainCount {
            guard merge(chunk: chunk, from: chain[position], into: chain[newestLive])
            else { return nil }
            position += 1
        }
        return layers[chain[newestLive]].findOrInsert(
            chunk, savedEntry: map.entry(of: chunk).rawValue)
    }

    // MARK: Preserving for a write

    /// Starts the copies the piece needs and waits for them. True when all is preserved.
    func preserve(_ index: RequestIndex) -> Bool {
        let record = writes.pointer(to: index)
        let start = record.pointee.pieceStart
        let end = record.pointee.pieceEnd
        let endBlock = (end - 1) / blockByteCount + 1
        let lastChunk = record.pointee.startCursor / blocksPerChunk + limits.chunksPerTurn
        while record.pointee.startCursor < endBlock {
            guard newestLive >= 0 else { return true }
            guard record.pointee.startCursor / blocksPerChunk < lastChunk else {
                // Only a snapshot makes a write so long: its limit runs meanwhile.
                delay(index)
                giveWay(write: index)
                return false
            }
            let chunk = record.pointee.startCursor / blocksPerChunk
            guard let entry = touch(chunk) else {
                giveUp(upTo: newestLive, fault: .noMemory)
                return true
            }
            let layer = layers.pointer(to: chain[newestLive])
            let known = layer.pointee.record(entry).pointee
            let wanted =
                blockMask(of: chunk, offset: start, end: end) & imageMask(of: chunk)
                & ~(known.preserved | known.copying)
            guard startCopies(wanted, of: chunk, record: entry) else {
                record.pointee.phase = .waitingForMemory
                requests.append(index, to: &memoryWaiters)
                delay(index)
                return false
            }
            record.pointee.startCursor = (chunk + 1) * blocksPerChunk
        }
        while record.pointee.waitCursor < endBlock {
            guard newestLive >= 0 else { return true }
            let chunk = record.pointee.waitCursor / blocksPerChunk
            guard let entry = touch(chunk) else {
                giveUp(upTo: newestLive, fault: .noMemory)
                return true
            }
            let copying =
                layers[chain[newestLive]].record(entry).pointee.copying
                & blockMask(of: chunk, offset: start, end: end)
            if copying != 0 {
                wait(index, forCopyOf: copying, record: entry)
                return false
            }
            record.pointee.waitCursor = (chunk + 1) * blocksPerChunk
        }
        return true
    }

    /// False when memory or copy slots ran out before all of `wanted` was started.
    private func startCopies(_ wanted: UInt16, of chunk: UInt64, record entry: UInt32) -> Bool {
        var rest = wanted
        let layer = chain[newestLive]
        let account = newestAccount()
        while rest != 0 {
            guard let index = freeCopy else { return false }
            let first = rest.trailingZeroBitCount
            let run = min((~(rest >> UInt16(first))).trailingZeroBitCount, 16 - first)
            let slots = copyBuffers + Int(index.rawValue) * 16
            var count = 0
            while count < run, let buffer = buffers.take(account: account) {
                slots[count] = buffer
                count += 1
            }
            guard count > 0 else { return false }
            freeCopy = copies[index].next
            newestCopy = index
            copiesInUse += 1
            copies[index] = CopyRecord()
            copies[index].isUsed = true
            copies[index].first = UInt8(first)
            copies[index].count = UInt8(count)
            copies[index].layer = layer
            layerUses[layer].copyCount += 1
            copies[index].record = entry
            copies[index].chunk = chunk
            let mask = copies[index].mask
            layers[layer].record(entry).pointee.copying |= mask
            rest &= ~mask
            emitCopyRead(index)
            counters.copiedBlockCount += UInt64(count)
            counters.copiedByteCount += copyLength(copies[index])
        }
        return true
    }

    private func copyLength(_ copy: CopyRecord) -> UInt64 {
        let offset = copy.chunk * chunkByteCount + UInt64(copy.first) * blockByteCount
        return min(UInt64(copy.count) * blockByteCount, size - offset)
    }

    private func emitCopyRead(_ index: CopyIndex) {
        let copy = copies[index]
        effects.append(
            .readOrigin(
                index,
                offset: copy.chunk * chunkByteCount + UInt64(copy.first) * blockByteCount,
                length: copyLength(copy)))
    }

    private func wait(_ index: RequestIndex, forCopyOf blocks: UInt16, record entry: UInt32) {
        var copy = newestCopy
        var step: UInt32 = 0
        while !isCopy(copy, of: blocks, record: entry) {
            precondition(
                step < limits.copyCount, "a block that is being copied has a copy in progress")
            copy = CopyIndex(step)
            step += 1
        }
        writes[index].phase = .waitingForCopy
        requests.append(index, to: &copies[copy].waiters)
        delay(index)
    }

    private func isCopy(_ index: CopyIndex, of blocks: UInt16, record entry: UInt32) -> Bool {
        copies[index].isUsed && !copies[index].isOrphaned
            && copies[index].layer == chain[newestLive] && copies[index].record == entry
            && copies[index].mask & blocks != 0
    }

    // MARK: The end of a copy

    private func keepCopy(
        _ index: CopyIndex, zeroMask: UInt16, checksums: UnsafePointer<UInt32>
    ) {
        let copy = copies[index]
        let layer = layers.pointer(to: copy.layer)
        layer.pointee.record(copy.record).pointee.copying &= ~copy.mask
        for position in 0..<Int(copy.count) {
            let buffer = copyBuffers[Int(index.rawValue) * 16 + position]
            let block = Int(copy.first) + position
            let bit: UInt16 = 1 << UInt16(block)
            if layer.pointee.record(copy.record).pointee.preserved & bit != 0 {
                // A merge brought an older copy of the block meanwhile.
                buffers.free(buffer)
            } else if zeroMask & 1 << UInt16(position) != 0 {
                layer.pointee.preserveZero(bit, of: copy.record)
                counters.zeroBlockCount += 1
                buffers.free(buffer)
            } else {
                layer.pointee.preserve(
                    block, of: copy.record, at: BlockPlace(inMemory: buffer))
                buffers[buffer].position = UInt8(block)
                buffers[buffer].layer = copy.layer
                buffers[buffer].record = copy.record
                buffers[buffer].checksum = checksums[position]
                enqueueForStorage(buffer)
            }
        }
        wakeWaiters(of: index)
        releaseCopy(index, freeBuffers: false)
        pumpStorage(isTurnEnd: false)
    }

    func wakeWaiters(of index: CopyIndex) {
        while let request = requests.pop(&copies[index].waiters) { wakeWrite(request) }
    }

    private func releaseCopy(_ index: CopyIndex, freeBuffers: Bool) {
        if freeBuffers {
            for position in 0..<Int(copies[index].count) {
                buffers.free(copyBuffers[Int(index.rawValue) * 16 + position])
            }
        }
        precondition(copies[index].waiters.isEmpty, "a copy ends after its waiters left")
        if !copies[index].isOrphaned {
            layerUses[copies[index].layer].copyCount -= 1
        }
        copies[index].isUsed = false
        copies[index].next = freeCopy
        freeCopy = index
        copiesInUse -= 1
    }

    /// The data of these copies is no longer wanted: of one layer, or of all at a switch.
    func orphanCopies(of layer: LayerIndex?) {
        guard copiesInUse > 0 else { return }
        for index in 0..<limits.copyCount
        where copies[index].isUsed && !copies[index].isOrphaned
            && (layer == nil || copies[index].layer == layer)
        {
            copies[index].isOrphaned = true
            layerUses[copies[index].layer].copyCount -= 1
            let record = layers[copies[index].layer].record(copies[index].record)
            record.pointee.copying &= ~copies[index].mask
            wakeWaiters(of: CopyIndex(UInt32(index)))
        }
    }

    func chainPosition(of layer: LayerIndex) -> Int {
        for position in 0..<chainCount where chain[position] == layer { return position }
        preconditionFailure("a layer in use is in its device's chain")
    }

    // MARK: Deadlines

    /// The request waits because of a snapshot: from now on its limit runs.
    private func delay(_ index: RequestIndex) {
        let record = writes.pointer(to: index)
        guard record.pointee.delayedSince == nil else { return }
        record.pointee.delayedSince = now
        requests.appendByArrival(index, to: &delayed)
        counters.delayedRequestCount += 1
    }

    func undelay(_ index: RequestIndex) {
        let record = writes.pointer(to: index)
        guard record.pointee.delayedSince != nil else { return }
        record.pointee.delayedSince = nil
        requests.removeByArrival(index, from: &delayed)
    }

    /// Longest wait that a held snapshot's policy allows: the longest one decides.
    private var waitLimitNanoseconds: UInt64 {
        var longest: UInt64 = 0
        for position in 0...newestLive where layerUses[chain[position]].role == .live {
            let snapshot = snapshots[layerUses[chain[position]].snapshot]
            longest = max(longest, snapshot.limitNanoseconds)
        }
        return longest
    }

    private var deadline: UInt64? {
        guard newestLive >= 0, !delayed.isEmpty, let since = writes[delayed.head].delayedSince
        else { return nil }
        let (time, overflow) = since.addingReportingOverflow(waitLimitNanoseconds)
        return overflow ? nil : time
    }

    private func earlier(_ first: UInt64?, _ second: UInt64?) -> UInt64? {
        guard let first, let second else { return first ?? second }
        return min(first, second)
    }

    func updateTimer() {
        let wanted = earlier(deadline, imageDeadline)
        guard wanted != lastTimer else { return }
        lastTimer = wanted
        effects.append(.timer(at: wanted))
    }

    /// It is `now`: a writer that waited longer than its snapshots may delay it continues, and the
    /// snapshots are given up; an image write that waited as long for memory gets ENOSPC.
    package func timeReached(_ now: UInt64) {
        timeAdvanced(to: now)
        if let deadline, deadline <= now {
            // What is full or fails is reported as such; else storage or the origin was merely
            // slow.
            let reason = storeQueue.isEmpty ? nil : shortage
            giveUp(upTo: newestLive, fault: reason ?? Fault(errnoValue: 110))
        }
        endOverdueImageWrites()
        settle()
    }
}
