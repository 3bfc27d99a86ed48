package import Logging

// Loops may not log: what they record is logged from here.

extension EventKind {
    /// The log level for events that are not logged by their origin; nil for those that are.
    fileprivate var level: Logger.Level? {
        switch self {
        case .corrupted, .overlayCorrupted, .storageNotErased: .error
        case .lowSpace: .warning
        case .storageGrown: .info
        case .taken, .destroyed, .hookFailed, .freezeFailed, .deviceAttached, .deviceDetached,
            .blockAttached, .blockDetached, .deviceResized, .deviceGone, .originReplaced,
            .generationNew:
            nil
        }
    }
}

extension EventLog {
    /// Logs what loops record, from the first event on, until the task is cancelled; what was
    /// recorded before that is logged still. `cover` is called with the newest number.
    package func logNotices(
        to logger: Logger, covering cover: @Sendable (UInt64) async -> Void
    ) async {
        var seen = base
        while true {
            let isLast = Task.isCancelled
            let page = page(after: seen, of: nil)
            let missedCount = page.last - seen - UInt64(page.events.count)
            if missedCount > 0 {
                logger.error("\(missedCount) event(s) came too fast to be logged")
            }
            for event in page.events {
                guard let level = EventKind(rawValue: event.type)?.level else { continue }
                logger.log(level: level, "\(event.message)")
            }
            seen = page.last
            await cover(seen)
            if isLast { return }
            await wait(past: page.version, until: nil)
        }
    }
}
