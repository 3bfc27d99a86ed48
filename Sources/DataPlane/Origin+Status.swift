internal import BlockModel
internal import CLinux
internal import Glibc
internal import RingIO

// Block status: which parts of the origin are holes. lseek may read the filesystem's metadata
// from the disk, so it runs on the blocking pool; the answer comes back as a message.

extension Origin {
    func statusArrived(_ index: RequestIndex) {
        let request = requests.pointer(to: index)
        guard let buffer = request.pointee.buffer else {
            preconditionFailure("a block status request without room for the answer")
        }
        let room = request.pointee.bufferByteCount / MemoryLayout<StatusExtent>.stride
        precondition(room > 0, "a block status request without room for the answer")
        let extents = buffer.bindMemory(to: StatusExtent.self, capacity: room)
        if facts.isBlockDevice {
            extents[0] = StatusExtent(length: request.pointee.length, flags: AllocationFlags.data)
            request.pointee.resultByteCount = MemoryLayout<StatusExtent>.stride
            return device.originFinished(index, nil)
        }
        let isOne = request.pointee.flags.contains(.oneExtent)
        let scan = HoleScan(
            descriptor: descriptor, range: request.pointee.range,
            output: UnsafeMutableBufferPointer(start: extents, count: isOne ? 1 : room))
        let mailbox = loop.mailbox
        let back = LoopConfined(self, on: loop)
        let accepted = blocking.submit {
            let outcome = scan.run()
            let message: LoopMailbox.Message = { loop in
                back.get(on: loop).statusFinished(index, outcome)
            }
            // The loop cannot have stopped while a request is under way; a full mailbox drains.
            while !mailbox.post(message) { sched_yield() }
        }
        if !accepted { device.originFinished(index, .noMemory) }
    }

    private func statusFinished(_ index: RequestIndex, _ outcome: Result<Int, Fault>) {
        switch outcome {
        case .success(let count):
            requests.pointer(to: index).pointee.resultByteCount =
                count * MemoryLayout<StatusExtent>.stride
            device.originFinished(index, nil)
        case .failure(let fault): device.originFinished(index, fault)
        }
    }
}

/// Describes a range of a file as maximal runs of data and holes.
private struct HoleScan: @unchecked Sendable {
    // The output belongs to the request, which nobody else touches until it is finished.
    let descriptor: Int32
    let range: ByteRange
    let output: UnsafeMutableBufferPointer<StatusExtent>

    /// Fills `output` and returns how many extents it holds: at least one.
    func run() -> Result<Int, Fault> {
        var count = 0
        var position = range.offset
        while position < range.end, count < output.count {
            let dataStart: UInt64
            switch seek(position, Int32(cl_seek_data)) {
            case .success(let found): dataStart = found.map { min($0, range.end) } ?? range.end
            case .failure(let fault): return .failure(fault)
            }
            if dataStart > position {
                output[count] = StatusExtent(
                    length: dataStart - position,
                    flags: AllocationFlags.hole | AllocationFlags.zero)
            } else {
                let dataEnd: UInt64
                switch seek(position, Int32(cl_seek_hole)) {
                case .success(let found): dataEnd = found.map { min($0, range.end) } ?? range.end
                case .failure(let fault): return .failure(fault)
                }
                // Data that became a hole between the two calls: the next round reports it.
                guard dataEnd > position else { continue }
                output[count] = StatusExtent(
                    length: dataEnd - position, flags: AllocationFlags.data)
            }
            position += output[count].length
            count += 1
        }
        return .success(count)
    }

    /// Where data or a hole begins at or behind `position`; nil when there is none. A filesystem
    /// that cannot tell says that all is data.
    private func seek(_ position: UInt64, _ whence: Int32) -> Result<UInt64?, Fault> {
        let result = lseek(descriptor, off_t(position), whence)
        if result >= 0 { return .success(UInt64(result)) }
        let failure = errno
        if failure == ENXIO { return .success(nil) }
        if failure == EINVAL || failure == EOPNOTSUPP {
            return .success(whence == Int32(cl_seek_data) ? position : nil)
        }
        return .failure(Fault(errnoValue: failure))
    }
}
