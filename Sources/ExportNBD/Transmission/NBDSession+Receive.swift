internal import BlockModel
internal import Glibc
internal import NBDWire
internal import RingIO

// Bytes come in: headers, payloads, and what has to wait.

extension NBDSession {
    /// Payloads with at least this many bytes missing are received straight into their buffer; with
    /// fewer, one receive for several requests costs less than it saves in copying. Measured on
    /// tmpfs: 64 KiB at depth 16 a fifth faster so, 16 KiB at depth 4 two fifths, 8 KiB at depth 32
    /// a quarter slower.
    static let directByteCount = 16384

    /// Asks for more bytes, unless the session is blocked or ends.
    func receiveMore() {
        guard isListening || phase == .lingering, !isReceiving, !isBlocked else { return }
        isReceiving = true
        if let index = payloadRequest {
            watchForStall()
            let missing = Int(requests[index].length) - payloadReceived
            if missing >= Self.directByteCount, let buffer = requests[index].buffer {
                // The header behind it comes along.
                return loop.receive(
                    handler, tag: NBDSessionHandler.Step.receivePayload.rawValue, token: 0,
                    descriptor: socket,
                    message: payloadMessage.aim(
                        at: buffer + payloadReceived, byteCount: missing,
                        then: partialHeader, byteCount: headerByteCount))
            }
        }
        loop.receiveSelecting(
            handler, tag: NBDSessionHandler.Step.receive.rawValue, token: 0, descriptor: socket,
            byteCountMax: receiveByteCountMax)
    }

    /// Large writes come in rows. Behind one no more than the next header is received, so that the
    /// next payload is still in the socket when its place is known.
    private var receiveByteCountMax: Int {
        guard isPayloadLarge, isListening, skipByteCount == 0 else { return 0 }
        let missing = payloadRequest.map { Int(requests[$0].length) - payloadReceived } ?? 0
        return missing + headerByteCount - partialHeaderByteCount
    }

    func receiveCompleted(_ result: Int32, _ flags: UInt32) {
        isReceiving = false
        let buffer = ReceiveBuffers.buffer(in: flags)
        if let buffer {
            if result > 0, isListening {
                lastReceive = loop.now
                take(loop.receiveBuffers.address(of: buffer), Int(result))
            }
            loop.receiveBuffers.release(buffer)
        }
        if result == -ENOBUFS, isListening || phase == .lingering {
            return loop.callWhenRoom(handler)
        }
        receiveEnded(result)
    }

    func receivePayloadCompleted(_ result: Int32) {
        isReceiving = false
        if result > 0, isListening, let index = payloadRequest {
            lastReceive = loop.now
            let payload = min(Int(requests[index].length) - payloadReceived, Int(result))
            payloadReceived += payload
            if payloadReceived == Int(requests[index].length) {
                submitPayload(index)
                takeHeader(Int(result) - payload)
            }
        }
        receiveEnded(result)
    }

    /// So many bytes of a header came in behind a payload.
    private func takeHeader(_ byteCount: Int) {
        guard isListening else { return }
        partialHeaderByteCount = byteCount
        if partialHeaderByteCount == headerByteCount, !beginAssembled() { keep(partialHeader, 0) }
    }

    private func receiveEnded(_ result: Int32) {
        switch phase {
        case .open:
            if result > 0 || result == -EINTR || result == -EAGAIN { return receiveMore() }
            // End of the stream: what was asked before is performed and answered, if it still
            // listens.
            if result == 0 { drain() } else { abort() }
        case .lingering where result > 0 || result == -EINTR || result == -EAGAIN: receiveMore()
        case .lingering: abort()
        case .draining, .aborting:
            dropPayload()
            loop.callAtEndOfTurn(handler)
        }
    }

    /// Room was made, or replies have left: continues with what waits.
    func unblock() {
        guard isListening else { return receiveMore() }
        guard isBlocked else { return receiveMore() }
        isBlocked = false
        if partialHeaderByteCount == headerByteCount, !beginAssembled() {
            // What came behind it stays where it is.
            isBlocked = true
            return waitToGoOn()
        }
        if backlogStart < backlogEnd, let backlog {
            let start = backlogStart
            let count = backlogEnd - start
            backlogStart = 0
            backlogEnd = 0
            take(UnsafeRawPointer(backlog) + start, count)
        }
        if isListening, !isBlocked, backlog != nil {
            backlog?.deallocate()
            backlog = nil
        }
        receiveMore()
    }

    /// Works through received bytes; what cannot be taken on now goes to the backlog.
    func take(_ bytes: UnsafeRawPointer, _ count: Int) {
        var position = 0
        while position < count, isListening {
            let rest = count - position
            if skipByteCount > 0 {
                let skipped = min(skipByteCount, rest)
                skipByteCount -= skipped
                position += skipped
            } else if let index = payloadRequest {
                position += takePayload(index, bytes + position, rest)
            } else if partialHeaderByteCount == 0, rest >= headerByteCount {
                guard begin(bytes + position) else {
                    return keep(bytes + position, rest)
                }
                position += headerByteCount
                foresee(bytes + position, count - position)
            } else {
                let part = min(headerByteCount - partialHeaderByteCount, rest)
                (partialHeader + partialHeaderByteCount).copyMemory(
                    from: bytes + position, byteCount: part)
                partialHeaderByteCount += part
                position += part
                if partialHeaderByteCount == headerByteCount, !beginAssembled() {
                    return keep(bytes + position, count - position)
                }
            }
        }
    }

    /// Tells the target of a write whose header has come in behind the payload that begins at
    /// `bytes`.
    private func foresee(_ bytes: UnsafeRawPointer, _ count: Int) {
        guard let index = payloadRequest else { return }
        let payload = Int(requests[index].length)
        guard count - payload >= headerByteCount,
            let header = NBDRequestHeader(decoding: bytes + payload, mode: mode),
            header.type == NBD.Command.write.rawValue
        else { return }
        target.writeForeseen(at: header.offset)
    }

    private func takePayload(
        _ index: RequestIndex, _ bytes: UnsafeRawPointer, _ count: Int
    ) -> Int {
        let request = requests.pointer(to: index)
        guard let buffer = request.pointee.buffer else {
            preconditionFailure("a payload comes in for a request without a buffer")
        }
        let part = min(Int(request.pointee.length) - payloadReceived, count)
        (buffer + payloadReceived).copyMemory(from: bytes, byteCount: part)
        payloadReceived += part
        if payloadReceived == Int(request.pointee.length) { submitPayload(index) }
        return part
    }

    private func submitPayload(_ index: RequestIndex) {
        payloadRequest = nil
        payloadReceived = 0
        submitTaken(index)
    }

    private func beginAssembled() -> Bool {
        guard begin(partialHeader) else { return false }
        partialHeaderByteCount = 0
        return true
    }

    /// Keeps bytes that cannot be taken on yet, and leaves the socket alone.
    private func keep(_ bytes: UnsafeRawPointer, _ count: Int) {
        guard isListening else { return }
        isBlocked = true
        if count > 0 {
            let capacity = loop.receiveBuffers.bufferBytes
            precondition(count <= capacity, "what waits came in with one receive")
            let place = backlog ?? .allocate(byteCount: capacity, alignment: 16)
            // Bytes that lie in the backlog already stay where they are: a session may try many
            // times in vain.
            let start = bytes - UnsafeRawPointer(place)
            if backlog != nil, start >= 0, start < capacity {
                backlogStart = start
            } else {
                place.copyMemory(from: bytes, byteCount: count)
                backlogStart = 0
            }
            backlog = place
            backlogEnd = backlogStart + count
        }
        waitToGoOn()
    }
}
