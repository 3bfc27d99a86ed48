import CTestSupport
import Foundation
import Glibc

/// A process of a test, known by its id, ended at the latest when the object goes.
///
/// Not shared between threads while it is being started or ended.
package final class ChildProcess: @unchecked Sendable {
    /// How the process ended.
    package enum Ending: Equatable, Sendable {
        case exited(Int32)
        case killed(signal: Int32)
    }

    package let processID: pid_t
    /// Our end of the pipe to its standard input, if asked for.
    package private(set) var input: Int32?
    private let output: Int32
    private let process: Int32
    private let ticket: Int
    private var pending: [UInt8] = []
    private var ending: Ending?

    /// Starts `path`; standard error goes to `diagnostics`, standard output is read with
    /// `readLine`; it finds the descriptors `passing` from 3 on.
    package init(
        _ path: String, _ arguments: [String], environment: [String: String] = [:],
        diagnostics: String? = nil, withInput: Bool = false, passing: [Int32] = []
    ) throws {
        var outputs: [Int32] = [-1, -1]
        var inputs: [Int32] = [-1, -1]
        guard stillpoint_test_pipe(&outputs) == 0 else { throw TestFailure("pipe2: \(errno)") }
        if withInput, stillpoint_test_pipe(&inputs) != 0 { throw TestFailure("pipe2: \(errno)") }
        defer {
            close(outputs[1])
            if withInput { close(inputs[0]) }
        }
        processID = try Self.spawn(
            path, arguments, environment: environment, input: withInput ? inputs[0] : nil,
            output: outputs[1], diagnostics: diagnostics, passing: passing)
        output = outputs[0]
        input = withInput ? inputs[1] : nil
        process = stillpoint_test_pidfd_open(processID)
        ticket = ExitCleanup.shared.register("kill -9 \(processID)")
    }

    deinit {
        if ending == nil {
            kill(processID, SIGKILL)
            // The kernel keeps one that waits in it, for example for a frozen filesystem.
            do { _ = try wait(deadline: 60) } catch { print("after SIGKILL: \(error)") }
        }
        close(output)
        close(process)
        if let input { close(input) }
    }

    /// Reads one line of standard output, without its end; nil when the output has ended.
    package func readLine(deadline: Double) throws -> String? {
        let end = monotonicSeconds() + deadline
        while true {
            if let newline = pending.firstIndex(of: 10) {
                let line = String(decoding: pending[..<newline], as: UTF8.self)
                pending.removeSubrange(...newline)
                return line
            }
            guard try waitReadable(output, until: end) else {
                throw TestFailure("process \(processID) printed no line within \(deadline) s")
            }
            var buffer = [UInt8](repeating: 0, count: 65536)
            let count = read(output, &buffer, buffer.count)
            if count <= 0 { return nil }
            pending += buffer[..<count]
        }
    }

    /// Writes one line to standard input.
    package func writeLine(_ line: String) throws {
        guard let input else { preconditionFailure("started without an input") }
        let bytes = Array((line + "\n").utf8)
        guard write(input, bytes, bytes.count) == bytes.count else {
            throw TestFailure("process \(processID) takes no input: \(errno)")
        }
    }

    /// Closes standard input.
    package func closeInput() {
        if let input { close(input) }
        input = nil
    }

    /// It has not been waited for.
    package var isRunning: Bool { ending == nil }

    package func send(signal: Int32) {
        if ending == nil { kill(processID, signal) }
    }

    /// Stops it for a while, as if it hung; returns when it stands still.
    package func suspend() throws {
        send(signal: SIGSTOP)
        var status: Int32 = 0
        while waitpid(processID, &status, WUNTRACED) < 0 {
            guard errno == EINTR else { throw TestFailure("waitpid \(processID): \(errno)") }
        }
        guard status & 0xff == 0x7f else { throw TestFailure("process \(processID) has ended") }
    }

    /// Lets it continue after `suspend`.
    package func resume() { send(signal: SIGCONT) }

    /// Waits for the end of the process; the deadline only detects hangs.
    @discardableResult
    package func wait(deadline: Double) throws -> Ending {
        if let ending { return ending }
        guard try waitReadable(process, until: monotonicSeconds() + deadline) else {
            throw TestFailure("process \(processID) did not end within \(deadline) s")
        }
        var status: Int32 = 0
        while waitpid(processID, &status, 0) < 0 && errno == EINTR {}
        let signal = status & 0x7f
        let result: Ending = signal == 0 ? .exited((status >> 8) & 0xff) : .killed(signal: signal)
        ending = result
        ExitCleanup.shared.withdraw(ticket)
        return result
    }

    /// Kills it as `kill -9` does and waits until it is gone.
    package func killAndWait() throws {
        send(signal: SIGKILL)
        try wait(deadline: 120)
    }

    /// What the process's standard output still holds, up to its end.
    package func readToEnd(deadline: Double) throws -> String {
        var text = ""
        while let line = try readLine(deadline: deadline) { text += line + "\n" }
        return text + String(decoding: pending, as: UTF8.self)
    }

    /// Starts a process with the given descriptors; all others are closed in it.
    package static func spawn(
        _ path: String, _ arguments: [String], environment: [String: String] = [:],
        input: Int32?, output: Int32?, diagnostics: String?, ownSession: Bool = false,
        passing: [Int32] = []
    ) throws -> pid_t {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        // Out of the way first, so that none is overwritten by another on its way to its number.
        let copies = passing.map { fcntl($0, F_DUPFD_CLOEXEC, 1000) }
        defer { for copy in copies { close(copy) } }
        for (index, copy) in copies.enumerated() {
            guard copy >= 0 else { throw TestFailure("cannot pass descriptor \(passing[index])") }
            posix_spawn_file_actions_adddup2(&actions, copy, Int32(3 + index))
        }
        if let input {
            posix_spawn_file_actions_adddup2(&actions, input, 0)
        } else {
            posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        }
        if let output {
            posix_spawn_file_actions_adddup2(&actions, output, 1)
        } else {
            posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0)
        }
        posix_spawn_file_actions_addopen(
            &actions, 2, diagnostics ?? "/dev/null", O_WRONLY | O_CREAT | O_APPEND, 0o600)
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var flags = Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF)
        if ownSession { flags |= 0x80 }
        var noSignals = sigset_t()
        sigemptyset(&noSignals)
        posix_spawnattr_setsigmask(&attributes, &noSignals)
        var allDefault = sigset_t()
        sigfillset(&allDefault)
        posix_spawnattr_setsigdefault(&attributes, &allDefault)
        posix_spawnattr_setflags(&attributes, flags)

        let values = ProcessInfo.processInfo.environment.merging(environment) { $1 }
        var argumentPointers = ([path] + arguments).map { strdup($0) } + [nil]
        var environmentPointers = values.map { strdup("\($0)=\($1)") } + [nil]
        defer { for pointer in argumentPointers + environmentPointers { free(pointer) } }
        var processID: pid_t = 0
        let error = posix_spawnp(
            &processID, path, &actions, &attributes, &argumentPointers, &environmentPointers)
        guard error == 0 else {
            throw TestFailure("cannot start \(path): \(String(cString: strerror(error)))")
        }
        return processID
    }
}

/// Seconds of the monotonic clock.
package func monotonicSeconds() -> Double {
    var now = timespec()
    clock_gettime(CLOCK_MONOTONIC, &now)
    return Double(now.tv_sec) + Double(now.tv_nsec) / 1e9
}

/// Waits until `descriptor` can be read; false when `end` comes first.
package func waitReadable(_ descriptor: Int32, until end: Double) throws -> Bool {
    while true {
        var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        let left = end - monotonicSeconds()
        let result = poll(&entry, 1, Int32(max(0, min(left, 3600)) * 1000))
        if result > 0 { return true }
        if result < 0 && errno != EINTR { throw TestFailure("poll: \(errno)") }
        if left <= 0 { return false }
    }
}
