import Logging
import Quiescing
import ServiceState
import Synchronization
import Testing

@Suite struct `A log that is paused` {
    @Test func `keeps messages back and writes them in their order afterwards`() {
        let log = PausableLog()
        let notes = Notes()
        var logger = Logger(label: "test") { _ in PausableLogHandler(Recorder(notes), log: log) }
        logger.logLevel = .info
        logger.info("one")
        log.pause()
        logger.info("two")
        logger.debug("not wanted")
        logger.info("three")
        #expect(notes.all == ["one"])
        #expect(log.resume() == 0)
        logger.info("four")
        #expect(notes.all == ["one", "two", "three", "four"])
    }

    @Test func `has room for a number of messages and counts the rest`() {
        let log = PausableLog()
        let notes = Notes()
        let logger = Logger(label: "test") { _ in PausableLogHandler(Recorder(notes), log: log) }
        log.pause()
        for _ in 0..<PausableLog.capacity + 7 { logger.info("again") }
        #expect(log.resume() == 7)
        #expect(notes.all.count == PausableLog.capacity)
        #expect(log.resume() == 0)
    }

}

@Suite struct `A lock for asynchronous work` {
    @Test func `is held by one alone or shared by several, first come, first served`() async {
        let lock = AsyncReadWriteLock()
        let notes = Notes()
        await lock.lockShared()
        await lock.lockShared()
        var tasks: [Task<Void, Never>] = []
        for name in ["alone", "shared", "shared too", "alone again"] {
            tasks.append(
                Task {
                    if name.hasPrefix("alone") {
                        await lock.lockExclusive()
                    } else {
                        await lock.lockShared()
                    }
                    notes.add(name)
                })
            // Each waits before the next one comes.
            while lock.waiterCount < tasks.count { await Task.yield() }
        }
        #expect(notes.all.isEmpty, "who comes later does not pass by")
        lock.unlock()
        #expect(lock.waiterCount == 4)
        lock.unlock()
        await tasks[0].value
        #expect(notes.all == ["alone"])
        lock.unlock()
        await tasks[1].value
        await tasks[2].value
        #expect(Set(notes.all.dropFirst()) == ["shared", "shared too"])
        lock.unlock()
        #expect(lock.waiterCount == 1)
        lock.unlock()
        await tasks[3].value
        lock.unlock()
        await lock.lockShared()
        lock.unlock()
    }
}

/// What happened, in order.
private final class Notes: Sendable {
    private let lines = Mutex<[String]>([])

    var all: [String] { lines.withLock { $0 } }

    func add(_ line: String) { lines.withLock { $0.append(line) } }
}

/// Notes messages.
private struct Recorder: LogHandler {
    let notes: Notes
    var logLevel = Logger.Level.trace
    var metadata: Logger.Metadata = [:]
    var metadataProvider: Logger.MetadataProvider?

    init(_ notes: Notes) { self.notes = notes }

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) { notes.add("\(event.message)") }
}
