internal import CLinux
internal import Glibc
internal import Synchronization

/// How other threads reach a loop: a bounded queue of messages that run on it, one wake-up for
/// each time the queue stops being empty. Requests never pass here: only control messages,
/// connections that move to another loop and finished blocking work.
///
/// Behind a full queue wait the messages of those who are bounded themselves: suspended tasks, jobs
/// of the blocking pool, cuts. Nobody waits for room on a thread.
package final class LoopMailbox: Sendable {
    /// Runs on the loop.
    package typealias Message = @Sendable (EventLoop) -> Void

    /// Most messages that wait.
    package static let capacity = 4096

    /// What waits in the mailbox.
    enum Item {
        case message(Message)
        case finished(BlockingWork)
    }

    private struct State {
        var items: [Item] = []
        /// What has no room yet, in order; empty while `items` has room.
        var behind: [Item] = []
        var isClosed = false
    }

    private let state = Mutex(State())
    /// Descriptor that becomes readable when messages wait.
    let event: Int32

    package init() throws(RingError) {
        event = eventfd(0, Int32(EFD_CLOEXEC))
        guard event >= 0 else { throw RingError(operation: .openEvent, errnoValue: errno) }
    }

    deinit { close(event) }

    /// Queues a message; false when the queue is full or the loop has stopped.
    package func post(_ message: @escaping Message) -> Bool { add(.message(message)) == .queued }

    /// Queues a message, behind a full queue where that is full. For those whose number is bounded:
    /// each has one message on its way and waits for what follows from it. False when the loop has
    /// stopped.
    @discardableResult
    package func postWhenRoom(_ message: @escaping Message) -> Bool {
        add(.message(message), behindOthers: true) == .queued
    }

    /// Queues finished work, which is reported on the loop.
    func post(finished work: BlockingWork) { _ = add(.finished(work), behindOthers: true) }

    private enum Outcome {
        case queued
        case full
        case closed
    }

    private func add(_ item: Item, behindOthers: Bool = false) -> Outcome {
        let (outcome, mustWake) = state.withLock { state -> (Outcome, Bool) in
            if state.isClosed { return (.closed, false) }
            guard state.items.count < Self.capacity, state.behind.isEmpty else {
                guard behindOthers else { return (.full, false) }
                // The loop takes them with what is before them.
                state.behind.append(item)
                return (.queued, false)
            }
            state.items.append(item)
            return (.queued, state.items.count == 1)
        }
        if mustWake { eventfd_write(event, 1) }
        return outcome
    }

    /// Runs `body` on the loop and returns what it returned; nil when the loop has stopped.
    package func run<Value: Sendable>(
        _ body: @escaping @Sendable (EventLoop) -> Value
    ) async -> Value? {
        await withCheckedContinuation { continuation in
            let accepted = postWhenRoom { loop in continuation.resume(returning: body(loop)) }
            if !accepted { continuation.resume(returning: nil) }
        }
    }

    /// Takes what is in the queue into `items`, which is empty and gives its memory in return. What
    /// waits behind takes its place, and the loop is woken for it. False when there was nothing.
    func takeAll(into items: inout [Item]) -> Bool {
        let hasMore = state.withLock { state in
            swap(&state.items, &items)
            guard !state.behind.isEmpty else { return false }
            let count = min(state.behind.count, Self.capacity)
            state.items.append(contentsOf: state.behind.prefix(count))
            state.behind.removeFirst(count)
            return true
        }
        if hasMore { eventfd_write(event, 1) }
        return !items.isEmpty
    }

    /// Refuses what comes from now on.
    func refuse() { state.withLock { $0.isClosed = true } }
}

/// Runs the messages of a loop's mailbox.
final class MailReader: RingHandler {
    private unowned let loop: EventLoop
    private let counter: UnsafeMutablePointer<UInt64>
    private var items: [LoopMailbox.Item] = []
    /// Of these, so many have run.
    private var doneCount = 0
    /// Messages run in one call, then others have their turn.
    private static let messageCountMax = 16

    init(loop: EventLoop) {
        self.loop = loop
        counter = .allocate(capacity: 1)
        counter.initialize(to: 0)
        super.init()
    }

    deinit { counter.deallocate() }

    func arm() {
        loop.readEvent(self, tag: 0, token: 0, descriptor: loop.mailbox.event, into: counter)
    }

    override func completed(tag: UInt8, token: UInt32, result: Int32, flags: UInt32) {
        precondition(result == 8 || result == -EINTR || result == -EAGAIN, "an eventfd failed")
        _ = loop.mailbox.takeAll(into: &items)
        runSome()
    }

    override func turnEnded() { runSome() }

    /// Runs some of what was in the queue. What came meanwhile has its turn when all of it has run.
    private func runSome() {
        run(atMost: Self.messageCountMax)
        if doneCount < items.count { return loop.callAtEndOfTurn(self) }
        items.removeAll(keepingCapacity: true)
        doneCount = 0
        guard loop.isStopping else { return arm() }
        loop.mailbox.refuse()
        while loop.mailbox.takeAll(into: &items) {
            run(atMost: .max)
            items.removeAll(keepingCapacity: true)
            doneCount = 0
        }
        loop.remove(self)
    }

    private func run(atMost countMax: Int) {
        let end = min(items.count, doneCount.addingReportingOverflow(countMax).partialValue)
        while doneCount < end {
            switch items[doneCount] {
            case .message(let message): message(loop)
            case .finished(let work): work.finished()
            }
            doneCount += 1
        }
    }
}
