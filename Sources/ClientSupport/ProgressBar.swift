internal import ControlDocuments

/// How the progress of a command is reported.
package enum ProgressReport: Sendable {
    /// A bar on a terminal, and nothing elsewhere.
    case bar
    /// A line every second, for people or as JSON.
    case lines, json
}

/// What `--progress --json` writes on standard error, a line each.
struct ProgressLine: Encodable {
    var progress: String
    var doneBytes: UInt64
    var totalBytes: UInt64
    var seconds: Double

    var text: String {
        do {
            let bytes = try DocumentCoding.encoder().encode(self)
            return String(decoding: bytes, as: UTF8.self) + "\n"
        } catch { preconditionFailure("numbers are written as JSON: \(error)") }
    }
}

/// A bar on standard error for work that takes long; nothing when that is not a terminal.
package enum ProgressBar {
    private static let interval = Duration.milliseconds(200)
    private static let barWidthMax = 30

    /// Shows how far `body` is while it runs: `done()` of `total` bytes.
    package static func showing(
        _ label: String, of total: UInt64, _ report: ProgressReport = .bar,
        done: @escaping @Sendable () -> UInt64,
        _ body: @Sendable () async -> Void
    ) async throws {
        guard report == .bar else {
            await reporting(label, of: total, report, done: done, body)
            return
        }
        guard FileHandles.error.columns != nil else { return await body() }
        await withTaskGroup(of: Void.self) { group in
            group.addTask {
                let begun = ContinuousClock.now
                // Cancelled when the work is done.
                while (try? await Task.sleep(for: interval)) != nil {
                    let seconds = (ContinuousClock.now - begun) / .seconds(1)
                    let columns = FileHandles.error.columns ?? 80
                    FileHandles.error.write(
                        "\r" + line(label, done(), total, seconds, columns: columns)
                            + "\u{1b}[K")
                }
            }
            await body()
            group.cancelAll()
            await group.waitForAll()
        }
        // The line gives way to whatever is said next.
        FileHandles.error.write("\r\u{1b}[K")
    }

    private static let lineInterval = Duration.seconds(1)

    /// Writes a line on standard error every second, and a last one.
    private static func reporting(
        _ label: String, of total: UInt64, _ report: ProgressReport,
        done: @escaping @Sendable () -> UInt64, _ body: @Sendable () async -> Void
    ) async {
        let begun = ContinuousClock.now
        let writeLine = { @Sendable in
            let seconds = (ContinuousClock.now - begun) / .seconds(1)
            FileHandles.error.write(
                report == .json
                    ? ProgressLine(
                        progress: label, doneBytes: done(), totalBytes: total, seconds: seconds
                    ).text
                    : line(label, done(), total, seconds, columns: 0) + "\n")
        }
        await withTaskGroup(of: Void.self) { group in
            group.addTask {
                // Cancelled when the work is done.
                while (try? await Task.sleep(for: lineInterval)) != nil { writeLine() }
            }
            await body()
            group.cancelAll()
            await group.waitForAll()
        }
        writeLine()
    }

    /// One line: label, share, bar, bytes, rate and time left.
    static func line(
        _ label: String, _ done: UInt64, _ total: UInt64, _ seconds: Double, columns: Int
    ) -> String {
        let share = total == 0 ? 1 : min(1, Double(done) / Double(total))
        let rate = Double(done) / max(seconds, 0.001)
        var figures = "\(Int(share * 100)) %  \(sizeText(done)) of \(sizeText(total))"
        figures += "  \(sizeText(UInt64(rate)))/s"
        if done > 0, done < total {
            figures += "  \(durationText(Double(total - done) / rate)) left"
        }
        let room = columns - label.count - figures.count - 6
        guard columns > 0 else { return "\(label)  \(figures)" }
        guard room >= 10 else { return String("\(label)  \(figures)".prefix(max(columns - 1, 0))) }
        let width = min(room, barWidthMax)
        let filled = Int(share * Double(width))
        let bar =
            String(repeating: "█", count: filled)
            + String(repeating: "░", count: width - filled)
        return "\(label)  \(bar)  \(figures)"
    }

    private static func durationText(_ seconds: Double) -> String {
        let whole = Int(min(seconds, 359_999).rounded(.up))
        let parts = [whole / 3600, whole / 60 % 60, whole % 60].map { part in
            part < 10 ? "0\(part)" : "\(part)"
        }
        return whole >= 3600 ? parts.joined(separator: ":") : parts[1...].joined(separator: ":")
    }
}
