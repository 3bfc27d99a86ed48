internal import BlockModel
internal import NBDWire
internal import RingIO

// From a header to a request.

extension NBDSession {
    /// Takes a request on. False when there is no room for it now: nothing of it was done, and
    /// its header must be given again. A header that breaks the protocol ends the session.
    func begin(_ bytes: UnsafeRawPointer) -> Bool {
        guard let header = NBDRequestHeader(decoding: bytes, mode: mode) else {
            abort()
            return true
        }
        let hasPayload = header.hasPayload(in: mode)
        if hasPayload, header.length > UInt64(NBD.payloadByteCountMax) {
            // Nobody may make us read past 32 MiB to find the next header.
            abort()
            return true
        }
        if header.type == NBD.Command.disconnect.rawValue {
            drain()
            return true
        }
        guard unansweredCount < limits.requestCount else { return false }
        if let fault = refusal(of: header, hasPayload: hasPayload) {
            return refuse(header, fault, skipping: hasPayload ? Int(header.length) : 0)
        }
        guard let command = NBD.Command(rawValue: header.type) else {
            preconditionFailure("unknown commands were refused")
        }
        // Nothing is done already; a device must not have to think about empty ranges.
        if header.length == 0, command != .flush { return refuse(header, nil, skipping: 0) }
        return begin(command, header, hasPayload: hasPayload)
    }

    private func begin(
        _ command: NBD.Command, _ header: NBDRequestHeader, hasPayload: Bool
    ) -> Bool {
        if command == .read, !countRead(header.length) { return false }
        // The slot first: a buffer that is leased and given back again looks like room to others.
        guard requests.hasRoom(heldCount: unansweredCount, earnedCount: earnedCount) else {
            return false
        }
        var request = BlockRequest(
            operation: operation(of: command), flags: flags(of: header), offset: header.offset,
            length: header.length, owner: Unmanaged.passUnretained(self),
            ownerToken: header.cookie)
        // Only the reply repeats a flush's offset; a length means nothing.
        if command == .flush { request.length = 0 }
        var lease: BufferLease?
        switch command {
        case .read, .write:
            let range = ByteRange(offset: header.offset, length: header.length)
                .roundedOutward(to: target.alignment)
            guard let found = leaseBuffer(byteCount: Int(range.length)) else { return false }
            request.buffer =
                loop.buffers.address(of: found) + Int(header.offset - range.offset)
            request.bufferByteCount = found.byteCount
            lease = found
        case .blockStatus:
            guard
                let found = leaseBuffer(
                    byteCount: NBDStatusReply.byteCount(contextCount: contexts.count))
            else { return false }
            request.buffer = loop.buffers.address(of: found)
            request.bufferByteCount = found.byteCount
            lease = found
        case .disconnect, .flush, .trim, .cache, .writeZeroes: break
        }
        request.ownerNote = NBDRequestNote(lease: lease, hasPayload: hasPayload).rawValue
        guard
            let index = requests.lease(
                request, heldCount: unansweredCount, earnedCount: earnedCount)
        else { preconditionFailure("there was room for a request, and nobody has taken it") }
        unansweredCount += 1
        heldByteCount += lease?.byteCount ?? 0
        if hasPayload, header.length > 0 {
            if command == .write { target.writeExpected(at: header.offset) }
            payloadRequest = index
            payloadReceived = 0
            isPayloadLarge = header.length >= UInt64(Self.directByteCount)
        } else {
            isPayloadLarge = false
            submitTaken(index)
        }
        return true
    }

    private func leaseBuffer(byteCount: Int) -> BufferLease? {
        loop.buffers.lease(
            byteCount: byteCount, heldBytes: heldByteCount, earnedBytes: earnedByteCount)
    }

    /// Gives a request whose payload is there to the target.
    func submitTaken(_ index: RequestIndex) {
        if requests[index].operation == .blockStatus, !beginStatus(index) {
            requests.pointer(to: index).pointee.fault = .invalid
            return answer(index)
        }
        submittedCount += 1
        target.submit(index)
    }

