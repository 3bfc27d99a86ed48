package import CLinux
internal import CRing
internal import Glibc

// One function per operation. Each takes the handler that receives the completion, a tag and a
// token that come back with it. Buffers, vectors and messages must stay valid until then.

extension EventLoop {
    /// Operations that are prepared before the kernel gets them, where another follows. A disk that
    /// idles until the whole turn is prepared loses 10 % at depth 32; fewer cost more system calls
    /// and interrupts, and 2 lose 14 % at depth 8.
    private static let fileBatchCount: UInt32 = 8

    /// A free submission entry; hands the full queue to the kernel first where needed.
    @inline(__always)
    private func entry() -> UnsafeMutablePointer<io_uring_sqe> {
        if let entry = io_uring_get_sqe(ring) { return entry }
        return entryAfterSubmitting()
    }

    @inline(never)
    private func entryAfterSubmitting() -> UnsafeMutablePointer<io_uring_sqe> {
        while true {
            let result = io_uring_submit(ring)
            if let entry = io_uring_get_sqe(ring) { return entry }
            precondition(
                result >= 0 || result == -EAGAIN || result == -EBUSY || result == -EINTR,
                "io_uring_submit failed with errno \(-result)")
            // EBUSY: the kernel holds completions that have no room in the ring, and takes nothing
            // until they are taken. EAGAIN: it has no memory for more, until some have ended.
            keepCompletions()
        }
    }

    /// The same for an operation of a file; a batch that waits goes to the kernel first.
    @inline(__always)
    private func fileEntry() -> UnsafeMutablePointer<io_uring_sqe> {
        if cl_ring_unsubmitted(ring) >= Self.fileBatchCount { submitNow() }
        return entry()
    }

    /// Hands what was prepared to the kernel now instead of at the end of the turn.
    package func submitNow() { io_uring_submit(ring) }

    /// Counts an operation of a file in, for `user_data`.
    @inline(__always)
    private func submittedToFile(_ handler: RingHandler, tag: UInt8, token: UInt32) -> UInt64 {
        let group = fileOperations.began()
        return handlers.submitted(handler, tag: tag, token: token)
            | HandlerTable.ofFile(inGroup: group)
    }

    /// Reads `byteCount` bytes at `offset` of a file.
    package func read(
        _ handler: RingHandler, tag: UInt8, token: UInt32, descriptor: Int32,
        into buffer: UnsafeMutableRawPointer, byteCount: Int, offset: UInt64
    ) {
        cl_prep_read(
            fileEntry(), descriptor, buffer, UInt32(byteCount), offset,
            submittedToFile(handler, tag: tag, token: token))
    }

    /// Writes `byteCount` bytes at `offset`; `dataSync`: on stable storage when completed.
    package func write(
        _ handler: RingHandler, tag: UInt8, token: UInt32, descriptor: Int32,
        from buffer: UnsafeRawPointer, byteCount: Int, offset: UInt64, dataSync: Bool = false
    ) {
        cl_prep_write(
            fileEntry(), descriptor, buffer, UInt32(byteCount), offset,
            dataSync ? Int32(cl_rwf_dsync) : 0,
            submittedToFile(handler, tag: tag, token: token))
    }

    /// Writes gathered pieces at `offset`.
    package func write(
        _ handler: RingHandler, tag: UInt8, token: UInt32, descriptor: Int32,
        vectors: UnsafePointer<iovec>, count: Int, offset: UInt64, dataSync: Bool = false
    ) {
        cl_prep_writev(
            fileEntry(), descriptor, vectors, UInt32(count), offset,
            dataSync ? Int32(cl_rwf_dsync) : 0,
            submittedToFile(handler, tag: tag, token: token))
    }

    /// Reads into scattered pieces from `offset`.
    package func read(
        _ handler: RingHandler, tag: UInt8, token: UInt32, descriptor: Int32,
        vectors: UnsafePointer<iovec>, count: Int, offset: UInt64
    ) {
        cl_prep_readv(
            fileEntry(), descriptor, vectors, UInt32(count), offset,
            submittedToFile(handler, tag: tag, token: token))
    }

