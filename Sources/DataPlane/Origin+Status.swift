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
        let isOne = request.pointee.flags.contains(.oneExtent)
        scan(request.pointee.range, countMax: isOne ? 1 : room) { outcome in
            switch outcome {
            case .failure(let fault): self.device.originFinished(index, fault)
            case .success(let found):
                let extents = buffer.bindMemory(to: StatusExtent.self, capacity: room)
                for (position, extent) in found.enumerated() { extents[position] = extent }
                self.requests.pointer(to: index).pointee.resultByteCount =
                    found.count * MemoryLayout<StatusExtent>.stride
                self.device.originFinished(index, nil)
            }
        }
    }

    /// Describes a range as maximal runs of data and holes, `countMax` at most; at least one.
    /// `finish` runs on the loop, perhaps at once.
    func scan(
        _ range: ByteRange, countMax: Int = .max,
        _ finish: @escaping (Result<[StatusExtent], Fault>) -> Void
    ) {
        if facts.isBlockDevice {
            return finish(
                .success([StatusExtent(length: range.length, flags: AllocationFlags.data)]))
        }
        let scan = HoleScan(descriptor: descriptor, range: range, countMax: countMax)
        let mailbox = loop.mailbox
        let back = LoopConfined(finish, on: loop)
        let accepted = blocking.submit {
            let outcome = scan.run()
            // The loop cannot have stopped while a request is under way; a full mailbox drains.
            while !mailbox.post({ loop in back.get(on: loop)(outcome) }) { sched_yield() }
        }
        if !accepted { finish(.failure(.noMemory)) }
    }
}

/// Describes a range of a file as maximal runs of data and holes.
private struct HoleScan: Sendable {
    let descriptor: Int32
    let range: ByteRange
    let countMax: Int

    func run() -> Result<[StatusExtent], Fault> {
        var extents: [StatusExtent] = []
        var position = range.offset
        while position < range.end, extents.count < countMax {
            let dataStart: UInt64
            switch seek(position, cl_seek_data) {
            case .success(let found): dataStart = found.map { min($0, range.end) } ?? range.end
            case .failure(let fault): return .failure(fault)
            }
            if dataStart > position {
                extents.append(
                    StatusExtent(
                        length: dataStart - position,
                        flags: AllocationFlags.hole | AllocationFlags.zero))
                position = dataStart
                continue
            }
            let dataEnd: UInt64
            switch seek(position, cl_seek_hole) {
            case .success(let found): dataEnd = found.map { min($0, range.end) } ?? range.end
            case .failure(let fault): return .failure(fault)
            }
            // Data that became a hole between the two calls: the next round reports it.
            guard dataEnd > position else { continue }
            extents.append(
                StatusExtent(length: dataEnd - position, flags: AllocationFlags.data))
            position = dataEnd
        }
        return .success(extents)
    }

    /// Where data or a hole begins at or behind `position`; nil when there is none. A filesystem
    /// that cannot tell says that all is data.
    private func seek(_ position: UInt64, _ whence: Int32) -> Result<UInt64?, Fault> {
        let result = lseek(descriptor, off_t(position), whence)
        if result >= 0 { return .success(UInt64(result)) }
        let failure = errno
        if failure == ENXIO { return .success(nil) }
        if failure == EINVAL || failure == EOPNOTSUPP {
            return .success(whence == cl_seek_data ? position : nil)
        }
        return .failure(Fault(errnoValue: failure))
    }
}
