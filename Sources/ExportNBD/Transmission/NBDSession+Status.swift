internal import BlockModel
internal import Glibc
internal import NBDWire
internal import RingIO

// Block status: one request to the target for each meta context the client wants, one chunk of
// the reply for each. State and reply lie in the request's buffer:
//
//   0        8           16                                   64
//   wanted   end of the  whether a chunk describes more than  chunks ...
//   contexts reply so far   the one behind it
//
// The payload of an extended request (effect length, context ids) lies there first.
//
// Invariants
// - The chunks of a reply describe the same number of bytes: clients walk the lists of several
//   contexts together, and would miss what only the longer ones tell.
// - At most one context of a session's requests is asked for in a turn.

enum NBDStatusReply {
    /// Bytes before the reply.
    static let start = 64
    /// Bytes of room for all contexts' records, and for each where there are many. Some clients
    /// cannot continue where an answer ends before the range does, so it has room for much.
    private static let byteCountMin = (2 << 20) - start
    private static let recordByteCount = 65536

    /// Bytes of the buffer of a status request.
    static func byteCount(contextCount: Int) -> Int {
        start + max(contextCount * recordByteCount, byteCountMin)
    }

    /// True when that many bytes can be the payload of a status request.
    static func isPayload(_ byteCount: UInt64) -> Bool {
        byteCount >= 12 && byteCount % 4 == 0
            && byteCount <= 8 + 4 * UInt64(NBDNegotiation.contextCountMax)
    }
}

extension NBDSession {
    private func base(of index: RequestIndex) -> UnsafeMutableRawPointer {
        guard let lease = NBDRequestNote(requests[index].ownerNote).lease else {
            preconditionFailure("a block status request has a buffer")
        }
        return loop.buffers.address(of: lease)
    }

    /// Notes which contexts are wanted; false when the payload names others or lies outside.
    func beginStatus(_ index: RequestIndex) -> Bool {
        let request = requests.pointer(to: index)
        let base = base(of: index)
        let all = ~UInt64(0) >> UInt64(64 - contexts.count)
        var wanted = all
        if NBDRequestNote(request.pointee.ownerNote).hasPayload {
            let count = (Int(request.pointee.length) - 8) / 4
            let effect: UInt64 = UnsafeRawPointer(base).loadBigEndian(at: 0)
            wanted = 0
            for position in 0..<count {
                let id: UInt32 = UnsafeRawPointer(base).loadBigEndian(at: 8 + position * 4)
                guard let place = contexts.firstIndex(where: { $0.id == id }),
                    wanted & 1 << UInt64(place) == 0
                else { return false }
                wanted |= 1 << UInt64(place)
            }
            guard effect > 0,
                ByteRange(
                    checking: request.pointee.offset, length: effect, within: target.size) != nil
            else { return false }
            request.pointee.length = effect
        }
        base.storeBytes(of: wanted, toByteOffset: 0, as: UInt64.self)
        base.storeBytes(of: UInt64(NBDStatusReply.start), toByteOffset: 8, as: UInt64.self)
        base.storeBytes(of: 0, toByteOffset: 16, as: UInt64.self)
        aimStatus(index)
        return true
    }

    private func chunkHeaderByteCount() -> Int {
        mode == .extended ? NBD.extendedReplyByteCount + 8 : NBD.structuredReplyByteCount + 4
    }

    /// Points the request at the next wanted context and at room for its records.
    private func aimStatus(_ index: RequestIndex) {
        let request = requests.pointer(to: index)
        let base = base(of: index)
        let wanted = base.load(fromByteOffset: 0, as: UInt64.self)
        let end = Int(base.load(fromByteOffset: 8, as: UInt64.self))
        let records = (end + chunkHeaderByteCount() + 15) & ~15
        guard let lease = NBDRequestNote(request.pointee.ownerNote).lease else {
            preconditionFailure("a block status request has a buffer")
        }
        let left = lease.byteCount - records
        request.pointee.statusBase = contexts[wanted.trailingZeroBitCount].base
        request.pointee.buffer = base + records
        request.pointee.bufferByteCount = left / wanted.nonzeroBitCount & ~15
    }

    /// A context's records are there: makes them a chunk. True when the next context is to be asked
    /// for, false when the request is to be answered.
    func takeStatus(_ index: RequestIndex) -> Bool {
        let request = requests.pointer(to: index)
        guard request.pointee.fault == nil else { return false }
        let base = base(of: index)
        var wanted = base.load(fromByteOffset: 0, as: UInt64.self)
        let start = Int(base.load(fromByteOffset: 8, as: UInt64.self))
        let context = contexts[wanted.trailingZeroBitCount]
        wanted &= wanted &- 1
        let chunk = writeChunk(index, context.id, at: base + start, isLast: wanted == 0)
        var end = start + chunk.byteCount
        if chunk.describedByteCount < request.pointee.length {
            // The contexts still to come need not tell more, those before have.
            request.pointee.length = chunk.describedByteCount
            if start > NBDStatusReply.start {
                base.storeBytes(of: 1, toByteOffset: 16, as: UInt64.self)
            }
        }
        if wanted == 0, base.load(fromByteOffset: 16, as: UInt64.self) != 0 {
            end =
                shortenChunks(
                    from: base + NBDStatusReply.start, to: base + end,
                    describing: request.pointee.length)
                - base
        }
        base.storeBytes(of: wanted, toByteOffset: 0, as: UInt64.self)
        base.storeBytes(of: UInt64(end), toByteOffset: 8, as: UInt64.self)
        guard wanted == 0 else { return true }
        request.pointee.buffer = base + NBDStatusReply.start
        request.pointee.resultByteCount = end - NBDStatusReply.start
        return false
    }