    /// Answers a request that is not performed, with success when there is no fault. False when
    /// there is no slot for the answer.
    private func refuse(_ header: NBDRequestHeader, _ fault: Fault?, skipping: Int) -> Bool {
        var request = BlockRequest(
            operation: header.type == NBD.Command.read.rawValue ? .read : .flush,
            offset: header.offset, owner: Unmanaged.passUnretained(self),
            ownerToken: header.cookie)
        request.fault = fault
        guard
            let index = requests.lease(
                request, heldCount: unansweredCount, earnedCount: earnedCount)
        else { return false }
        unansweredCount += 1
        skipByteCount = skipping
        answer(index)
        return true
    }

    /// Why a request cannot be performed; nil when it can.
    private func refusal(of header: NBDRequestHeader, hasPayload: Bool) -> Fault? {
        guard let command = NBD.Command(rawValue: header.type),
            header.flags & ~allowedFlags(of: command) == 0
        else { return .invalid }
        if hasPayload, command != .write, command != .blockStatus { return .invalid }
        let isInside =
            ByteRange(checking: header.offset, length: header.length, within: target.size) != nil
        switch command {
        case .read:
            if header.length > UInt64(NBD.payloadByteCountMax) {
                return header.flags & NBD.CommandFlag.dontFragment != 0
                    ? Fault(errnoValue: 75) : .invalid
            }
            return isInside ? nil : .invalid
        case .write:
            if isReadOnly { return .notPermitted }
            return isInside ? nil : .noSpace
        case .writeZeroes:
            if isReadOnly { return .notPermitted }
            return isInside ? nil : .noSpace
        case .trim:
            if isReadOnly { return .notPermitted }
            return canDiscard && isInside ? nil : .invalid
        case .cache: return isInside ? nil : .invalid
        case .blockStatus:
            if contexts.isEmpty { return .invalid }
            if hasPayload { return NBDStatusReply.isPayload(header.length) ? nil : .invalid }
            return isInside && header.length > 0 ? nil : .invalid
        case .flush, .disconnect: return nil
        }
    }

    private func allowedFlags(of command: NBD.Command) -> UInt16 {
        var allowed = NBD.CommandFlag.forceUnitAccess
        if mode == .extended { allowed |= NBD.CommandFlag.payloadLength }
        switch command {
        case .read: if mode != .simple { allowed |= NBD.CommandFlag.dontFragment }
        case .writeZeroes: allowed |= NBD.CommandFlag.noHole | NBD.CommandFlag.fastZero
        case .blockStatus: allowed |= NBD.CommandFlag.requestOne
        case .write, .disconnect, .flush, .trim, .cache: break
        }
        return allowed
    }

    private func operation(of command: NBD.Command) -> RequestOperation {
        switch command {
        case .read: .read
        case .write: .write
        case .flush: .flush
        case .trim: .discard
        case .cache: .prefetch
        case .writeZeroes: .writeZeroes
        case .blockStatus: .blockStatus
        case .disconnect: preconditionFailure("a disconnect is no request")
        }
    }

    private func flags(of header: NBDRequestHeader) -> RequestFlags {
        var flags = RequestFlags().rawValue
        if header.flags & NBD.CommandFlag.forceUnitAccess != 0 {
            flags |= RequestFlags.forceUnitAccess.rawValue
        }
        if header.flags & NBD.CommandFlag.noHole != 0 {
            flags |= RequestFlags.keepAllocated.rawValue
        }
        if header.flags & NBD.CommandFlag.fastZero != 0 { flags |= RequestFlags.onlyFast.rawValue }
        if header.flags & NBD.CommandFlag.requestOne != 0 {
            flags |= RequestFlags.oneExtent.rawValue
        }
        return RequestFlags(rawValue: flags)
    }
}
