internal import BlockModel
internal import CLinux
internal import NBDWire
internal import RingIO

// Replies go out: as many as wait, in one message.

extension NBDSession {
    /// Sends what waits; one message is under way at a time.
    func sendReplies() {
        guard phase != .aborting, !isSending, replies.count > 0 else { return }
        replies.batchCount = 0
        replies.vectorStart = 0
        replies.vectorCount = 0
        while replies.batchCount < NBDReplyQueue.batchCount, let index = replies.popFirst() {
            compose(index)
            replies.batch[replies.batchCount] = index
            replies.batchCount += 1
        }
        isSending = true
        lastSend = loop.now
        watchForStall()
        sendRest()
    }

    private func sendRest() {
        let message = replies.message
        message.pointee.msg_iov = replies.vectors + replies.vectorStart
        message.pointee.msg_iovlen = numericCast(replies.vectorCount - replies.vectorStart)
        loop.send(
            handler, tag: NBDSessionHandler.Step.send.rawValue, token: 0, descriptor: socket,
            message: message, waitAll: false)
    }

    func sendCompleted(_ result: Int32) {
        let isAgain = result == -EINTR || result == -EAGAIN
        if result > 0 || isAgain, phase != .aborting {
            if result > 0 {
                lastSend = loop.now
                earnedByteCount &+= Int(result)
            }
            guard replies.sent(Int(max(result, 0))) else { return sendRest() }
            releaseBatch()
            isSending = false
            sendReplies()
            if isBlocked { unblock() }
            if phase != .open { loop.callAtEndOfTurn(handler) }
            return
        }
        releaseBatch()
        isSending = false
        abort()
        loop.callAtEndOfTurn(handler)
    }

    private func releaseBatch() {
        for position in 0..<replies.batchCount { release(replies.batch[position]) }
        earnedCount &+= replies.batchCount
        replies.batchCount = 0
    }

    /// Forgets replies that nobody will take.
    func dropReplies() {
        while let index = replies.popFirst() { release(index) }
    }

    // MARK: One reply

    private func compose(_ index: RequestIndex) {
        let request = requests.pointer(to: index)
        let place = replies.headers + replies.batchCount * NBDReplyQueue.headerByteCount
        if let fault = request.pointee.fault { return composeError(request, fault, place) }
        switch request.pointee.operation {
        case .read where request.pointee.length > 0: composeData(request, place)
        case .blockStatus:
            guard let buffer = request.pointee.buffer else {
                preconditionFailure("a block status reply lies in its buffer")
            }
            replies.addVector(buffer, request.pointee.resultByteCount)
        case .read, .write, .flush, .discard, .writeZeroes, .prefetch:
            composeDone(request, place)
        }
    }

    private func composeDone(
        _ request: UnsafeMutablePointer<BlockRequest>, _ place: UnsafeMutableRawPointer
    ) {
        switch mode {
        case .simple:
            NBDReplyHeader.writeSimple(place, error: 0, cookie: request.pointee.ownerToken)
            replies.addVector(place, NBD.simpleReplyByteCount)
        case .structured:
            NBDReplyHeader.writeStructured(
                place, flags: NBD.chunkDone, type: .none, cookie: request.pointee.ownerToken,
                length: 0)
            replies.addVector(place, NBD.structuredReplyByteCount)
        case .extended:
            NBDReplyHeader.writeExtended(
                place, flags: NBD.chunkDone, type: .none, cookie: request.pointee.ownerToken,
                offset: request.pointee.offset, length: 0)
            replies.addVector(place, NBD.extendedReplyByteCount)
        }
    }

    private func composeData(
        _ request: UnsafeMutablePointer<BlockRequest>, _ place: UnsafeMutableRawPointer
    ) {
        guard let buffer = request.pointee.buffer else {
            preconditionFailure("a read has a buffer")
        }
        let length = Int(request.pointee.length)
        switch mode {
        case .simple:
            NBDReplyHeader.writeSimple(place, error: 0, cookie: request.pointee.ownerToken)
            replies.addVector(place, NBD.simpleReplyByteCount)
        case .structured:
            NBDReplyHeader.writeStructured(
                place, flags: NBD.chunkDone, type: .offsetData,
                cookie: request.pointee.ownerToken, length: UInt32(8 + length))
            place.storeBigEndian(request.pointee.offset, at: NBD.structuredReplyByteCount)
            replies.addVector(place, NBD.structuredReplyByteCount + 8)
        case .extended:
            NBDReplyHeader.writeExtended(
                place, flags: NBD.chunkDone, type: .offsetData,
                cookie: request.pointee.ownerToken, offset: request.pointee.offset,
                length: UInt64(8 + length))
            place.storeBigEndian(request.pointee.offset, at: NBD.extendedReplyByteCount)
            replies.addVector(place, NBD.extendedReplyByteCount + 8)
        }
        replies.addVector(buffer, length)
    }

    private func composeError(
        _ request: UnsafeMutablePointer<BlockRequest>, _ fault: Fault,
        _ place: UnsafeMutableRawPointer
    ) {
        let number = NBDErrorReply.number(for: fault)
        let cookie = request.pointee.ownerToken
        let headerByteCount: Int
        let message = NBDErrorReply.message(for: number)
        let bodyByteCount = 6 + message.utf8CodeUnitCount
        switch mode {
        case .simple:
            NBDReplyHeader.writeSimple(place, error: number.rawValue, cookie: cookie)
            return replies.addVector(place, NBD.simpleReplyByteCount)
        case .structured:
            NBDReplyHeader.writeStructured(
                place, flags: NBD.chunkDone, type: .error, cookie: cookie,
                length: UInt32(bodyByteCount))
            headerByteCount = NBD.structuredReplyByteCount
        case .extended:
            NBDReplyHeader.writeExtended(
                place, flags: NBD.chunkDone, type: .error, cookie: cookie,
                offset: request.pointee.offset, length: UInt64(bodyByteCount))
            headerByteCount = NBD.extendedReplyByteCount
        }
        place.storeBigEndian(number.rawValue, at: headerByteCount)
        place.storeBigEndian(UInt16(message.utf8CodeUnitCount), at: headerByteCount + 4)
        (place + headerByteCount + 6).copyMemory(
            from: message.utf8Start, byteCount: message.utf8CodeUnitCount)
        precondition(
            headerByteCount + bodyByteCount <= NBDReplyQueue.headerByteCount,
            "an error reply fits its place")
        replies.addVector(place, headerByteCount + bodyByteCount)
    }
}
