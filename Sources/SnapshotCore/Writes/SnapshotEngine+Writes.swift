package import BlockModel
internal import ChangeTracking
internal import CopyOnWrite
package import EngineState

// Writes, zeroings and discards of the origin, from arrival to finish.
//
// A write is one piece; discards and zeroings are worked on in pieces, so that a huge one needs
// bounded memory and marks a bounded number of entries at a time
// (`SnapshotEngine+Zeroing.swift`).

// Comparing an enum of another module goes through generic witnesses, some 30 ns each; a switch does
// not.
extension RequestOperation {
    var isWrite: Bool {
        switch self {
        case .write: true
        case .read, .flush, .discard, .writeZeroes, .prefetch, .blockStatus: false
        }
    }

    var isRead: Bool {
        switch self {
        case .read: true
        case .write, .flush, .discard, .writeZeroes, .prefetch, .blockStatus: false
        }
    }

    var isDiscard: Bool {
        switch self {
        case .discard: true
        case .read, .write, .flush, .writeZeroes, .prefetch, .blockStatus: false
        }
    }
}

extension SnapshotEngine {
    /// A write, zeroing or discard of the origin arrived. One that reaches beyond the end of the
    /// device is refused.
    package func writeArrived(
        _ index: RequestIndex, operation: RequestOperation, offset: UInt64, length: UInt64,
        now: UInt64
    ) -> Admission {
        timeAdvanced(to: now)
        let record = writes.pointer(to: index)
        precondition(!record.pointee.isUsed, "a request slot is used by one request")
        // The end may have moved since the range was checked.
        guard length <= size, offset <= size - length else { return .refused(.noSpace) }
        if length == 0 { return .refused(.invalid) }
        if isGateOpen, operation.isWrite,
            newestLive < 0
                ? markWhenReserved(offset: offset, length: length)
                : markWhenPreserved(offset: offset, length: length)
        {
            record.pointee.beginIssued(offset: offset, length: length)
            underWayCount += 1
            return .issue
        }
        record.pointee = WriteRequest(operation: operation, offset: offset, length: length)
        requests.setKind(.write, of: index)
        advance(index)
        settle()
        return .taken
    }

    /// Where the change map's entry of the chunk at `offset` lies; nil when a write touches none.
    package func changeEntryAddress(at offset: UInt64) -> UnsafeRawPointer? {
        isTrackingLost ? nil : map.address(ofEntry: offset / chunkByteCount)
    }

    /// Where it stands whether the newest snapshot has anything of the chunk at `offset`, which may
    /// lie anywhere; nil when none is held.
    package func bucketAddress(at offset: UInt64) -> UnsafeRawPointer? {
        guard newestLive >= 0 else { return nil }
        return layers[chain[newestLive]].bucketAddress(of: offset / chunkByteCount)
    }

    /// Where a write at `offset` looks first for what the newest snapshot has of the chunk; nil
    /// when none is held, or it has nothing like it.
    package func recordAddress(at offset: UInt64) -> UnsafeRawPointer? {
        guard newestLive >= 0 else { return nil }
        return UnsafeRawPointer(
            layers[chain[newestLive]].firstRecord(besides: offset / chunkByteCount))
    }

    /// The origin finished (a part of) the request: `byteCount` bytes or a fault.
    package func originWriteFinished(
        _ index: RequestIndex, byteCount: UInt64, fault: Fault?
    ) -> Completion {
        let record = writes.pointer(to: index)
        guard record.pointee.isUsed, case .issued(let end) = record.pointee.phase else {
            preconditionFailure("only an issued request finishes")
        }
        let isPart = !record.pointee.operation.isWrite
        let expected = isPart ? end - record.pointee.pieceStart : record.pointee.length
        if fault == nil, byteCount < expected {
            record.pointee.attempts += 1
            if record.pointee.attempts < Self.attemptsMax {
                // Writing the same bytes to the same place again is harmless.
                if isPart {
                    issuePart(index, end: end)
                } else {
                    effects.append(.issue(index))
                }
                return .taken
            }
        }
        let outcome = fault ?? (byteCount < expected ? .inputOutput : nil)
        if outcome == nil, isPart {
            record.pointee.attempts = 0
            record.pointee.pieceStart = end
            if end < record.pointee.end {
                record.pointee.phase = .running
                advance(index)
                settle()
                return .taken
            }
        }
        retire(index)
        return .finish(outcome)
    }

