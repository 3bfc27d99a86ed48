internal import BlockModel
internal import Glibc
internal import Host
internal import OriginIO
internal import RingIO

// Zeroes and discards. The middle, in whole blocks, is zeroed by the origin; the parts of blocks at
// the two ends are written. A discard leaves its ends alone: it is only advice.
//
// `BlockRequest.progress` counts what is done of the middle, `step` says which part is next.

extension Origin {
    private enum Part: UInt8 {
        case middle
        case head
        case tail
        case done
    }

    /// Bytes of one such operation: bounds how long a kernel worker is busy with one request.
    private var zeroedByteCountMax: UInt64 { facts.isBlockDevice ? 1 << 30 : 64 << 30 }

    func zeroingArrived(_ index: RequestIndex) {
        let request = requests.pointer(to: index)
        let flags = request.pointee.flags
        if flags.contains(.forceUnitAccess), let fault = flushes.failure {
            return device.originFinished(index, fault)
        }
        if flags.contains(.onlyFast), !canZeroFast(flags) {
            return device.originFinished(index, .notSupported)
        }
        request.pointee.progress = 0
        request.pointee.attempts = 0
        request.pointee.step = Part.middle.rawValue
        if alignment == 1 { return startZeroing(index) }
        let isExclusive =
            request.pointee.operation == .writeZeroes
            && !request.pointee.part.isAligned(to: alignment)
        guard locks.arrived(index, isExclusive: isExclusive) else { return }
        startZeroing(index)
    }

    private func canZeroFast(_ flags: RequestFlags) -> Bool {
        // The kernel writes zeroes itself where a block device must keep them allocated.
        if flags.contains(.keepAllocated) { return canZeroRanges && !facts.isBlockDevice }
        return canPunchHoles || (canZeroRanges && !facts.isBlockDevice)
    }

    func startZeroing(_ index: RequestIndex) {
        switch Part(rawValue: requests[index].step) {
        case .middle: continueMiddle(index)
        case .head: startEdge(index, headEdge(index))
        case .tail: startEdge(index, tailEdge(index))
        case .done: writeStepsFinished(index, nil, isStable: false)
        case nil: preconditionFailure("a zeroing request in an unknown part")
        }
    }

    private func partFinished(_ index: RequestIndex) {
        let request = requests.pointer(to: index)
        if request.pointee.operation == .discard {
            request.pointee.step = Part.done.rawValue
        } else {
            request.pointee.step += 1
        }
        startZeroing(index)
    }

    // MARK: Middle

    private func middle(_ index: RequestIndex) -> ByteRange {
        let granule = alignment == 1 && !facts.isBlockDevice ? 1 : blockByteCount
        return requests[index].part.roundedInward(to: granule)
    }

    func continueMiddle(_ index: RequestIndex) {
        let request = requests.pointer(to: index)
        let middle = middle(index)
        let rest = middle.length - request.pointee.progress
        guard rest > 0 else { return partFinished(index) }
        let offset = middle.offset + request.pointee.progress
        if let kind = zeroing(request.pointee) {
            let result = access.zero(
                self, tag: OriginStep.middle.rawValue, token: index.rawValue,
                ByteRange(offset: offset, length: min(rest, zeroedByteCountMax)), kind)
            if let result { middleCompleted(index, result) }
            return
        }
        if request.pointee.operation == .discard { return partFinished(index) }
        write(
            index, .zeroPiece, from: ZeroMemory.address,
            byteCount: Int(min(rest, UInt64(ZeroMemory.byteCount))), offset: offset)
    }

    /// How the origin does it; nil when it cannot.
    private func zeroing(_ request: BlockRequest) -> OriginZeroing? {
        if !request.flags.contains(.keepAllocated), canPunchHoles { return .hole }
        if request.operation == .writeZeroes, canZeroRanges { return .allocated }
        return nil
    }

    private func write(
        _ index: RequestIndex, _ step: OriginStep, from source: UnsafeRawPointer, byteCount: Int,
        offset: UInt64
    ) {
        let result = access.write(
            self, tag: step.rawValue, token: index.rawValue, from: source, byteCount: byteCount,
            offset: offset, isStable: false, work: .max)
        if let result { completed(step, index, result) }
    }