    /// fdatasync.
    package func synchronize(
        _ handler: RingHandler, tag: UInt8, token: UInt32, descriptor: Int32
    ) {
        cl_prep_fdatasync(
            fileEntry(), descriptor, submittedToFile(handler, tag: tag, token: token))
    }

    /// fallocate with `mode`.
    package func allocate(
        _ handler: RingHandler, tag: UInt8, token: UInt32, descriptor: Int32, mode: Int32,
        offset: UInt64, byteCount: UInt64
    ) {
        cl_prep_fallocate(
            fileEntry(), descriptor, mode, offset, byteCount,
            submittedToFile(handler, tag: tag, token: token))
    }

    /// Reads the eight bytes of an event when it was signalled.
    package func readEvent(
        _ handler: RingHandler, tag: UInt8, token: UInt32, descriptor: Int32,
        into counter: UnsafeMutablePointer<UInt64>
    ) {
        cl_prep_read(
            entry(), descriptor, counter, 8, UInt64.max,
            handlers.submitted(handler, tag: tag, token: token))
    }

    /// Receives into a buffer of the loop's `receiveBuffers` that the kernel picks when data is
    /// there; the completion's flags name it. At most `byteCountMax` bytes; 0: as many as a buffer
    /// holds. -ENOBUFS when all are in use.
    package func receiveSelecting(
        _ handler: RingHandler, tag: UInt8, token: UInt32, descriptor: Int32,
        byteCountMax: Int = 0
    ) {
        cl_prep_recv_selecting(
            entry(), descriptor, ReceiveBuffers.group, byteCountMax,
            handlers.submitted(handler, tag: tag, token: token))
    }

    /// Receives what is there into the places of `message`, which stays as it is until then.
    package func receive(
        _ handler: RingHandler, tag: UInt8, token: UInt32, descriptor: Int32,
        message: UnsafeMutablePointer<msghdr>
    ) {
        cl_prep_recvmsg(
            entry(), descriptor, message, handlers.submitted(handler, tag: tag, token: token))
    }

    /// Sends a gathered message; all of it, unless the connection fails, with `waitAll`.
    package func send(
        _ handler: RingHandler, tag: UInt8, token: UInt32, descriptor: Int32,
        message: UnsafePointer<msghdr>, waitAll: Bool
    ) {
        let flags = UInt32(MSG_NOSIGNAL) | (waitAll ? UInt32(MSG_WAITALL) : 0)
        cl_prep_sendmsg(
            entry(), descriptor, message, flags,
            handlers.submitted(handler, tag: tag, token: token))
    }

    /// Accepts one connection (close-on-exec).
    package func accept(_ handler: RingHandler, tag: UInt8, token: UInt32, descriptor: Int32) {
        cl_prep_accept(
            entry(), descriptor, handlers.submitted(handler, tag: tag, token: token))
    }

    /// Completes when one of `events` (poll(2)) is there.
    package func poll(
        _ handler: RingHandler, tag: UInt8, token: UInt32, descriptor: Int32, events: UInt32
    ) {
        cl_prep_poll_in(
            entry(), descriptor, events, handlers.submitted(handler, tag: tag, token: token))
    }

    /// Asks the kernel to end the operation submitted with `targetTag` and `targetToken`; it
    /// completes with -ECANCELED unless it was done before. The request itself completes with
    /// `tag` and `token`.
    package func cancel(
        _ handler: RingHandler, targetTag: UInt8, targetToken: UInt32, tag: UInt8, token: UInt32
    ) {
        let target = HandlerTable.userData(handler, tag: targetTag, token: targetToken)
        cl_prep_cancel(entry(), target, handlers.submitted(handler, tag: tag, token: token))
    }

    /// Completes once a worker of the kernel has looked at it.
    func wakeWorker(_ handler: RingHandler) {
        cl_prep_worker_nop(entry(), handlers.submitted(handler, tag: 0, token: 0))
    }
}