    /// Whether the page of the map can be touched.
    package func isMapPageReserved(_ page: UInt64) -> Bool { map.isReserved(page: page) }

    /// The page can be touched now, or marking in it would have failed.
    package func mapPageReserved(_ page: UInt64) {
        map.pageReserved(page)
        wakeMapWaiters(of: page)
        settle()
    }

    /// The page cannot be made resident: what changes from now on is not known. Writers continue;
    /// the control plane begins a new generation.
    package func mapPageRefused(_ page: UInt64) { trackingLost() }

    /// Nothing that the map says can be trusted any more: a page is missing, or an entry is
    /// damaged. Writers continue; the control plane begins a new generation.
    package func trackingLost() {
        isTrackingLost = true
        while let index = requests.pop(&mapWaiters) { wakeWrite(index) }
        settle()
    }

    private func wakeMapWaiters(of page: UInt64) {
        var index = mapWaiters.head
        while index != .none {
            let following = requests.next(after: index)
            if case .waitingForMap(page) = writes[index].phase {
                requests.remove(index, from: &mapWaiters)
                wakeWrite(index)
            }
            index = following
        }
    }

    // MARK: One piece after the other

    /// Takes the request as far as it goes now: the parent of all branches of a write.
    func advance(_ index: RequestIndex) {
        let record = writes.pointer(to: index)
        guard case .running = record.pointee.phase else {
            preconditionFailure("a request that advances waits for nothing")
        }
        if !isGateOpen && !record.pointee.isUnderWay {
            park(index)
            return
        }
        if record.pointee.pieceStart == record.pointee.pieceEnd {
            guard beginPiece(index) else { return }
        }
        if record.pointee.scanned.isHole {
            issuePiece(index)
            return
        }
        if record.pointee.operation.isDiscard {
            issueDiscard(index)
            return
        }
        guard newestLive < 0 || preserve(index) else { return }
        issuePiece(index)
    }

    func park(_ index: RequestIndex) {
        let record = writes.pointer(to: index)
        undelay(index)
        record.pointee.phase = .parked
        record.pointee.pieceStart = record.pointee.offset
        record.pointee.pieceEnd = record.pointee.offset
        // What was a hole before the cut may have been written by then.
        record.pointee.scanned.isHole = false
        record.pointee.scanned.end = 0
        requests.append(index, to: &parked)
    }

    /// Marks the next piece, except for a hole that counts as no change. False when the request has
    /// to wait for a page of the map or for what the origin says, or has ended.
    func beginPiece(_ index: RequestIndex) -> Bool {
        let record = writes.pointer(to: index)
        let start = record.pointee.pieceStart
        var end = record.pointee.end
        guard end <= size else {
            // It waited behind the gate while the device shrank.
            retire(index)
            effects.append(.finish(index, .noSpace))
            return false
        }
        if !record.pointee.operation.isWrite {
            guard let pieceEnd = endOfZeroing(index) else { return false }
            end = pieceEnd
            if record.pointee.scanned.isHole,
                !isMarked(holeFrom: start, to: record.pointee.scanned.end)
            {
                record.pointee.pieceEnd = end
                return true
            }
        }
        let touched = chunks(touching: ByteRange(offset: start, length: end - start))
        if !isTrackingLost, let page = unreservedPage(touched) {
            record.pointee.phase = .waitingForMap(page: page)
            requests.append(index, to: &mapWaiters)
            effects.append(.reserveMapPage(page))
            return false
        }
        markAndTouch(offset: start, end: end)
        if record.pointee.scanned.isHole, newestLive >= 0 { holeChunkCountLeft -= touched.count }
        record.pointee.pieceEnd = end
        record.pointee.startCursor = start / blockByteCount
        record.pointee.waitCursor = start / blockByteCount
        return true
    }

    func issuePiece(_ index: RequestIndex) {
        let record = writes.pointer(to: index)
        // Only what is waited for because of a snapshot counts, not the origin's own time.
        undelay(index)
        if record.pointee.operation.isWrite {
            beginUnderWay(index, end: record.pointee.end)
            effects.append(.issue(index))
        } else {
            issuePart(index, end: record.pointee.pieceEnd)
        }
    }

