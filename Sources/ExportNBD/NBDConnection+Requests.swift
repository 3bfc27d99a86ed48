internal import BlockModel
internal import CLinux
internal import Glibc
internal import RingIO

// Requests on their way to the device and back. A request takes all it needs (slot, request of
// the loop's pool, buffer) before its header counts as consumed, or nothing.

extension NBDConnection {
    /// Serves or answers the request at `bytes`; false when there is no room for it, or the
    /// connection ends.
    func accept(_ bytes: UnsafeRawPointer) -> Bool {
        guard let header = NBDRequestHeader(decoding: bytes, style: requestRules.style) else {
            breakOff()
            return false
        }
        let judgement = requestRules.judge(header, size: target.size)
        switch judgement.action {
        case .violation:
            breakOff()
            return false
        case .disconnect:
            inputEnded()
            return false
        case .serve(let operation, let flags):
            guard state == .open else { return refuse(header, .shutdown, judgement) }
            return serve(header, operation, flags)
        case .serveStatusSubset:
            guard state == .open else { return refuse(header, .shutdown, judgement) }
            return takeStatusSubset(header)
        case .succeed:
            return refuse(header, nil, judgement)
        case .refuse(let code):
            return refuse(header, code, judgement)
        }
    }

    /// Answers without the device, with success when `code` is nil.
    private func refuse(
        _ header: NBDRequestHeader, _ code: NBDErrorCode?, _ judgement: NBDJudgement
    ) -> Bool {
        guard let index = slots.take() else { return false }
        consumeHeader()
        skipByteCount = judgement.payloadByteCount
        let slot = slots.pointer(index)
        slot.pointee.cookie = header.cookie
        slot.pointee.offset = header.offset
        if let code {
            queueFailure(index, code)
        } else {
            slot.pointee.headerByteCount = encoder.success(
                cookie: header.cookie, offset: header.offset, into: slots.header(index))
            queueReply(index)
        }
        return true
    }

    private func serve(
        _ header: NBDRequestHeader, _ operation: RequestOperation, _ flags: RequestFlags
    ) -> Bool {
        guard let index = slots.take() else { return false }
        let slot = slots.pointer(index)
        slot.pointee.cookie = header.cookie
        slot.pointee.offset = header.offset
        slot.pointee.length = header.length
        slot.pointee.operation = operation
        slot.pointee.flags = flags
        guard takeRoom(index, operation, header) else {
            release(index)
            loop.callWhenRoom(self)
            return false
        }
        consumeHeader()
        switch operation {
        case .write:
            beginPayload(index, Int(header.length))
        case .blockStatus:
            slot.pointee.contextsLeft =
                contexts.count == 64 ? .max : (1 << UInt64(contexts.count)) - 1
            submitStatus(index)
        case .read, .flush, .discard, .writeZeroes, .prefetch:
            submit(index)
        }
        return true
    }

    /// Leases the request and, where the operation has data, the buffer of a slot.
    private func takeRoom(
        _ index: Int, _ operation: RequestOperation, _ header: NBDRequestHeader
    ) -> Bool {
        let slot = slots.pointer(index)
        let isEmptyOfRange = operation == .flush
        var request = BlockRequest(
            operation: operation, flags: slot.pointee.flags,
            offset: isEmptyOfRange ? 0 : header.offset,
            length: isEmptyOfRange ? 0 : header.length, owner: .passUnretained(owner),
            ownerToken: UInt64(index))
        switch operation {
        case .read, .write:
            let range = request.range.roundedOutward(to: alignment)
            guard let base = leaseBuffer(index, Int(range.length)) else { return false }
            slot.pointee.payload = base + Int(header.offset - range.offset)
            request.buffer = slot.pointee.payload
            request.bufferByteCount = Int(header.length)
        case .blockStatus:
            let isOne = slot.pointee.flags.contains(.oneExtent)
            let byteCount = isOne ? Int(blockByteCount) : NBDLimits.statusByteCount
            guard let base = leaseBuffer(index, byteCount) else { return false }
            slot.pointee.payload = base
            request.buffer = base
            request.bufferByteCount = byteCount
        case .flush, .discard, .writeZeroes, .prefetch: break
        }
        guard let leased = loop.requests.lease(request, heldCount: heldRequestCount) else {
            return false
        }
        slot.pointee.request = leased
        slot.pointee.holdsRequest = true
        heldRequestCount += 1
        return true
    }

