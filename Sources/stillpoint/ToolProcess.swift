import Control
import Glibc

/// Programs of others that a command runs to their end.
enum ToolProcess {
    /// Most bytes of what a program says that are kept.
    private static let textByteCountMax = 4096

    /// Runs a program found in PATH; returns its exit status (128 and more: a signal) and what it
    /// said on standard output and standard error. 127: it was not found.
    static func run(_ words: [String]) -> (status: Int32, text: String) {
        guard let ends = makePipe() else { return (126, String(cString: strerror(errno))) }
        defer { close(ends[0]) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO)
        posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO)
        var arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) } + [nil]
        defer { for argument in arguments { free(argument) } }
        var process: pid_t = 0
        let failure = withPlainSignals { attributes in
            posix_spawnp(&process, words[0], &actions, &attributes, &arguments, environ)
        }
        close(ends[1])
        guard failure == 0 else {
            return (127, "\(words[0]): \(String(cString: strerror(failure)))")
        }
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
        return (wait(for: process), text)
    }

    /// Waits for a child; its exit status, or 128 and the signal that ended it.
    static func wait(for process: pid_t) -> Int32 {
        var status: Int32 = 0
        while waitpid(process, &status, 0) < 0 {
            guard errno == EINTR else { return 126 }
        }
        let signal = status & 0x7F
        return signal == 0 ? status >> 8 & 0xFF : 128 + signal
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

/// Calls `body` with attributes for a program that receives signals: threads of Swift's pool block
/// them, and programs that they start would inherit that. `flags` are more of the attributes'
/// flags.
func withPlainSignals(
    flags: Int32 = 0, _ body: (inout posix_spawnattr_t) -> Int32
) -> Int32 {
    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    var none = sigset_t()
    sigemptyset(&none)
    posix_spawnattr_setsigmask(&attributes, &none)
    posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK | flags))
    return body(&attributes)
}