    private func beginUnderWay(_ index: RequestIndex, end: UInt64) {
        let record = writes.pointer(to: index)
        record.pointee.phase = .issued(end: end)
        if !record.pointee.isUnderWay {
            record.pointee.isUnderWay = true
            underWayCount += 1
        }
    }

    /// Gives the bytes of a zeroing or discard from the start of its piece on to the origin.
    func issuePart(_ index: RequestIndex, end: UInt64) {
        beginUnderWay(index, end: end)
        let start = writes[index].pieceStart
        effects.append(.issuePart(index, offset: start, length: end - start))
    }

    /// The request leaves the engine.
    func retire(_ index: RequestIndex) {
        let record = writes.pointer(to: index)
        undelay(index)
        record.pointee.isUsed = false
        if record.pointee.isUnderWay {
            underWayCount -= 1
            reportDrained()
        }
    }

    func reportDrained() {
        guard isDrainWanted, underWayCount == 0 else { return }
        isDrainWanted = false
        effects.append(.gateDrained)
    }

    // MARK: Marking

    /// The fast path: marks when every page is reserved, else does nothing.
    private func markWhenReserved(offset: UInt64, length: UInt64) -> Bool {
        let first = offset / chunkByteCount
        let last = (offset + length - 1) / chunkByteCount
        if isTrackingLost { return true }
        guard map.isReserved(page: ChangeMap.page(of: first)),
            first == last || unreservedPage(first..<last + 1) == nil
        else { return false }
        for chunk in first...last {
            map.mark(blockMask(of: chunk, offset: offset, end: offset + length), of: chunk)
        }
        return true
    }

    /// The fast path with a snapshot held: a write to one chunk whose blocks are all preserved
    /// marks, else nothing is done.
    private func markWhenPreserved(offset: UInt64, length: UInt64) -> Bool {
        let chunk = offset / chunkByteCount
        guard newestLive == chainCount - 1, (offset + length - 1) / chunkByteCount == chunk,
            isTrackingLost || map.isReserved(page: ChangeMap.page(of: chunk))
        else { return false }
        let layer = layers.pointer(to: chain[newestLive])
        guard let entry = layer.pointee.find(chunk) else { return false }
        let blocks = blockMask(of: chunk, offset: offset, end: offset + length)
        guard blocks & ~layer.pointee.record(entry).pointee.preserved == 0 else { return false }
        if !isTrackingLost { map.mark(blocks, of: chunk) }
        return true
    }

    /// Saves the old entries in the newest live layer, then marks.
    func markAndTouch(offset: UInt64, end: UInt64) {
        let touched = chunks(touching: ByteRange(offset: offset, length: end - offset))
        for chunk in touched {
            if newestLive >= 0 { touchOrGiveUp(chunk) }
            if !isTrackingLost {
                map.mark(blockMask(of: chunk, offset: offset, end: end), of: chunk)
            }
        }
    }

    private func touchOrGiveUp(_ chunk: UInt64) {
        if touch(chunk) == nil, newestLive >= 0 {
            // Metadata at its limit: waiting would not help.
            giveUp(upTo: newestLive, fault: .noMemory)
        }
    }

    func unreservedPage(_ touched: Range<UInt64>) -> UInt64? {
        var page = ChangeMap.page(of: touched.lowerBound)
        let last = ChangeMap.page(of: touched.upperBound - 1)
        while page <= last {
            if !map.isReserved(page: page) { return page }
            page += 1
        }
        return nil
    }
}

/// The blocks of `chunk` that the bytes `offset ..< end` touch; they touch some.
@inline(__always)
func blockMask(of chunk: UInt64, offset: UInt64, end: UInt64) -> UInt16 {
    let start = chunk &* chunkByteCount
    let first = (max(offset, start) &- start) / blockByteCount
    let last = (min(end &- start, chunkByteCount) &- 1) / blockByteCount
    return UInt16.max &<< UInt16(truncatingIfNeeded: first)
        & UInt16.max &>> UInt16(truncatingIfNeeded: 15 &- last)
}
