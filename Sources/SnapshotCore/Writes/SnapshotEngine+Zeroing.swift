package import BlockModel
internal import EngineState

// Zeroings and discards, in pieces, in proportion to what the origin has allocated.
//
// Before a large one is worked on, the origin is asked where its holes are. A block that the newest
// live layer has not preserved is as it was at that layer's cut, for whatever changes a block
// preserves it first. So where the origin has a hole after the cut, what is not preserved was zero
// at the cut, and making it zero needs no copy. A write that arrives meanwhile marks and preserves
// as always. A hole is marked all the same, for a discard counts as a change; but with a snapshot
// held each mark costs a record in its layer, so there `heldHoleChunkCountMax` chunks of holes are
// marked after each cut, and then no more: nothing changes in them.
//
// An answer holds until the next cut. The gate of a request that is under way cannot drain; one
// that is not is queried again when a gate closed since the question.

extension SnapshotEngine {
    /// What the origin has at the start of the request's piece: `length` bytes that are a hole, or
    /// that may not be. Anything may be said of more than was asked for; 0 stands for one block.
    package func originScanned(_ index: RequestIndex, isHole: Bool, length: UInt64) {
        let record = writes.pointer(to: index)
        guard case .waitingForScan = record.pointee.phase else {
            preconditionFailure("a question for holes is answered once")
        }
        record.pointee.phase = .running
        noteScan(index, isHole: isHole, length: length)
        advance(index)
        settle()
    }

    /// Whole blocks only, but where the request ends.
    private func noteScan(_ index: RequestIndex, isHole: Bool, length: UInt64) {
        let record = writes.pointer(to: index)
        let start = record.pointee.pieceStart
        let requestEnd = record.pointee.end
        let end = start + min(length, requestEnd - start)
        let wholeEnd = end == requestEnd ? end : end / blockByteCount * blockByteCount
        record.pointee.scanned.isHole = isHole && wholeEnd > start
        if record.pointee.scanned.isHole {
            record.pointee.scanned.end = wholeEnd
        } else {
            let blockEnd = (max(end, start + 1) - 1) / blockByteCount * blockByteCount
            record.pointee.scanned.end = min(blockEnd + blockByteCount, requestEnd)
        }
    }

    /// Where the piece of a zeroing or discard that begins now ends. Nil when the origin has to be
    /// asked for holes first.
    func endOfZeroing(_ index: RequestIndex) -> UInt64? {
        let record = writes.pointer(to: index)
        let start = record.pointee.pieceStart
        let end = record.pointee.end
        if !record.pointee.isUnderWay, record.pointee.scanned.gateCount != gateCount {
            record.pointee.scanned.end = 0
        }
        if record.pointee.scanned.end <= start {
            record.pointee.scanned.isHole = false
            if originReportsHoles, end - start >= limits.scannedByteCountMin {
                record.pointee.phase = .waitingForScan
                record.pointee.scanned.gateCount = gateCount
                effects.append(.findHoles(index, offset: start, length: end - start))
                return nil
            }
            record.pointee.scanned.end = end
        }
        if record.pointee.scanned.isHole, !isMarked(holeFrom: start, to: record.pointee.scanned.end)
        {
            return record.pointee.scanned.end
        }
        let isUnpreserved = newestLive < 0 || record.pointee.scanned.isHole
        let step = isUnpreserved ? limits.freePieceByteCount : limits.heldPieceByteCount
        return min(record.pointee.scanned.end, (start / step + 1) * step)
    }

    /// Whether a hole that is made zero counts as a change.
    func isMarked(holeFrom start: UInt64, to end: UInt64) -> Bool {
        let count = chunks(touching: ByteRange(offset: start, length: end - start)).count
        return newestLive < 0 || count <= holeChunkCountLeft
    }

    /// Performs the next run of the piece that no held snapshot needs; skips what one needs.
    func issueDiscard(_ index: RequestIndex) {
        let record = writes.pointer(to: index)
        var piecesLeft = limits.piecesPerTurn
        while true {
            guard newestLive >= 0, !record.pointee.scanned.isHole else {
                issuePiece(index)
                return
            }
            let end = record.pointee.pieceEnd
            let start = endOfRun(from: record.pointee.pieceStart, to: end, isNeeded: true)
            let runEnd = endOfRun(from: start, to: end, isNeeded: false)
            record.pointee.pieceStart = start
            if runEnd > start {
                issuePart(index, end: runEnd)
                return
            }
            if end == record.pointee.end {
                retire(index)
                effects.append(.finish(index, nil))
                return
            }
            piecesLeft -= 1
            guard piecesLeft > 0 else {
                giveWay(write: index)
                return
            }
            guard beginPiece(index) else { return }
        }
    }

    /// The end of the blocks from `start` on that the newest image needs from the origin, or does
    /// not; `end` at most.
    private func endOfRun(from start: UInt64, to end: UInt64, isNeeded: Bool) -> UInt64 {
        var position = start
        while position < end {
            let chunk = position / chunkByteCount
            let needed = neededBlocks(of: chunk)
            let other = isNeeded ? ~needed : needed
            let first = position % chunkByteCount / blockByteCount
            let rest = other >> UInt16(first)
            if rest == 0 {
                position = (chunk + 1) * chunkByteCount
                continue
            }
            let count = UInt64(rest.trailingZeroBitCount)
            if count > 0 { position = chunk * chunkByteCount + (first + count) * blockByteCount }
            break
        }
        return min(position, end)
    }

    /// The request has had its share of this turn and continues in the next one.
    func giveWay(write index: RequestIndex) {
        writes[index].phase = .yielded
        requests.append(index, to: &yielded)
    }

    /// The same for a request of an image.
    func giveWay(image index: RequestIndex) {
        imageRequests[index].phase = .yielded
        requests.append(index, to: &yielded)
    }

    /// A turn begins: some of those that yielded continue.
    func resumeYielded() {
        var left = limits.resumedPerTurn
        while left > 0, let index = requests.pop(&yielded) {
            wake(index)
            left -= 1
        }
    }
}
