package import BlockModel
package import RingIO

/// Flushes of one origin: those that arrive while one runs share the next.
///
/// Invariants
/// - A flush covers every write that finished before it arrived: it is never answered by a
///   synchronisation that had started before.
/// - Once one failed, `failure` stays.
package struct FlushQueue {
    private struct List {
        var first = RequestIndex.none
        var last = RequestIndex.none
    }

    private let requests: RequestPool
    private var running = List()
    private var waiting = List()
    private var finished = List()
    private var isRunning = false

    /// Why flushes fail, since the first failure.
    package private(set) var failure: Fault?

    /// None is under way. `requests`: of the loop.
    package init(requests: RequestPool) { self.requests = requests }

    /// Takes a flush in; true when a synchronisation must be started for it now.
    package mutating func arrived(_ index: RequestIndex) -> Bool {
        requests[index].next = .none
        if isRunning {
            append(index, to: &waiting)
            return false
        }
        append(index, to: &running)
        isRunning = true
        return true
    }

    /// The first failure is reported from now on.
    package mutating func failed(_ fault: Fault) {
        if failure == nil { failure = fault }
    }

    /// The running synchronisation ended; true when the next must be started.
    package mutating func completed() -> Bool {
        precondition(isRunning, "a synchronisation completes that was not started")
        // `finished` may still hold requests when a flush was answered at once (inline origins).
        if finished.last == .none {
            finished = running
        } else if running.first != .none {
            requests[finished.last].next = running.first
            finished.last = running.last
        }
        if failure != nil {
            // Those that wait would only get the same result after another try.
            if waiting.first != .none {
                requests[finished.last].next = waiting.first
                finished.last = waiting.last
            }
            waiting = List()
        }
        running = waiting
        waiting = List()
        isRunning = running.first != .none
        return isRunning
    }

    /// Takes out a flush that was answered.
    package mutating func nextFinished() -> RequestIndex? {
        let index = finished.first
        guard index != .none else { return nil }
        finished.first = requests[index].next
        if finished.first == .none { finished.last = .none }
        return index
    }

    private func append(_ index: RequestIndex, to list: inout List) {
        if list.last == .none {
            list.first = index
        } else {
            requests[list.last].next = index
        }
        list.last = index
    }
}
