import Glibc

/// Lines from standard input, taken when there are some.
struct CommandInput {
    private var pending: [UInt8] = []

    /// The lines that are complete; nil when the input has ended.
    mutating func readLines() -> [String]? {
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = read(0, &buffer, buffer.count)
        guard count > 0 else { return nil }
        pending += buffer[..<count]
        var lines: [String] = []
        while let end = pending.firstIndex(of: 10) {
            lines.append(String(decoding: pending[..<end], as: UTF8.self))
            pending.removeSubrange(...end)
        }
        return lines
    }
}
