internal import BlockModel
internal import Glibc
internal import RingIO

// Bytes in: an idle connection owns no buffer; the kernel picks one when data is there. All whole
// requests in it are served at once; what is left of a header waits in the stash, what is left of
// a large payload is received where it belongs. Without room for a request, the bytes stay where
// they are, and nothing more is received, until room is made.

extension NBDConnection {
    /// Asks for the next bytes, unless some wait already.
    func receive() {
        guard !isReceiving, !isWaitingForBuffer, unparsedByteCount == 0, !isHeaderWaiting,
            !reachedEnd
        else { return }
        isReceiving = true
        let rest = payloadSlot >= 0 ? payloadByteCount - payloadReceivedByteCount : 0
        let isDirect = rest > Self.copiedRestByteCountMax || rest > 0 && prefersDirect
        if isDirect, let base = slots.pointer(payloadSlot).pointee.payload {
            loop.receive(
                self, tag: Tag.receivePayload, token: 0, descriptor: descriptor,
                into: base + payloadReceivedByteCount,
                byteCount: min(rest, Self.operationByteCountMax), waitAll: true)
        } else {
            loop.receiveSelecting(self, tag: Tag.receive, token: 0, descriptor: descriptor)
        }
        if payloadSlot >= 0 { armStallTimer() }
    }

    /// True when a whole header waits for room.
    private var isHeaderWaiting: Bool { stashByteCount == headerByteCount }

    /// A receive into a buffer of the kernel's choice has completed.
    func received(_ result: Int32, _ flags: UInt32) {
        isReceiving = false
        loop.callAtEndOfTurn(self)
        let buffer = ReceiveBuffers.buffer(in: flags)
        guard result > 0, let buffer, state == .open || state == .draining else {
            if let buffer { loop.receiveBuffers.release(buffer) }
            receiveEnded(result)
            return
        }
        source = .receiveBuffer(buffer)
        unparsed = UnsafeRawPointer(loop.receiveBuffers.address(of: buffer))
        unparsedByteCount = Int(result)
        parse()
    }

    private func receiveEnded(_ result: Int32) {
        switch -result {
        case ENOBUFS where payloadSlot >= 0:
            // Whoever holds the receive buffers may wait for this very payload's buffer.
            prefersDirect = true
        case ENOBUFS:
            // All buffers are in use: come back when one is free.
            isWaitingForBuffer = true
            loop.callWhenRoom(self)
        case EINTR, EAGAIN: break
        case 0: inputEnded()
        case let failure where failure > 0: breakOff()
        default: break  // Bytes nobody wants: the client is being waited for to close.
        }
    }

    /// A receive into a request's own buffer has completed.
    func payloadReceived(_ result: Int32) {
        isReceiving = false
        loop.callAtEndOfTurn(self)
        guard result > 0, state == .open || state == .draining else {
            receiveEnded(result)
            return
        }
        payloadReceivedByteCount += Int(result)
        receiveStarted = loop.now
        if payloadReceivedByteCount == payloadByteCount { payloadComplete() }
    }

    /// Serves all whole requests that wait.
    func parse() {
        // A device that finishes at once may lead back here.
        guard !isParsing else { return }
        isParsing = true
        defer { isParsing = false }
        while state == .open || state == .draining {
            if unparsedByteCount > 0 {
                if skipByteCount > 0 {
                    let count = Int(min(skipByteCount, UInt64(unparsedByteCount)))
                    consume(count)
                    skipByteCount -= UInt64(count)
                    continue
                }
                if payloadSlot >= 0 {
                    copyPayload()
                    continue
                }
            }
            guard let header = nextHeader() else { break }
            guard accept(header) else { break }
        }
        if unparsedByteCount == 0 { releaseSource() } else { park() }
    }

    /// Moves bytes that wait for room out of the receive buffer, which others need.
    private func park() {
        guard case .receiveBuffer(let id) = source, let unparsed,
            let lease = loop.buffers.lease(byteCount: unparsedByteCount, heldBytes: heldByteCount)
        else { return }
        heldByteCount += lease.byteCount
        let memory = loop.buffers.address(of: lease)
        memory.copyMemory(from: unparsed, byteCount: unparsedByteCount)
        loop.receiveBuffers.release(id)
        source = .lease(lease)
        self.unparsed = UnsafeRawPointer(memory)
    }

    /// Address of the next whole header, nil when there is none.
    @inline(__always)
    private func nextHeader() -> UnsafeRawPointer? {
        guard let unparsed, stashByteCount == 0, unparsedByteCount >= headerByteCount else {
            return completeStash()
        }
        return unparsed
    }

    private func completeStash() -> UnsafeRawPointer? {
        if stashByteCount < headerByteCount, let unparsed, unparsedByteCount > 0 {
            let count = min(headerByteCount - stashByteCount, unparsedByteCount)
            (stash + stashByteCount).copyMemory(from: unparsed, byteCount: count)
            stashByteCount += count
            consume(count)
        }
        return stashByteCount == headerByteCount ? UnsafeRawPointer(stash) : nil
    }

    /// Called when the request of the current header has been taken.
    @inline(__always)
    func consumeHeader() {
        if stashByteCount > 0 { stashByteCount = 0 } else { consume(headerByteCount) }
    }

    @inline(__always)
    private func consume(_ byteCount: Int) {
        unparsed = unparsed.unsafelyUnwrapped + byteCount
        unparsedByteCount -= byteCount
    }

    private func copyPayload() {
        guard let unparsed, let base = slots.pointer(payloadSlot).pointee.payload else {
            preconditionFailure("a payload without a buffer")
        }
        let count = min(payloadByteCount - payloadReceivedByteCount, unparsedByteCount)
        (base + payloadReceivedByteCount).copyMemory(from: unparsed, byteCount: count)
        payloadReceivedByteCount += count
        consume(count)
        if payloadReceivedByteCount == payloadByteCount { payloadComplete() }
    }

    private func releaseSource() {
        switch source {
        case .none: return
        case .receiveBuffer(let id): loop.receiveBuffers.release(id)
        case .allocation(let memory): memory.deallocate()
        case .lease(let lease):
            heldByteCount -= lease.byteCount
            loop.buffers.release(lease)
        }
        source = .none
        unparsed = nil
        unparsedByteCount = 0
    }

    /// Forgets what was received and not served.
    func dropInput() {
        releaseSource()
        stashByteCount = 0
        skipByteCount = 0
        guard payloadSlot >= 0, !isReceiving else { return }
        release(payloadSlot)
        payloadSlot = -1
    }
}
