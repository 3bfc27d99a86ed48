internal import BlockModel
internal import OriginIO
internal import Origins
internal import RingIO

// Performs the requests of one device on its origin. It decides nothing about chunks or
// snapshots: it reads, writes, zeroes, and reports the result.
//
// Steps of a request (`BlockRequest.step`), each one operation of `OriginAccess`:
//
//   read          ──► data ──(short: again)──► done
//   write         ──► data ──► [sync] ──► done                      both ends aligned
//   write         ──► head sector ──► tail sector ──► data ──► ...  under an exclusive range lock
//   zero, discard ──► middle (fallocate) ──► head edge ──► tail edge ──► [sync] ──► done
//                       └─ not supported: pieces of zeroes are written instead
//   flush         ──► sync, shared by all flushes that wait for it
//
// Invariants
// - One access mode, chosen at attach, for all requests.
// - A request is finished once, after its last operation completed.
// - After a synchronisation failed, every later one fails: the kernel may have dropped the data.

/// What is under way for a request; the tag of its operation.
enum OriginStep: UInt8 {
    case data
    case headSector
    case tailSector
    case middle
    case zeroPiece
    case edgeRead
    case edgeWrite
    case synchronize
    case closingSynchronize
}

/// One origin on its loop.
final class Origin: OriginUser {
    let loop: EventLoop
    let requests: RequestPool
    let access: OriginAccess
    let facts: OriginFacts
    let alignment: UInt64
    unowned(unsafe) var device: Device
    var locks: RangeLocks
    let scratch: SectorScratch
    var flushes: FlushQueue
    /// Set when the device closes.
    private var closed: ((Fault?) -> Void)?
    /// Questions for block status and holes that the origin has not answered, of the device and its
    /// images.
    var scanCount = 0
    /// Those for block status that wait for the one that was asked, from `scanHead` on: an origin
    /// that does not answer holds one thread, and its clients' questions do not crowd those of
    /// others.
    var waitingScans: [StatusScan] = []
    var scanHead = 0
    /// The one that was asked.
    var scan: StatusScan?
    /// Times the synchronisation under way was interrupted.
    private var synchronizeAttempts = 0
    /// What the origin was found unable to do; only ever switched off.
    var canPunchHoles = true
    var canZeroRanges = true

    init(_ access: OriginAccess, device: Device, loop: EventLoop) {
        self.loop = loop
        self.access = access
        requests = loop.requests
        facts = access.facts
        alignment = UInt64(access.facts.offsetAlignment)
        self.device = device
        locks = RangeLocks(requests: loop.requests)
        scratch = SectorScratch()
        flushes = FlushQueue(requests: loop.requests)
        super.init()
    }

    // MARK: Requests arrive

    func readArrived(_ index: RequestIndex) {
        requests[index].progress = 0
        requests[index].attempts = 0
        continueData(index)
    }

    func writeArrived(_ index: RequestIndex) {
        let request = requests.pointer(to: index)
        if request.pointee.flags.contains(.forceUnitAccess), let fault = flushes.failure {
            return device.originFinished(index, fault)
        }
        request.pointee.progress = 0
        request.pointee.attempts = 0
        if alignment == 1 { return continueData(index) }
        let isAligned = (request.pointee.offset | request.pointee.length) & (alignment - 1) == 0
        guard locks.arrived(index, isExclusive: !isAligned) else { return }
        startLocked(index)
    }

    func flushArrived(_ index: RequestIndex) {
        if let fault = flushes.failure { return device.originFinished(index, fault) }
        synchronize(index)
    }

    /// Starts a write or zeroing whose range lock is held.
    func startLocked(_ index: RequestIndex) {
        switch requests[index].operation {
        case .write:
            let request = requests.pointer(to: index)
            if request.pointee.part.isAligned(to: alignment) {
                continueData(index)
            } else {
                readHeadSector(index)
            }
        case .writeZeroes, .discard: startZeroing(index)
        case .read, .flush, .prefetch, .blockStatus:
            preconditionFailure("only writes take range locks")
        }
    }

    // MARK: Data

    /// Issues what is left of a read or write.
    func continueData(_ index: RequestIndex) {
        let request = requests.pointer(to: index)
        let range = request.pointee.part.roundedOutward(to: alignment)
        guard let payload = request.pointee.buffer else {
            preconditionFailure("a read or write without a buffer")
        }
        let buffer = payload - Int(request.pointee.offset - range.offset)
        let progress = request.pointee.progress
        let byteCount = Int(range.length - progress)
        let result: Int32?
        switch request.pointee.operation {
        case .read:
            result = access.read(
                self, tag: OriginStep.data.rawValue, token: index.rawValue,
                into: buffer + Int(progress), byteCount: byteCount,
                offset: range.offset + progress, work: byteCount)
        case .write:
            result = access.write(
                self, tag: OriginStep.data.rawValue, token: index.rawValue,
                from: buffer + Int(progress), byteCount: byteCount,
                offset: range.offset + progress,
                isStable: request.pointee.flags.contains(.forceUnitAccess), work: byteCount)
        case .flush, .discard, .writeZeroes, .prefetch, .blockStatus:
            preconditionFailure("only reads and writes carry data")
        }
        if let result { dataCompleted(index, result) }
    }

