internal import BlockModel
internal import RingIO

// An origin attached to the service, on its loop: what exports submit requests to.
//
// Invariants
// - `underway` counts the requests that were taken over and not yet finished.
// - After `close` no request is taken over; the origin is closed when `underway` is zero, every
//   user has left and the last flush has ended.

/// One device on its loop.
final class Device: BlockTarget {
    let loop: EventLoop
    private let requests: RequestPool
    private var originStorage: Origin?
    private var underway = 0
    private(set) var counters = DeviceCounters()
    private var closing: Closing?

    private struct Closing {
        var finish: (Fault?) -> Void
        var isFlushing = false
    }

    init(_ opened: OpenedOrigin, loop: EventLoop, blocking: BlockingPool) {
        self.loop = loop
        requests = loop.requests
        super.init(size: opened.facts.size, alignment: UInt64(opened.facts.offsetAlignment))
        originStorage = Origin(opened, device: self, loop: loop, blocking: blocking)
    }

    private var origin: Origin { originStorage.unsafelyUnwrapped }

    /// Enters the origin among the loop's handlers; false when the loop is full.
    func register() -> Bool { loop.register(origin) }

    // MARK: Requests

    override func submit(_ index: RequestIndex) {
        let request = requests.pointer(to: index)
        underway += 1
        guard closing == nil else { return originFinished(index, .shutdown) }
        precondition(request.pointee.range.end <= size, "an export let a request past the end")
        let origin = origin
        switch request.pointee.operation {
        case .read:
            counters.reads &+= 1
            counters.readBytes &+= request.pointee.length
            origin.readArrived(index)
        case .write:
            guard !origin.facts.isReadOnly else { return originFinished(index, .notPermitted) }
            counters.writes &+= 1
            counters.writtenBytes &+= request.pointee.length
            origin.writeArrived(index)
        case .flush:
            counters.flushes &+= 1
            if origin.facts.isReadOnly { return originFinished(index, nil) }
            origin.flushArrived(index)
        case .discard, .writeZeroes:
            guard !origin.facts.isReadOnly else { return originFinished(index, .notPermitted) }
            if request.pointee.operation == .discard {
                counters.discards &+= 1
            } else {
                counters.zeroes &+= 1
            }
            origin.zeroingArrived(index)
        case .prefetch:
            // The page cache is not ours to fill: direct origins have none, tmpfs is memory.
            originFinished(index, nil)
        case .blockStatus: origin.statusArrived(index)
        }
    }

    /// The origin is done with a request.
    func originFinished(_ index: RequestIndex, _ fault: Fault?) {
        if fault != nil { counters.failures &+= 1 }
        underway -= 1
        requests.finish(index, fault)
        if closing != nil { continueClosing() }
    }

    // MARK: Closing

    /// Sends the users away, finishes what is under way, flushes, closes the descriptor and
    /// calls `finish` with the fault of the flush. Runs on the loop, once.
    func close(_ finish: @escaping (Fault?) -> Void) {
        precondition(closing == nil, "a device is closed twice")
        closing = Closing(finish: finish)
        closeUsers()
        continueClosing()
    }

    override func usersChanged() {
        if closing != nil { continueClosing() }
    }

    private func continueClosing() {
        guard underway == 0, userCount == 0, let current = closing, !current.isFlushing else {
            return
        }
        closing?.isFlushing = true
        origin.close { fault in
            self.originStorage = nil
            current.finish(fault)
        }
    }
}
