internal import Synchronization

/// A lock for asynchronous work: several share it, or one has it alone. First come, first served;
/// waiting blocks no thread.
package final class AsyncReadWriteLock: Sendable {
    private struct Waiter {
        let isAlone: Bool
        let continuation: CheckedContinuation<Void, Never>
    }

    private struct State {
        var isTakenAlone = false
        var sharedCount = 0
        var waiters: [Waiter] = []

        func admits(alone isAlone: Bool) -> Bool {
            !isTakenAlone && (!isAlone || sharedCount == 0)
        }

        mutating func admit(alone isAlone: Bool) {
            if isAlone { isTakenAlone = true } else { sharedCount += 1 }
        }
    }

    private let state = Mutex(State())

    package init() {}

    /// How many wait.
    package var waiterCount: Int { state.withLock { $0.waiters.count } }

    /// Waits until nobody else has it.
    package func lockExclusive() async { await take(alone: true) }

    /// Waits until nobody has it alone.
    package func lockShared() async { await take(alone: false) }

    private func take(alone isAlone: Bool) async {
        await withCheckedContinuation { continuation in
            let isAdmitted = state.withLock { state in
                guard state.waiters.isEmpty, state.admits(alone: isAlone) else {
                    state.waiters.append(Waiter(isAlone: isAlone, continuation: continuation))
                    return false
                }
                state.admit(alone: isAlone)
                return true
            }
            if isAdmitted { continuation.resume() }
        }
    }

    /// Gives back what was taken.
    package func unlock() {
        let admitted = state.withLock { state in
            if state.isTakenAlone {
                state.isTakenAlone = false
            } else {
                precondition(state.sharedCount > 0, "only what was taken is given back")
                state.sharedCount -= 1
            }
            var admitted: [CheckedContinuation<Void, Never>] = []
            while let next = state.waiters.first, state.admits(alone: next.isAlone) {
                state.waiters.removeFirst()
                state.admit(alone: next.isAlone)
                admitted.append(next.continuation)
            }
            return admitted
        }
        for continuation in admitted { continuation.resume() }
    }
}