    private func leaseBuffer(_ index: Int, _ byteCount: Int) -> UnsafeMutableRawPointer? {
        guard let lease = loop.buffers.lease(byteCount: byteCount, heldBytes: heldByteCount)
        else { return nil }
        let slot = slots.pointer(index)
        slot.pointee.lease = lease
        heldByteCount += lease.byteCount
        return loop.buffers.address(of: lease)
    }

    @inline(__always)
    private func submit(_ index: Int) {
        deviceRequestCount += 1
        target.submit(slots.pointer(index).pointee.request)
    }

    private func beginPayload(_ index: Int, _ byteCount: Int) {
        payloadSlot = index
        payloadByteCount = byteCount
        payloadReceivedByteCount = 0
        prefersDirect = false
        receiveStarted = loop.now
    }

    /// All bytes of the payload have come.
    func payloadComplete() {
        let index = payloadSlot
        payloadSlot = -1
        // Stopping since its header came: it was never given to the device.
        guard state == .open else { return queueFailure(index, .shutdown) }
        if slots.pointer(index).pointee.isStatusSubset {
            startStatusSubset(index)
        } else {
            submit(index)
        }
    }

    /// A device request is finished; perhaps from inside `submit`.
    func requestFinished(_ requestIndex: RequestIndex) {
        let request = loop.requests.pointer(to: requestIndex)
        let index = Int(request.pointee.ownerToken)
        let fault = request.pointee.fault
        let slot = slots.pointer(index)
        deviceRequestCount -= 1
        guard state != .broken else {
            release(index)
            loop.callAtEndOfTurn(self)
            return
        }
        if let fault {
            let isFastZero =
                slot.pointee.operation == .writeZeroes && slot.pointee.flags.contains(.onlyFast)
            queueFailure(index, NBDErrorCode(fault, isFastZero: isFastZero))
            return
        }
        switch slot.pointee.operation {
        case .read:
            slot.pointee.payloadByteCount = Int(slot.pointee.length)
            slot.pointee.headerByteCount = encoder.data(
                cookie: slot.pointee.cookie, offset: slot.pointee.offset,
                byteCount: slot.pointee.payloadByteCount, into: slots.header(index))
            releaseRequest(slot)
            queueReply(index)
        case .blockStatus:
            statusFinished(index, recordByteCount: request.pointee.resultByteCount)
        case .write, .flush, .discard, .writeZeroes, .prefetch:
            slot.pointee.headerByteCount = encoder.success(
                cookie: slot.pointee.cookie, offset: slot.pointee.offset,
                into: slots.header(index))
            releaseRequest(slot)
            releaseBuffer(slot)
            queueReply(index)
        }
    }

    // MARK: Block status

    /// A status request for some contexts: their ids follow as payload.
    private func takeStatusSubset(_ header: NBDRequestHeader) -> Bool {
        guard let index = slots.take() else { return false }
        let slot = slots.pointer(index)
        slot.pointee.cookie = header.cookie
        slot.pointee.offset = header.offset
        slot.pointee.length = 0
        slot.pointee.operation = .blockStatus
        slot.pointee.flags =
            NBDCommandFlags(rawValue: header.flags).contains(.requestOne)
            ? .oneExtent : RequestFlags(rawValue: 0)
        slot.pointee.isStatusSubset = true
        var rangeless = header
        rangeless.offset = 0
        rangeless.length = 0
        guard takeRoom(index, .blockStatus, rangeless) else {
            release(index)
            loop.callWhenRoom(self)
            return false
        }
        consumeHeader()
        beginPayload(index, Int(header.length))
        return true
    }

