internal import CLinux
internal import Glibc
internal import Synchronization

/// How other threads reach a loop: a bounded queue of messages that run on it, one wake-up for
/// each time the queue stops being empty. Requests never pass here: only control messages,
/// connections that move to another loop and finished blocking work.
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

    /// Queues a message, and waits while the queue is full, which the loop soon changes. False
    /// when the loop has stopped. Not for loops themselves.
    @discardableResult
    package func postWhenRoom(_ message: @escaping Message) -> Bool {
        addWhenRoom(.message(message))
    }

    /// Queues finished work, which is told on the loop.
    func post(finished work: BlockingWork) { _ = addWhenRoom(.finished(work)) }

    private enum Outcome {
        case queued
        case full
        case closed
    }

    private func add(_ item: Item) -> Outcome {
        let (outcome, mustWake) = state.withLock { state -> (Outcome, Bool) in
            if state.isClosed { return (.closed, false) }
            guard state.items.count < Self.capacity else { return (.full, false) }
            state.items.append(item)
            return (.queued, state.items.count == 1)
        }
        if mustWake { eventfd_write(event, 1) }
        return outcome
    }

    private func addWhenRoom(_ item: Item) -> Bool {
        while true {
            switch add(item) {
            case .queued: return true
            case .closed: return false
            case .full: sched_yield()
            }
        }
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

    /// Takes all that waits into `items`, which is empty and gives its memory in return.
    func takeAll(into items: inout [Item]) {
        state.withLock { swap(&$0.items, &items) }
    }

    /// Refuses what comes from now on.
    func refuse() { state.withLock { $0.isClosed = true } }
}

/// Runs the messages of a loop's mailbox.
final class MailReader: RingHandler {
    private unowned let loop: EventLoop
    private let counter: UnsafeMutablePointer<UInt64>
    private var items: [LoopMailbox.Item] = []

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
        runAll()
        guard loop.isStopping else { return arm() }
        loop.mailbox.refuse()
        runAll()
        loop.remove(self)
    }

    private func runAll() {
        loop.mailbox.takeAll(into: &items)
        for item in items {
            switch item {
            case .message(let message): message(loop)
            case .finished(let work): work.finished()
            }
        }
        items.removeAll(keepingCapacity: true)
    }
}
