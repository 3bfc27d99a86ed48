import BlockModel
import Glibc
import Synchronization
import Testing

import RingIO

@Suite struct `An event loop` {
    @Test(
        arguments: [
            [], RingFeatures.deferTaskRun, [.deferTaskRun, .singleIssuer],
            [.deferTaskRun, .singleIssuer, .cooperativeTaskRun],
            [.deferTaskRun, .singleIssuer, .cooperativeTaskRun, .submitAll],
        ] as [RingFeatures])
    func `reads and writes without each optional feature of io_uring`(
        without: RingFeatures
    ) async throws {
        var configuration = LoopConfiguration()
        configuration.without = without
        let thread = try LoopThread(index: 0, configuration: configuration)
        defer { thread.stopAndJoin() }
        #expect(thread.features.isDisjoint(with: without))
        var ends: [Int32] = [0, 0]
        #expect(pipe(&ends) == 0)
        let (readEnd, writeEnd) = (ends[0], ends[1])
        defer { close(readEnd); close(writeEnd) }
        let bytes = await withCheckedContinuation { continuation in
            let accepted = thread.mailbox.post { loop in
                let handler = PipeHandler(loop: loop, readEnd, writeEnd) {
                    continuation.resume(returning: $0)
                }
                handler.start()
            }
            #expect(accepted)
        }
        #expect(bytes == Array("through the ring".utf8))
    }

    @Test func `looks for a request before it sleeps once four sleeps in a row were short`() {
        var waiting = WaitWindow()
        for _ in 0..<3 { waiting.slept(for: WaitWindow.nearMax, looked: false) }
        // Nobody was in a hurry: it begins anew.
        waiting.slept(for: WaitWindow.nearMax + 1, looked: false)
        for _ in 0..<4 {
            #expect(waiting.window(within: -1) == 0)
            waiting.slept(for: WaitWindow.nearMax, looked: false)
        }
        #expect(waiting.window(within: -1) == WaitWindow.max)
        waiting.found()
        #expect(waiting.window(within: -1) == WaitWindow.max)
    }

    @Test func `looks the more seldom the more often it was in vain, until it finds something`() {
        var waiting = WaitWindow()
        func sleepsUntilItLooks() -> Int {
            var count = 0
            while waiting.window(within: -1) == 0, count < 1000 {
                waiting.slept(for: WaitWindow.max, looked: false)
                count += 1
            }
            return count
        }
        var trials: [Int] = []
        for _ in 0..<8 {
            trials.append(sleepsUntilItLooks())
            waiting.slept(for: WaitWindow.max + 1, looked: true)
        }
        #expect(trials == [4, 8, 16, 32, 64, 128, 256, 256])
        #expect(sleepsUntilItLooks() == 256)
        waiting.found()
        waiting.slept(for: WaitWindow.max + 1, looked: true)
        #expect(sleepsUntilItLooks() == 8)
    }

    @Test func `does not look where a timer would end it, and learns nothing from that`() {
        var waiting = WaitWindow()
        for _ in 0..<100 {
            #expect(waiting.window(within: Int64(WaitWindow.max) - 1) == 0)
            waiting.slept(for: WaitWindow.max - 1, looked: false)
        }
        #expect(waiting.window(within: 0) == 0)
        #expect(waiting.window(within: Int64(WaitWindow.max)) == WaitWindow.max)
    }

    @Test func `keeps a handler that leaves while it is told of a completion until the turn ends`()
        async throws
    {
        let thread = try LoopThread(index: 0, configuration: LoopConfiguration())
        defer { thread.stopAndJoin() }
        let end = Collected()
        let endedInside = await withCheckedContinuation { continuation in
            let accepted = thread.mailbox.post { loop in
                LeavingHandler.leave(loop, end) { continuation.resume(returning: $0) }
            }
            #expect(accepted)
        }
        #expect(!endedInside)
        // The turn in which it left is over.
        _ = await thread.mailbox.run { _ in }
        _ = await thread.mailbox.run { _ in }
        #expect(end.values == [1])
    }

    @Test func `runs messages in order and wakes once for many`() async throws {
        let thread = try LoopThread(index: 3, configuration: LoopConfiguration())
        defer { thread.stopAndJoin() }
        let seen = Collected()
        for number in 0..<1000 {
            #expect(thread.mailbox.post { loop in seen.append(loop.index * 10_000 + number) })
        }
        let index = await thread.mailbox.run { $0.index }
        #expect(index == 3)
        #expect(seen.values == (0..<1000).map { 30_000 + $0 })
    }

