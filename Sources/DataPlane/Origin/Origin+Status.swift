internal import BlockModel
internal import CLinux
internal import Glibc
internal import RingIO

// Block status: which parts of the origin are holes. lseek may read the filesystem's metadata
// from the disk, so it runs on the blocking pool; the answer comes back through the mailbox.

extension Origin {
    func statusArrived(_ index: RequestIndex) {
        let request = requests.pointer(to: index)
        guard let buffer = request.pointee.buffer else {
            preconditionFailure("a block status request without room for the answer")
        }
        let room = request.pointee.bufferByteCount / MemoryLayout<StatusExtent>.stride
        let isOne = request.pointee.flags.contains(.oneExtent)
        scan(
            request.pointee.range,
            into: UnsafeMutableBufferPointer(
                start: buffer.bindMemory(to: StatusExtent.self, capacity: room),
                count: isOne ? 1 : room),
            for: index, image: nil)
    }

    /// Describes a range as maximal runs of data and holes in `output`, as far as there is room;
    /// `scanned` follows, perhaps at once. `image`: who asks, nil for the device.
    func scan(
        _ range: ByteRange, into output: UnsafeMutableBufferPointer<StatusExtent>,
        for index: RequestIndex, image: ImageDevice?
    ) {
        precondition(output.count > 0, "a block status request without room for the answer")
        if facts.isBlockDevice {
            output[0] = StatusExtent(length: range.length, flags: AllocationFlags.data)
            return scanned(index, image, count: 1, fault: nil)
        }
        let scan = freeScans.popLast() ?? HoleScan(origin: self)
        scan.prepare(range, into: output, for: index, image: image)
        scanCount += 1
        waitingScans.append(scan)
        startScan()
    }

    private func startScan() {
        while !isScanning, scanHead < waitingScans.count {
            let scan = waitingScans[scanHead]
            scanHead += 1
            if scanHead == waitingScans.count {
                waitingScans.removeAll(keepingCapacity: true)
                scanHead = 0
            } else if scanHead >= 256, scanHead * 2 > waitingScans.count {
                waitingScans.removeFirst(scanHead)
                scanHead = 0
            }
            isScanning = true
            // The pool takes it unless it has ended.
            if !blocking.submit(.origins, work: scan) { scan.refused() }
        }
    }

    /// A scan is back from the pool.
    func scanEnded(
        _ scan: HoleScan, _ index: RequestIndex, _ image: ImageDevice?, count: Int, fault: Fault?
    ) {
        freeScans.append(scan)
        scanCount -= 1
        isScanning = false
        scanned(index, image, count: count, fault: fault)
        startScan()
        // An image's scan may be the last that a closing device waits for.
        if scanCount == 0 { device.usersChanged() }
    }

    private func scanned(_ index: RequestIndex, _ image: ImageDevice?, count: Int, fault: Fault?) {
        if let image { return image.statusScanned(index, count: count, fault: fault) }
        requests.pointer(to: index).pointee.resultByteCount =
            count * MemoryLayout<StatusExtent>.stride
        device.originFinished(index, fault)
    }
}

/// Describes a range of a file as maximal runs of data and holes. Kept by the origin and used
/// again, one request at a time.
final class HoleScan: BlockingWork, @unchecked Sendable {
    // `BlockingWork` says which thread touches the fields when; the output belongs to the
    // request, which nobody else touches until it is finished.
    private unowned let origin: Origin
    private let descriptor: Int32
    private var range = ByteRange(offset: 0, length: 0)
    private var output = UnsafeMutableBufferPointer<StatusExtent>(start: nil, count: 0)
    private var index = RequestIndex.none
    private var image: ImageDevice?
    private var count = 0
    private var fault: Fault?

    init(origin: Origin) {
        self.origin = origin
        descriptor = origin.descriptor
        super.init(mailbox: origin.loop.mailbox)
    }

    func prepare(
        _ range: ByteRange, into output: UnsafeMutableBufferPointer<StatusExtent>,
        for index: RequestIndex, image: ImageDevice?
    ) {
        self.range = range
        self.output = output
        self.index = index
        self.image = image
        count = 0
        fault = nil
    }

    override func perform() {
        var position = range.offset
        while position < range.end, count < output.count {
            guard let dataStart = seek(position, cl_seek_data) else { return }
            if dataStart > position {
                output[count] = StatusExtent(
                    length: dataStart - position,
                    flags: AllocationFlags.hole | AllocationFlags.zero)
            } else {
                guard let dataEnd = seek(position, cl_seek_hole) else { return }
                // Data that became a hole between the two calls: the next round reports it.
                guard dataEnd > position else { continue }
                output[count] = StatusExtent(
                    length: dataEnd - position, flags: AllocationFlags.data)
            }
            position += output[count].length
            count += 1
        }
    }

    /// The pool does not take it.
    func refused() {
        fault = .shutdown
        finished()
    }

    override func finished() {
        let image = image
        self.image = nil
        origin.scanEnded(self, index, image, count: count, fault: fault)
    }

    /// Where data or a hole begins at or behind `position`, the end of the range at most; nil
    /// with the fault noted. A filesystem that cannot tell says that all is data.
    private func seek(_ position: UInt64, _ whence: Int32) -> UInt64? {
        let result = lseek(descriptor, off_t(position), whence)
        if result >= 0 { return min(UInt64(result), range.end) }
        let failure = errno
        if failure == ENXIO { return range.end }
        if failure == EINVAL || failure == EOPNOTSUPP {
            return whence == cl_seek_data ? position : range.end
        }
        fault = Fault(errnoValue: failure)
        return nil
    }
}
