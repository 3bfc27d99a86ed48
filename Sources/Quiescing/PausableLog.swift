package import Logging
internal import Synchronization

// From the first freeze to the last thaw nothing is logged: what reads the log may write it to the
// frozen filesystem, and a full pipe would block the logging thread. Messages wait in memory
// instead.
//
// Invariants
// - No message is written between `pause` and `resume`; `pause` waits for the one being written.
// - Messages come out in their order; of more than `capacity` the rest is counted and dropped.

/// A log that can be paused; see the head of this file.
package final class PausableLog: Sendable {
    /// The one of this process, as logging is.
    package static let shared = PausableLog()
    /// Most messages that wait.
    package static let capacity = 1024

    private struct State {
        var isPaused = false
        var waiting: [@Sendable () -> Void] = []
        var droppedCount = 0
    }

    private let state = Mutex(State())

    package init() {}

    /// From now on messages wait.
    package func pause() { state.withLock { $0.isPaused = true } }

    /// Writes what has waited; returns how many messages there was no room for.
    @discardableResult
    package func resume() -> Int {
        state.withLock { state in
            state.isPaused = false
            for write in state.waiting { write() }
            state.waiting = []
            defer { state.droppedCount = 0 }
            return state.droppedCount
        }
    }

    /// Writes a message now, or when the log is resumed.
    func add(_ write: @escaping @Sendable () -> Void) {
        state.withLock { state in
            if !state.isPaused {
                write()
            } else if state.waiting.count < Self.capacity {
                state.waiting.append(write)
            } else {
                state.droppedCount += 1
            }
        }
    }
}

/// Hands messages to another handler, while the log is not paused.
package struct PausableLogHandler: LogHandler {
    private var base: any LogHandler
    private let log: PausableLog

    package init(_ base: any LogHandler, log: PausableLog = .shared) {
        self.base = base
        self.log = log
    }

    package var logLevel: Logger.Level {
        get { base.logLevel }
        set { base.logLevel = newValue }
    }

    package var metadata: Logger.Metadata {
        get { base.metadata }
        set { base.metadata = newValue }
    }

    package var metadataProvider: Logger.MetadataProvider? {
        get { base.metadataProvider }
        set { base.metadataProvider = newValue }
    }

    package subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { base[metadataKey: key] }
        set { base[metadataKey: key] = newValue }
    }

    package func log(event: LogEvent) {
        let base = base
        log.add { base.log(event: event) }
    }
}