    /// Asks for the next context of a request whose turn it is, one in each turn of the loop.
    func continueStatuses() {
        guard let index = unfinishedStatuses.popFirst(in: requests) else { return }
        if unfinishedStatuses.count > 0 { loop.callAtEndOfTurn(handler) }
        let request = requests.pointer(to: index)
        guard phase != .aborting else { return requestFinished(index) }
        guard request.pointee.range.end <= target.size else {
            // The device shrank since the first context was asked for.
            request.pointee.fault = .invalid
            return requestFinished(index)
        }
        aimStatus(index)
        target.submit(index)
    }

    /// Converts the records into a chunk, in place: wire records are never longer.
    private func writeChunk(
        _ index: RequestIndex, _ id: UInt32, at place: UnsafeMutableRawPointer, isLast: Bool
    ) -> (byteCount: Int, describedByteCount: UInt64) {
        let request = requests[index]
        let count = request.resultByteCount / MemoryLayout<StatusExtent>.stride
        precondition(count > 0, "a target says something about every range")
        guard let records = request.buffer else {
            preconditionFailure("a block status request has a buffer")
        }
        let isExtended = mode == .extended
        let recordByteCount = isExtended ? 16 : 8
        let headerByteCount = chunkHeaderByteCount()
        let bodyStart = place + headerByteCount
        var described: UInt64 = 0
        for position in 0..<count {
            let extent = records.load(
                fromByteOffset: position * MemoryLayout<StatusExtent>.stride,
                as: StatusExtent.self)
            described += extent.length
            let at = position * recordByteCount
            if isExtended {
                bodyStart.storeBigEndian(extent.length, at: at)
                bodyStart.storeBigEndian(extent.flags, at: at + 8)
            } else {
                bodyStart.storeBigEndian(UInt32(extent.length), at: at)
                bodyStart.storeBigEndian(UInt32(truncatingIfNeeded: extent.flags), at: at + 4)
            }
        }
        let flags = isLast ? NBD.chunkDone : 0
        if isExtended {
            NBDReplyHeader.writeExtended(
                place, flags: flags, type: .blockStatusExtended, cookie: request.ownerToken,
                offset: request.offset, length: 0)
            place.storeBigEndian(id, at: NBD.extendedReplyByteCount)
        } else {
            NBDReplyHeader.writeStructured(
                place, flags: flags, type: .blockStatus, cookie: request.ownerToken, length: 0)
            place.storeBigEndian(id, at: NBD.structuredReplyByteCount)
        }
        storeRecordCount(count, ofChunkAt: place)
        return (headerByteCount + count * recordByteCount, described)
    }

    private func storeRecordCount(_ count: Int, ofChunkAt place: UnsafeMutableRawPointer) {
        if mode == .extended {
            place.storeBigEndian(UInt64(8 + count * 16), at: 24)
            place.storeBigEndian(UInt32(count), at: NBD.extendedReplyByteCount + 4)
        } else {
            place.storeBigEndian(UInt32(4 + count * 8), at: 16)
        }
    }

    /// Cuts every chunk between the places off behind `byteCount` described bytes and closes the
    /// gaps; returns the new end.
    private func shortenChunks(
        from start: UnsafeMutableRawPointer, to end: UnsafeMutableRawPointer,
        describing byteCount: UInt64
    ) -> UnsafeMutableRawPointer {
        let isExtended = mode == .extended
        let recordByteCount = isExtended ? 16 : 8
        let headerByteCount = chunkHeaderByteCount()
        var place = start
        var output = start
        while place < end {
            let header = UnsafeRawPointer(place)
            let bodyByteCount =
                isExtended
                ? Int(header.loadBigEndian(at: 24) as UInt64) - 8
                : Int(header.loadBigEndian(at: 16) as UInt32) - 4
            var left = byteCount
            var count = 0
            while left > 0 {
                precondition(
                    count * recordByteCount < bodyByteCount, "no chunk is shorter than the least")
                let record = place + headerByteCount + count * recordByteCount
                let length =
                    isExtended
                    ? UnsafeRawPointer(record).loadBigEndian(at: 0) as UInt64
                    : UInt64(UnsafeRawPointer(record).loadBigEndian(at: 0) as UInt32)
                if length > left {
                    if isExtended {
                        record.storeBigEndian(left, at: 0)
                    } else {
                        record.storeBigEndian(UInt32(left), at: 0)
                    }
                }
                left -= min(length, left)
                count += 1
            }
            storeRecordCount(count, ofChunkAt: place)
            let kept = headerByteCount + count * recordByteCount
            memmove(output, place, kept)
            output += kept
            place += headerByteCount + bodyByteCount
        }
        return output
    }
}
