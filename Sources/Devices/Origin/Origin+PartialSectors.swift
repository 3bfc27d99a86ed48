internal import BlockModel
internal import Glibc
internal import RingIO

// Writes whose ends lie inside sectors. The buffer covers the range rounded outward; what lies
// before and behind the payload is filled from the origin first, sector by sector through
// scratch memory, because the payload is in its place already.

extension Origin {
    func readHeadSector(_ index: RequestIndex) {
        let request = requests.pointer(to: index)
        let sector = request.pointee.offset & ~(alignment - 1)
        guard sector != request.pointee.offset else { return readTailSector(index) }
        readSector(index, at: sector, step: .headSector)
    }

    func readTailSector(_ index: RequestIndex) {
        let end = requests[index].part.end
        let sector = end & ~(alignment - 1)
        guard sector != end else { return continueData(index) }
        readSector(index, at: sector, step: .tailSector)
    }

    private func readSector(_ index: RequestIndex, at offset: UInt64, step: OriginStep) {
        let result = access.read(
            self, tag: step.rawValue, token: index.rawValue,
            into: scratch.address(of: locks.scratchSlot(of: index)), byteCount: Int(alignment),
            offset: offset, work: .max)
        if let result { completed(step, index, result) }
    }

    func headSectorCompleted(_ index: RequestIndex, _ result: Int32) {
        if Self.isAgain(result) { return tryAgain(index, .headSector) }
        guard result == Int32(alignment) else { return sectorFailed(index, result) }
        let request = requests.pointer(to: index)
        let headByteCount = Int(request.pointee.offset & (alignment - 1))
        guard let payload = request.pointee.buffer else {
            preconditionFailure("a write without a buffer")
        }
        let sector = scratch.address(of: locks.scratchSlot(of: index))
        (payload - headByteCount).copyMemory(from: sector, byteCount: headByteCount)
        let range = request.pointee.part.roundedOutward(to: alignment)
        if range.length == alignment {
            // Head and tail are one sector: its end is in the scratch too.
            copyTail(index, from: sector)
            return continueData(index)
        }
        readTailSector(index)
    }

    func tailSectorCompleted(_ index: RequestIndex, _ result: Int32) {
        if Self.isAgain(result) { return tryAgain(index, .tailSector) }
        guard result == Int32(alignment) else { return sectorFailed(index, result) }
        copyTail(index, from: scratch.address(of: locks.scratchSlot(of: index)))
        continueData(index)
    }

    private func copyTail(_ index: RequestIndex, from sector: UnsafeMutableRawPointer) {
        let request = requests.pointer(to: index)
        guard let payload = request.pointee.buffer else {
            preconditionFailure("a write without a buffer")
        }
        let usedByteCount = Int(request.pointee.part.end & (alignment - 1))
        guard usedByteCount > 0 else { return }
        (payload + Int(request.pointee.length)).copyMemory(
            from: sector + usedByteCount, byteCount: Int(alignment) - usedByteCount)
    }

    private func sectorFailed(_ index: RequestIndex, _ result: Int32) {
        let fault = result < 0 ? Fault(errnoValue: -result) : Fault.inputOutput
        writeStepsFinished(index, fault, isStable: false)
    }
}