    private func startStatusSubset(_ index: Int) {
        let slot = slots.pointer(index)
        guard let payload = slot.pointee.payload else {
            preconditionFailure("a status request without a buffer")
        }
        let bytes = UnsafeRawPointer(payload)
        let length = bytes.wire(0, as: UInt64.self)
        var selected: UInt64 = 0
        for position in stride(from: 8, to: payloadByteCount, by: 4) {
            let id = bytes.wire(position, as: UInt32.self)
            guard let place = contexts.firstIndex(where: { $0.id == id }) else {
                return queueFailure(index, .invalid)
            }
            selected |= 1 << UInt64(place)
        }
        guard selected != 0, length > 0,
            ByteRange(checking: slot.pointee.offset, length: length, within: target.size) != nil
        else { return queueFailure(index, .invalid) }
        slot.pointee.length = length
        slot.pointee.contextsLeft = selected
        submitStatus(index)
    }

    /// Asks for the next context of a status request. They are answered one after the other, in
    /// the same slot and buffer, so that one client request costs one of everything.
    func submitStatus(_ index: Int) {
        let slot = slots.pointer(index)
        let place = slot.pointee.contextsLeft.trailingZeroBitCount
        let old = loop.requests.pointer(to: slot.pointee.request)
        var request = BlockRequest(
            operation: .blockStatus, flags: slot.pointee.flags, offset: slot.pointee.offset,
            length: slot.pointee.length, owner: .passUnretained(owner),
            ownerToken: UInt64(index))
        request.statusContext = contexts[place].statusContext
        request.buffer = slot.pointee.payload
        request.bufferByteCount = old.pointee.bufferByteCount
        old.pointee = request
        submit(index)
    }

    private func statusFinished(_ index: Int, recordByteCount: Int) {
        let slot = slots.pointer(index)
        let place = slot.pointee.contextsLeft.trailingZeroBitCount
        guard recordByteCount >= MemoryLayout<StatusExtent>.stride,
            let payload = slot.pointee.payload
        else { return queueFailure(index, .inputOutput) }
        slot.pointee.contextsLeft &= slot.pointee.contextsLeft - 1
        let isLast = slot.pointee.contextsLeft == 0
        let isOne = slot.pointee.flags.contains(.oneExtent)
        let count = encoder.extents(
            in: payload, recordByteCount: recordByteCount,
            onlyOneUpTo: isOne ? slot.pointee.length : nil)
        slot.pointee.headerByteCount = encoder.status(
            cookie: slot.pointee.cookie, offset: slot.pointee.offset,
            contextID: contexts[place].id, extentCount: count, isLast: isLast,
            into: slots.header(index))
        slot.pointee.payloadByteCount = count * encoder.extentByteCount
        if isLast { releaseRequest(slot) }
        queueReply(index)
    }

    // MARK: Giving back

    @inline(__always)
    func releaseRequest(_ slot: UnsafeMutablePointer<ConnectionSlot>) {
        guard slot.pointee.holdsRequest else { return }
        slot.pointee.holdsRequest = false
        heldRequestCount -= 1
        loop.requests.release(slot.pointee.request)
    }

    @inline(__always)
    func releaseBuffer(_ slot: UnsafeMutablePointer<ConnectionSlot>) {
        guard let lease = slot.pointee.lease else { return }
        slot.pointee.lease = nil
        heldByteCount -= lease.byteCount
        loop.buffers.release(lease)
    }

    /// Gives everything of a slot back.
    func release(_ index: Int) {
        let slot = slots.pointer(index)
        releaseRequest(slot)
        releaseBuffer(slot)
        slots.giveBack(index)
    }
}