    private func dataCompleted(_ index: RequestIndex, _ result: Int32) {
        let request = requests.pointer(to: index)
        if result < 0 {
            if Self.isAgain(result) { return tryAgain(index, .data) }
            return dataFinished(index, Fault(errnoValue: -result))
        }
        let range = request.pointee.part.roundedOutward(to: alignment)
        // A short transfer ends at any byte; what follows must start aligned again.
        let progress = (request.pointee.progress + UInt64(result)) & ~(alignment - 1)
        if progress == range.length { return dataFinished(index, nil) }
        guard progress > request.pointee.progress else {
            return dataFinished(index, .inputOutput)
        }
        request.pointee.progress = progress
        continueData(index)
    }

    func dataFinished(_ index: RequestIndex, _ fault: Fault?) {
        let request = requests.pointer(to: index)
        guard request.pointee.operation == .write else {
            return device.originFinished(index, fault)
        }
        writeStepsFinished(index, fault, isStable: access.writesStably)
    }

    /// The last step of a write or zeroing before synchronisation is done.
    func writeStepsFinished(_ index: RequestIndex, _ fault: Fault?, isStable: Bool) {
        if alignment > 1 {
            locks.finished(index)
            while let next = locks.nextAdmitted() { startLocked(next) }
        }
        let wantsStable = requests[index].flags.contains(.forceUnitAccess)
        if let fault {
            // The kernel may have kept part of it and lost it: nothing may be called stable.
            if wantsStable, isStable { flushes.failed(fault) }
            return device.originFinished(index, fault)
        }
        if wantsStable, !isStable { return synchronize(index) }
        device.originFinished(index, nil)
    }

    // MARK: Synchronisation

    func synchronize(_ index: RequestIndex) {
        if let fault = flushes.failure { return device.originFinished(index, fault) }
        if flushes.arrived(index) { startSynchronizing() }
    }

    private func startSynchronizing() {
        let result = access.synchronize(self, tag: OriginStep.synchronize.rawValue, token: 0)
        if let result { synchronizeCompleted(result) }
    }

    private func synchronizeCompleted(_ result: Int32) {
        if Self.isAgain(result), synchronizeAttempts < Self.attemptsAtOnce {
            synchronizeAttempts += 1
            return startSynchronizing()
        }
        synchronizeAttempts = 0
        if result < 0 { flushes.failed(Fault(errnoValue: -result)) }
        let fault = flushes.failure
        let startNext = flushes.completed()
        while let index = flushes.nextFinished() { device.originFinished(index, fault) }
        if startNext { startSynchronizing() }
    }

    // MARK: Closing

    /// Flushes (unless read-only), leaves the loop and calls `closed` with the fault of the flush;
    /// the disk stays open. No request may be under way.
    func close(_ closed: @escaping (Fault?) -> Void) {
        self.closed = closed
        if facts.isReadOnly || flushes.failure != nil { return loop.callAtEndOfTurn(self) }
        let result = access.synchronize(
            self, tag: OriginStep.closingSynchronize.rawValue, token: 0)
        if let result { closingSynchronizeCompleted(result) }
    }

    private func closingSynchronizeCompleted(_ result: Int32) {
        if result < 0 { flushes.failed(Fault(errnoValue: -result)) }
        loop.callAtEndOfTurn(self)
    }

    override func turnEnded() {
        loop.remove(self)
        let closed = self.closed
        self.closed = nil
        closed?(flushes.failure)
    }

    override func timerFired(token: UInt32) { pauseEnded(token: token) }

    // MARK: Answers

    override func statusFound(token: UInt32, count: Int, fault: Fault?) {
        scanned(token, count: count, fault: fault)
    }

    override func holeFound(token: UInt32, isHole: Bool, length: UInt64, isCertain: Bool) {
        searched(RequestIndex(token), isHole: isHole, length: length, isCertain: isCertain)
    }

    override func presenceChecked(_ fault: Fault?) { device.originChecked(fault) }

    // MARK: Completions

    override func completed(tag: UInt8, token: UInt32, result: Int32, flags: UInt32) {
        guard let step = OriginStep(rawValue: tag) else {
            preconditionFailure("a completion of an unknown step")
        }
        completed(step, RequestIndex(token), result)
    }

    /// The operation of a step is over; one of all requests names none.
    func completed(_ step: OriginStep, _ index: RequestIndex, _ result: Int32) {
        switch step {
        case .data: dataCompleted(index, result)
        case .headSector: headSectorCompleted(index, result)
        case .tailSector: tailSectorCompleted(index, result)
        case .middle: middleCompleted(index, result)
        case .zeroPiece: zeroPieceCompleted(index, result)
        case .edgeRead: edgeReadCompleted(index, result)
        case .edgeWrite: edgeWriteCompleted(index, result)
        case .synchronize: synchronizeCompleted(result)
        case .closingSynchronize: closingSynchronizeCompleted(result)
        }
    }
}
