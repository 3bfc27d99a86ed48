internal import Host
internal import Glibc

/// Programs of others that a command runs to their end.
package enum ToolProcess {
    /// Most bytes of what a program says that are kept.
    private static let textByteCountMax = 4096

    /// Runs a program found in PATH; returns its exit status (128 and more: a signal) and what it
    /// said on standard output and standard error. 127: it was not found.
    package static func run(_ words: [String]) -> (status: Int32, text: String) {
        guard let ends = makePipe() else { return (126, String(cString: strerror(errno))) }
        defer { close(ends[0]) }
        var start = ProgramStart(words[0], words)
        start.output = .descriptor(ends[1])
        start.diagnostics = .descriptor(ends[1])
        let process: pid_t
        do throws(HostError) { process = try start.run() } catch {
            close(ends[1])
            return (127, "\(error)")
        }
        close(ends[1])
        var bytes: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 1024)
        while true {
            let count = read(ends[0], &piece, piece.count)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { break }
            if bytes.count < textByteCountMax { bytes.append(contentsOf: piece[..<count]) }
        }
        let text = String(decoding: bytes, as: UTF8.self).split(separator: "\n")
            .joined(separator: "; ")
        return (ProgramStart.wait(for: process), text)
    }
}

/// The read and the write end of a pipe that programs started later do not inherit; nil when the
/// system has none to give.
func makePipe() -> [Int32]? {
    var ends: [Int32] = [-1, -1]
    guard pipe(&ends) == 0 else { return nil }
    for end in ends where fcntl(end, F_SETFD, FD_CLOEXEC) != 0 {
        preconditionFailure("a descriptor that was just made takes a flag")
    }
    return ends
}