    func middleCompleted(_ index: RequestIndex, _ result: Int32) {
        let request = requests.pointer(to: index)
        switch -result {
        case 0:
            let rest = middle(index).length - request.pointee.progress
            request.pointee.progress += min(rest, zeroedByteCountMax)
        case EINTR, EAGAIN: return tryAgain(index, .middle)
        case EOPNOTSUPP, ENOSYS:
            // Another request may have found out before.
            if zeroing(request.pointee) == .hole {
                canPunchHoles = false
            } else {
                canZeroRanges = false
            }
            if request.pointee.flags.contains(.onlyFast), !canZeroFast(request.pointee.flags) {
                return writeStepsFinished(index, .notSupported, isStable: false)
            }
        case let failure:
            return writeStepsFinished(index, Fault(errnoValue: failure), isStable: false)
        }
        continueMiddle(index)
    }

    func zeroPieceCompleted(_ index: RequestIndex, _ result: Int32) {
        if Self.isAgain(result) { return tryAgain(index, .zeroPiece) }
        if result < 0 {
            return writeStepsFinished(index, Fault(errnoValue: -result), isStable: false)
        }
        if result > 0 {
            requests.pointer(to: index).pointee.progress += UInt64(result) & ~(alignment - 1)
        } else if result == 0 {
            return writeStepsFinished(index, .inputOutput, isStable: false)
        }
        continueMiddle(index)
    }

    // MARK: Edges

    private func headEdge(_ index: RequestIndex) -> ByteRange? {
        let range = requests[index].part
        let middle = middle(index)
        guard middle.offset != range.offset || middle.isEmpty else { return nil }
        let blockEnd = (range.offset / blockByteCount + 1) * blockByteCount
        return ByteRange(offset: range.offset, length: min(blockEnd, range.end) - range.offset)
    }

    private func tailEdge(_ index: RequestIndex) -> ByteRange? {
        let range = requests[index].part
        let start = max(
            range.end & ~(blockByteCount - 1),
            headEdge(index)?.end ?? range.offset, middle(index).end)
        return start < range.end ? ByteRange(offset: start, length: range.end - start) : nil
    }

    private func edge(_ index: RequestIndex) -> ByteRange {
        let isHead = requests[index].step == Part.head.rawValue
        guard let edge = isHead ? headEdge(index) : tailEdge(index) else {
            preconditionFailure("an edge completes that does not exist")
        }
        return edge
    }

    private func startEdge(_ index: RequestIndex, _ edge: ByteRange?) {
        let granule = alignment == 1 && !facts.isBlockDevice
        guard !granule, let edge else { return partFinished(index) }
        if edge.isAligned(to: alignment) { return writeEdge(index, edge, from: ZeroMemory.address) }
        let outer = edge.roundedOutward(to: alignment)
        let result = access.read(
            self, tag: OriginStep.edgeRead.rawValue, token: index.rawValue,
            into: scratch.address(of: locks.scratchSlot(of: index)),
            byteCount: Int(outer.length), offset: outer.offset, work: .max)
        if let result { edgeReadCompleted(index, result) }
    }

    private func writeEdge(
        _ index: RequestIndex, _ range: ByteRange, from source: UnsafeRawPointer
    ) {
        write(
            index, .edgeWrite, from: source, byteCount: Int(range.length), offset: range.offset)
    }

    func edgeReadCompleted(_ index: RequestIndex, _ result: Int32) {
        if Self.isAgain(result) { return tryAgain(index, .edgeRead) }
        let edge = edge(index)
        let outer = edge.roundedOutward(to: alignment)
        guard result == Int32(outer.length) else {
            let fault = result < 0 ? Fault(errnoValue: -result) : Fault.inputOutput
            return writeStepsFinished(index, fault, isStable: false)
        }
        let sectors = scratch.address(of: locks.scratchSlot(of: index))
        memset(sectors + Int(edge.offset - outer.offset), 0, Int(edge.length))
        writeEdge(index, outer, from: sectors)
    }

    func edgeWriteCompleted(_ index: RequestIndex, _ result: Int32) {
        if Self.isAgain(result) { return tryAgain(index, .edgeWrite) }
        let range = edge(index).roundedOutward(to: alignment)
        guard result == Int32(range.length) else {
            let fault = result < 0 ? Fault(errnoValue: -result) : Fault.inputOutput
            return writeStepsFinished(index, fault, isStable: false)
        }
        partFinished(index)
    }
}
