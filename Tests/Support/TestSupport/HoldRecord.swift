import Foundation
import Glibc

/// Adds what a test's service measured of its loops to the file that `Scripts/run-tests` names with
/// STILLPOINT_HOLDS. Each service has one line: the number of calls, how many of them took more than
/// 1 ms, and the longest in seconds. A service that its test kills adds none.
enum HoldRecord {
    static func add(of controlPath: String) {
        guard let file = ProcessInfo.processInfo.environment["STILLPOINT_HOLDS"],
            let text = metrics(controlPath),
            let calls = values("stillpoint_loop_measured_calls_total", text),
            let long = values("stillpoint_loop_long_holds_total", text),
            let longest = values("stillpoint_loop_longest_hold_seconds", text)
        else { return }
        let line =
            "\(Int(calls.reduce(0, +))) \(Int(long.reduce(0, +))) \(longest.max() ?? 0)\n"
        // One write: the lines of several processes do not mix.
        let descriptor = open(file, O_WRONLY | O_APPEND | O_CREAT, 0o600)
        guard descriptor >= 0 else { return }
        defer { close(descriptor) }
        _ = write(descriptor, line, line.utf8.count)
    }

    /// The service's metrics; nil when it does not answer in time, as one that a test has stopped or
    /// cut off. `Scripts/run-tests` fails when no service has answered.
    private static func metrics(_ controlPath: String) -> String? {
        guard let connection = try? NBDClient(.unix(path: controlPath)) else { return nil }
        var limit = timeval(tv_sec: 5, tv_usec: 0)
        setsockopt(
            connection.descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit,
            socklen_t(MemoryLayout<timeval>.size))
        let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        guard (try? connection.send(Array(request.utf8))) != nil else { return nil }
        var bytes: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = recv(connection.descriptor, &piece, piece.count, 0)
            guard count >= 0 else { return nil }
            if count == 0 { return String(decoding: bytes, as: UTF8.self) }
            bytes.append(contentsOf: piece[..<count])
        }
    }

    private static func values(_ name: String, _ text: String) -> [Double]? {
        let found = text.split(separator: "\n").filter { $0.hasPrefix(name + "{") }
            .compactMap { $0.split(separator: " ").last.flatMap { Double($0) } }
        return found.isEmpty ? nil : found
    }
}