    @Test func `refuses messages when as many wait as may, and after it has stopped`() throws {
        let mailbox = try LoopMailbox()
        for _ in 0..<LoopMailbox.capacity { #expect(mailbox.post { _ in }) }
        #expect(!mailbox.post { _ in })
        let thread = try LoopThread(index: 0, configuration: LoopConfiguration())
        thread.stopAndJoin()
        #expect(!thread.mailbox.post { _ in })
    }

    @Test func `fires timers at their time and not before`() async throws {
        let thread = try LoopThread(index: 0, configuration: LoopConfiguration())
        defer { thread.stopAndJoin() }
        let elapsed = await withCheckedContinuation { continuation in
            let accepted = thread.mailbox.post { loop in
                TimerHandler(loop: loop) { continuation.resume(returning: $0) }
                    .start(after: 20_000_000)
            }
            #expect(accepted)
        }
        #expect(elapsed >= 20_000_000)
    }

    @Test func `the blocking pool finishes what waits before it closes`() async throws {
        let pool = try BlockingPool(threadCount: 2)
        let seen = Collected()
        for number in 0..<100 { #expect(pool.submit { seen.append(number) }) }
        #expect(await pool.run { 42 } == 42)
        pool.close()
        #expect(seen.values.sorted() == Array(0..<100))
        #expect(!pool.submit {})
    }

    @Test func `a kernel that forbids io_uring is named with the way out`() {
        let error = RingError(operation: .openRing, errnoValue: EPERM)
        #expect(error.description.contains("io_uring_disabled"))
        let old = RingError(operation: .openRing, errnoValue: ENOSYS)
        #expect(old.description.contains("Linux 5.19"))
    }
}

private final class Collected: Sendable {
    private let storage = Mutex<[Int]>([])
    func append(_ value: Int) { storage.withLock { $0.append(value) } }
    var values: [Int] { storage.withLock { $0 } }
}

/// Leaves its loop as soon as it is told of a completion; only the loop keeps it.
private final class LeavingHandler: RingHandler {
    private let loop: EventLoop
    private let end: Collected
    private let finish: (Bool) -> Void

    private init(_ loop: EventLoop, _ end: Collected, _ finish: @escaping (Bool) -> Void) {
        self.loop = loop
        self.end = end
        self.finish = finish
        super.init()
    }

    static func leave(_ loop: EventLoop, _ end: Collected, _ finish: @escaping (Bool) -> Void) {
        let handler = LeavingHandler(loop, end, finish)
        guard loop.register(handler) else { return finish(true) }
        loop.poll(handler, tag: 0, token: 0, descriptor: -1, events: UInt32(POLLIN))
    }

    deinit { end.append(1) }

    override func completed(tag: UInt8, token: UInt32, result: Int32, flags: UInt32) {
        let (end, finish) = (end, finish)
        loop.remove(self)
        finish(!end.values.isEmpty)
    }
}

/// Writes into a pipe and reads from it, both through the ring.
private final class PipeHandler: RingHandler {
    private let loop: EventLoop
    private let readEnd: Int32
    private let writeEnd: Int32
    private let buffer = UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 8)
    private let finish: ([UInt8]) -> Void

    init(
        loop: EventLoop, _ readEnd: Int32, _ writeEnd: Int32, finish: @escaping ([UInt8]) -> Void
    ) {
        self.loop = loop
        self.readEnd = readEnd
        self.writeEnd = writeEnd
        self.finish = finish
        super.init()
    }

    deinit { buffer.deallocate() }

    func start() {
        precondition(loop.register(self), "the loop has room")
        let text = Array("through the ring".utf8)
        buffer.copyMemory(from: text, byteCount: text.count)
        loop.read(
            self, tag: 1, token: 1, descriptor: readEnd, into: buffer + 32, byteCount: 32,
            offset: UInt64.max)
        loop.write(
            self, tag: 2, token: 2, descriptor: writeEnd, from: buffer, byteCount: text.count,
            offset: UInt64.max)
    }

    override func completed(tag: UInt8, token: UInt32, result: Int32, flags: UInt32) {
        precondition(UInt32(tag) == token, "tag and token come back together")
        if operationsInFlight == 0 { loop.callAtEndOfTurn(self) }
    }

    override func turnEnded() {
        loop.remove(self)
        finish(Array(UnsafeRawBufferPointer(start: buffer + 32, count: 16)))
    }
}

private final class TimerHandler: RingHandler {
    private let loop: EventLoop
    private let finish: (UInt64) -> Void
    private var started: UInt64 = 0

    init(loop: EventLoop, finish: @escaping (UInt64) -> Void) {
        self.loop = loop
        self.finish = finish
        super.init()
    }

    func start(after nanoseconds: UInt64) {
        precondition(loop.register(self), "the loop has room")
        started = loop.now
        _ = loop.schedule(after: nanoseconds, self, token: 0)
        let cancelled = loop.schedule(after: 1, self, token: 1)
        loop.cancel(cancelled)
    }

    override func timerFired(token: UInt32) {
        precondition(token == 0, "a cancelled timer fires")
        let elapsed = loop.now - started
        loop.callAtEndOfTurn(self)
        finish(elapsed)
    }

    override func turnEnded() { loop.remove(self) }
}
