internal import BlockModel
internal import OriginIO
internal import RingIO

// What the origin is asked: which parts of it are holes, for block status and, where zeroings and
// discards begin, for snapshots, which need nothing of them.

/// A question for block status that waits its turn.
struct StatusScan {
    let range: ByteRange
    let output: UnsafeMutableBufferPointer<StatusExtent>
    let index: RequestIndex
    /// Who asks, nil for the device.
    let image: ImageDevice?
}

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
            // SAFETY: the buffer of a block status request has room for `room` extents, which are
            // trivial.
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
        scanCount += 1
        waitingScans.append(StatusScan(range: range, output: output, index: index, image: image))
        startScan()
    }

    private func startScan() {
        while scan == nil, scanHead < waitingScans.count {
            let next = waitingScans[scanHead]
            scanHead += 1
            if scanHead == waitingScans.count {
                waitingScans.removeAll(keepingCapacity: true)
                scanHead = 0
            } else if scanHead >= 256, scanHead * 2 > waitingScans.count {
                waitingScans.removeFirst(scanHead)
                scanHead = 0
            }
            scan = next
            access.status(self, token: next.index.rawValue, next.range, into: next.output)
        }
    }

    /// The question that was asked is answered.
    func scanned(_ token: UInt32, count: Int, fault: Fault?) {
        guard let scan, scan.index.rawValue == token else {
            preconditionFailure("the question that was asked is the one that is answered")
        }
        self.scan = nil
        scanCount -= 1
        if let image = scan.image {
            image.statusScanned(scan.index, count: count, fault: fault)
        } else {
            requests.pointer(to: scan.index).pointee.resultByteCount =
                count * MemoryLayout<StatusExtent>.stride
            device.originFinished(scan.index, fault)
        }
        startScan()
        // An image's scan may be the last that a closing device waits for.
        if scanCount == 0 { device.usersChanged() }
    }

    /// Finds out whether the origin has a hole where `range` begins, and how far it reaches; the
    /// engine is told, perhaps at once.
    func findHoles(_ range: ByteRange, for index: RequestIndex) {
        scanCount += 1
        access.findHole(self, token: index.rawValue, range)
    }

    /// What a request's range begins with.
    func searched(_ index: RequestIndex, isHole: Bool, length: UInt64, isCertain: Bool) {
        scanCount -= 1
        if !isCertain { device.engine.originReportsHoles = false }
        device.engine.originScanned(index, isHole: isHole, length: length)
        device.engineTouched()
        // It may be what a closing device waits for.
        if scanCount == 0 { device.usersChanged() }
    }
}
