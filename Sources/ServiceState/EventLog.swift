package import ControlDocuments
package import BlockModel
internal import FoundationEssentials
internal import Synchronization

// What happened, numbered: kept for a while so that it can be replayed, and waited for.
//
// Invariants
// - Numbers rise by one, over the end of the service too (`EventNumbers`); the newest `capacity`
//   events of this run are kept. A follower that falls behind further sees a gap in the numbers and
//   is never waited for.
// - Events are recorded from any thread, loops included: nothing here waits, performs I/O or keeps
//   the lock for longer than a few assignments.
// - A snapshot is living from `began` to its end; nobody waits for events of one that is not.

/// What an event tells.
package enum EventKind: String, CaseIterable, Sendable {
    case taken, destroyed, corrupted
    case overlayCorrupted = "overlay-corrupted"
    case lowSpace = "low-space"
    case storageGrown = "storage-grown"
    case storageNotErased = "storage-not-erased"
    case hookFailed = "hook-failed"
    case freezeFailed = "freeze-failed"
    case deviceAttached = "device-attached"
    case deviceDetached = "device-detached"
    case blockAttached = "block-attached"
    case blockDetached = "block-detached"
    case deviceResized = "device-resized"
    case deviceGone = "device-gone"
    case originReplaced = "origin-replaced"
    case generationNew = "history-new"
}

/// A snapshot's id and its name, if it has one.
package struct SnapshotLabel: Hashable, Sendable, CustomStringConvertible {
    package let id: UniqueID
    package let name: ObjectName?

    package init(id: UniqueID, name: ObjectName?) {
        self.id = id
        self.name = name
    }

    /// What exports and messages call it.
    package var description: String { name?.text ?? id.description }
}

/// The events of the service; see the head of this file.
package final class EventLog: Sendable {
    /// Events that are kept.
    package static let capacity = 4096

    /// Events after a number, and how things stand.
    package struct Page: Sendable {
        /// The events, the oldest first.
        package var events: [EventDocument]
        /// The newest event's number, whether it is among `events` or not.
        package var last: UInt64
        /// No further event will come.
        package var isOver: Bool
        /// What `wait` waits to change.
        package var version: UInt64
    }

    /// Of this run of the service: events of another one have another id.
    package let instance = UniqueID.random()
    /// The last number of the runs before.
    let base: UInt64

    private struct State {
        var events: [EventDocument] = []
        var last: UInt64
        /// Rises with every change.
        var version: UInt64 = 0
        var living: Set<UniqueID> = []
        var counts: [EventKind: UInt64] = [:]
        var isClosed = false
        var waiters: [UInt64: CheckedContinuation<Void, Never>] = [:]
        var nextWaiter: UInt64 = 0
    }

    private let state: Mutex<State>

    /// `base`: the last number of the runs before.
    package init(after base: UInt64 = 0) {
        self.base = base
        state = Mutex(State(last: base))
    }

    /// The newest event's number.
    package var last: UInt64 { state.withLock { $0.last } }

    /// Records an event.
    package func record(
        _ kind: EventKind, snapshot: SnapshotLabel? = nil, device: ObjectName? = nil,
        errno: Int32? = nil, _ message: String
    ) {
        let time = Date()
        changeState { state in
            state.last += 1
            state.counts[kind, default: 0] += 1
            let event = EventDocument(
                number: state.last, instance: instance.description, time: time, type: kind.rawValue,
                snapshot: snapshot?.id.description, snapshotName: snapshot?.name?.text,
                device: device?.text, errno: errno, message: message)
            let place = place(of: state.last)
            if place < state.events.count {
                state.events[place] = event
            } else {
                state.events.append(event)
            }
            if kind == .destroyed, let snapshot { state.living.remove(snapshot.id) }
        }
    }

    private func place(of number: UInt64) -> Int {
        Int((number - base - 1) % UInt64(Self.capacity))
    }

    /// Refuses a number that no event has had yet: a client asking for what comes after it would
    /// wait for something else than it thinks.
    package func check(_ number: UInt64) throws(ControlError) {
        let last = last
        guard number > last else { return }
        throw ControlError(
            .eventsRestarted,
            "event \(number) has not happened: the newest is \(last), so its number is of another "
                + "state directory; begin again with 0",
            details: ["instance": instance.description, "last": "\(last)"])
    }

    /// How many events of each type were recorded.
    package func counts() -> [(kind: String, count: UInt64)] {
        let counts = state.withLock { $0.counts }
        return EventKind.allCases.map { ($0.rawValue, counts[$0] ?? 0) }
    }

    /// The snapshot can be waited for.
    package func began(_ snapshot: SnapshotLabel) {
        state.withLock { _ = $0.living.insert(snapshot.id) }
    }

    /// The create failed; its waiters are notified.
    package func abandoned(_ snapshot: SnapshotLabel) {
        changeState { $0.living.remove(snapshot.id) }
    }

    /// Ends all waiting: the service stops.
    package func close() { changeState { $0.isClosed = true } }

    /// Changes the state and wakes those who wait for it to change.
    private func changeState(_ body: (inout State) -> Void) {
        let waiters = state.withLock { state in
            body(&state)
            state.version += 1
            defer { state.waiters = [:] }
            return state.waiters.values
        }
        for waiter in waiters { waiter.resume() }
    }

    /// The events after `number`, of one snapshot or all.
    package func page(after number: UInt64, of snapshot: UniqueID?) -> Page {
        state.withLock { state in
            let kept = UInt64(state.events.count)
            var events: [EventDocument] = []
            let id = snapshot?.description
            var next = max(min(number, state.last) + 1, state.last - kept + 1)
            while next <= state.last {
                let event = state.events[place(of: next)]
                if id == nil || event.snapshot == id { events.append(event) }
                next += 1
            }
            let isGone = snapshot.map { !state.living.contains($0) } ?? false
            return Page(
                events: events, last: state.last, isOver: isGone || state.isClosed,
                version: state.version)
        }
    }

    /// The snapshot that events which are kept call so, the newest first: one that was destroyed
    /// can still be asked for.
    package func snapshot(called text: String) -> UniqueID? {
        guard !text.isEmpty else { return nil }
        return state.withLock { state in
            let match = state.events.filter { event in
                guard let id = event.snapshot else { return false }
                return id == text || event.snapshotName == text || id.hasPrefix(text)
            }.max { $0.number < $1.number }
            return match?.snapshot.flatMap { UniqueID($0) }
        }
    }

    /// Returns when something has changed since the page of `version`; at the latest at
    /// `deadline`, and when the task is cancelled.
    package func wait(past version: UInt64, until deadline: ContinuousClock.Instant?) async {
        guard let deadline else { return await wait(past: version) }
        await withTaskGroup(of: Void.self) { group in
            group.addTask { await self.wait(past: version) }
            group.addTask {
                // Ends early only when it is cancelled because the other one came first.
                try? await Task.sleep(until: deadline, clock: .continuous)
            }
            await group.next()
            group.cancelAll()
        }
    }

    private func wait(past version: UInt64) async {
        let waiter = state.withLock { state in
            state.nextWaiter += 1
            return state.nextWaiter
        }
        await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                let isNow = state.withLock { state in
                    guard state.version == version, !Task.isCancelled else { return true }
                    state.waiters[waiter] = continuation
                    return false
                }
                if isNow { continuation.resume() }
            }
        } onCancel: {
            // Cancelled before it waited: then it finds that out itself, under the same lock.
            state.withLock { $0.waiters.removeValue(forKey: waiter) }?.resume()
        }
    }
}
