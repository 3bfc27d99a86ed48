internal import BlockModel
internal import CLinux
internal import Glibc
internal import RingIO

// Replies out: all that are ready leave in one gathered send, at the end of the turn or when
// enough have gathered; those that become ready meanwhile leave with the next.

extension NBDConnection {
    /// Queues a slot whose header and payload are ready.
    @inline(__always)
    func queueReply(_ index: Int) {
        slots.enqueue(index)
        loop.callAtEndOfTurn(self)
        if slots.queuedCount >= Self.earlyReplyCount, !isSending {
            sendReplies()
            loop.submitNow()
        }
    }

    /// Queues the answer to a request that failed, and gives back what it held.
    func queueFailure(_ index: Int, _ code: NBDErrorCode) {
        let slot = slots.pointer(index)
        slot.pointee.headerByteCount = encoder.failure(
            code, cookie: slot.pointee.cookie, offset: slot.pointee.offset,
            into: slots.header(index))
        slot.pointee.payloadByteCount = 0
        slot.pointee.contextsLeft = 0
        releaseRequest(slot)
        releaseBuffer(slot)
        queueReply(index)
    }

    /// Sends what is queued, up to a bound, unless a send is under way.
    func sendReplies() {
        guard !isSending, slots.queuedCount > 0, state != .broken else { return }
        var vectorCount = 0
        var room = Self.operationByteCountMax
        var skip = sentByteCount
        var position = 0
        while position < slots.queuedCount, room > 0 {
            let index = slots.queued(position)
            let slot = slots.pointer(index)
            add(slots.header(index), slot.pointee.headerByteCount, &skip, &room, &vectorCount)
            if slot.pointee.payloadByteCount > 0, let payload = slot.pointee.payload {
                add(payload, slot.pointee.payloadByteCount, &skip, &room, &vectorCount)
            }
            position += 1
        }
        message.pointee.msg_iov = vectors
        message.pointee.msg_iovlen = vectorCount
        isSending = true
        sendStarted = loop.now
        loop.send(
            self, tag: Tag.send, token: 0, descriptor: descriptor, message: message, waitAll: true)
        armStallTimer()
    }

    @inline(__always)
    private func add(
        _ base: UnsafeMutableRawPointer, _ byteCount: Int, _ skip: inout Int, _ room: inout Int,
        _ vectorCount: inout Int
    ) {
        guard skip < byteCount else {
            skip -= byteCount
            return
        }
        let count = min(byteCount - skip, room)
        guard count > 0 else { return }
        vectors[vectorCount] = iovec(iov_base: base + skip, iov_len: count)
        vectorCount += 1
        skip = 0
        room -= count
    }

    /// A send has completed: what left entirely is given back.
    func sent(_ result: Int32) {
        isSending = false
        loop.callAtEndOfTurn(self)
        guard state != .broken else { return }
        guard result > 0 || result == -EINTR || result == -EAGAIN else { return breakOff() }
        sentByteCount += Int(max(result, 0))
        while slots.queuedCount > 0 {
            let slot = slots.pointer(slots.queued(0))
            let byteCount = slot.pointee.headerByteCount + slot.pointee.payloadByteCount
            guard sentByteCount >= byteCount else { break }
            sentByteCount -= byteCount
            let index = slots.dequeue()
            if slot.pointee.contextsLeft != 0 {
                submitStatus(index)
            } else {
                release(index)
            }
        }
        // Own replies that left are room for what waits.
        if unparsedByteCount > 0 || stashByteCount == headerByteCount { parse() }
    }
}
