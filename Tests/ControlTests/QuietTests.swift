import Control
import Logging
import Synchronization
import Testing

@Suite struct `Quiet times` {
    @Test func `keep messages back, in their order, and let them out afterwards`() {
        let quiet = QuietLog()
        let notes = Notes()
        var logger = Logger(label: "test") { _ in QuietLogHandler(Recorder(notes), quiet: quiet) }
        logger.logLevel = .info
        logger.info("one")
        quiet.begin()
        logger.info("two")
        logger.debug("not wanted")
        logger.info("three")
        #expect(notes.all == ["one"])
        #expect(quiet.end() == 0)
        logger.info("four")
        #expect(notes.all == ["one", "two", "three", "four"])
    }

    @Test func `have room for a number of messages and count the rest`() {
        let quiet = QuietLog()
        let notes = Notes()
        let logger = Logger(label: "test") { _ in QuietLogHandler(Recorder(notes), quiet: quiet) }
        quiet.begin()
        for _ in 0..<QuietLog.capacity + 7 { logger.info("again") }
        #expect(quiet.end() == 7)
        #expect(notes.all.count == QuietLog.capacity)
        #expect(quiet.end() == 0)
    }

    @Test func `are had by one alone or shared by several, first come, first served`() async {
        let turns = Turns()
        let notes = Notes()
        await turns.takeShared()
        await turns.takeShared()
        var tasks: [Task<Void, Never>] = []
        for name in ["alone", "shared", "shared too", "alone again"] {
            tasks.append(
                Task {
                    if name.hasPrefix("alone") {
                        await turns.takeAlone()
                    } else {
                        await turns.takeShared()
                    }
                    notes.add(name)
                })
            // Each waits before the next one comes.
            while turns.waiterCount < tasks.count { await Task.yield() }
        }
        #expect(notes.all.isEmpty, "who comes later does not pass by")
        turns.giveBack()
        #expect(turns.waiterCount == 4)
        turns.giveBack()
        await tasks[0].value
        #expect(notes.all == ["alone"])
        turns.giveBack()
        await tasks[1].value
        await tasks[2].value
        #expect(Set(notes.all.dropFirst()) == ["shared", "shared too"])
        turns.giveBack()
        #expect(turns.waiterCount == 1)
        turns.giveBack()
        await tasks[3].value
        turns.giveBack()
        await turns.takeShared()
        turns.giveBack()
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
