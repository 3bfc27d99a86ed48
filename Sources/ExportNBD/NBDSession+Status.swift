internal import BlockModel
internal import RingIO

// Block status: one request to the target for each meta context the client wants, one chunk of
// the reply for each. State and reply lie in the request's buffer:
//
//   0        8           16       24                          64
//   wanted   end of the  length   unused                      chunks ...
//   contexts reply so far
//
// The payload of an extended request (effect length, context ids) lies there first.

enum NBDStatusReply {
    /// Bytes before the reply.
    static let start = 64
    /// Bytes of room for each context's records.
    private static let recordByteCount = 65536

    /// Bytes of the buffer of a status request.
    static func byteCount(contextCount: Int) -> Int { start + contextCount * recordByteCount }

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
                guard let place = contexts.firstIndex(where: { $0.id == id }) else { return false }
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

    /// A context's records are there: makes them a chunk and goes on with the next context. False
    /// when the request is to be answered.
    func continueStatus(_ index: RequestIndex) -> Bool {
        let request = requests.pointer(to: index)
        guard request.pointee.fault == nil else { return false }
        let base = base(of: index)
        var wanted = base.load(fromByteOffset: 0, as: UInt64.self)
        let end = Int(base.load(fromByteOffset: 8, as: UInt64.self))
        let context = contexts[wanted.trailingZeroBitCount]
        wanted &= wanted &- 1
        let byteCount = writeChunk(
            index, context.id, at: base + end, isLast: wanted == 0)
        base.storeBytes(of: wanted, toByteOffset: 0, as: UInt64.self)
        base.storeBytes(of: UInt64(end + byteCount), toByteOffset: 8, as: UInt64.self)
        guard wanted == 0 else {
            aimStatus(index)
            if phase == .aborting { return false }
            submittedCount += 1
            target.submit(index)
            return true
        }
        request.pointee.buffer = base + NBDStatusReply.start
        request.pointee.resultByteCount = end + byteCount - NBDStatusReply.start
        return false
    }

    /// Turns the records into a chunk, in place: wire records are never longer.
    private func writeChunk(
        _ index: RequestIndex, _ id: UInt32, at place: UnsafeMutableRawPointer, isLast: Bool
    ) -> Int {
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
        for position in 0..<count {
            let extent = records.load(
                fromByteOffset: position * MemoryLayout<StatusExtent>.stride,
                as: StatusExtent.self)
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
                offset: request.offset, length: UInt64(8 + count * recordByteCount))
            place.storeBigEndian(id, at: NBD.extendedReplyByteCount)
            place.storeBigEndian(UInt32(count), at: NBD.extendedReplyByteCount + 4)
        } else {
            NBDReplyHeader.writeStructured(
                place, flags: flags, type: .blockStatus, cookie: request.ownerToken,
                length: UInt32(4 + count * recordByteCount))
            place.storeBigEndian(id, at: NBD.structuredReplyByteCount)
        }
        return headerByteCount + count * recordByteCount
    }
}
