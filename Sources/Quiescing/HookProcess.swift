internal import Host
internal import CLinux
internal import Glibc
internal import RingIO
internal import Synchronization

// A program that the service runs and waits for, with a limit.
//
// Invariants
// - It runs in a process group of its own, which is killed as a whole at the limit.
// - Its end is what its first process does: children that live on, or keep its output open, hold
//   nobody up.
// - Nobody waits for it longer than the limit and `killSeconds`, whatever it is stuck in.
// - It inherits no descriptor but its standard ones, no blocked and no ignored signal.

/// A hook on its way; see the head of this file.
final class HookProcess: Sendable {
    enum Ending: Equatable, Sendable {
        case exited(Int32)
        case killed(signal: Int32)
        /// It took longer than it may and was killed.
        case tooSlow
        case notStarted(Int32)
    }

    struct Outcome: Equatable, Sendable {
        var ending: Ending
        /// The last of what it printed.
        var output: String
    }

    /// Bytes of output that are kept: the last ones.
    static let outputByteCountMax = 1024
    /// How long a killed process may take to go before nobody waits for it any more.
    static let killSeconds = 5

    private struct State {
        var outcome: Outcome?
        var waiter: CheckedContinuation<Outcome, Never>?
    }

    private let path: String
    private let environment: [String: String]
    private let limitNanoseconds: UInt64
    private let state = Mutex(State())

    init(_ path: String, environment: [String: String], limitSeconds: UInt64) {
        self.path = path
        self.environment = environment
        limitNanoseconds = limitSeconds * 1_000_000_000
    }

    /// Starts it; returns when it runs or could not be started. Once only.
    func start() async {
        await withCheckedContinuation { continuation in
            do throws(HostError) {
                try ServiceThread.start("hook") { [self] in
                    supervise(started: { continuation.resume() })
                }
            } catch {
                finish(Outcome(ending: .notStarted(error.errnoValue), output: ""))
                continuation.resume()
            }
        }
    }

    /// Waits for its end. Once only.
    func outcome() async -> Outcome {
        await withCheckedContinuation { continuation in
            let outcome = state.withLock { state in
                if state.outcome == nil { state.waiter = continuation }
                return state.outcome
            }
            if let outcome { continuation.resume(returning: outcome) }
        }
    }

    private func finish(_ outcome: Outcome) {
        let waiter = state.withLock { state in
            state.outcome = outcome
            defer { state.waiter = nil }
            return state.waiter
        }
        waiter?.resume(returning: outcome)
    }

    /// On a thread of its own, until the process is gone.
    private func supervise(started: () -> Void) {
        var ends: [Int32] = [-1, -1]
        guard cl_pipe(&ends) == 0 else {
            finish(Outcome(ending: .notStarted(errno), output: ""))
            return started()
        }
        defer { close(ends[0]) }
        let spawned = spawn(output: ends[1])
        close(ends[1])
        guard case .success(let process) = spawned else {
            if case .failure(let failure) = spawned {
                finish(Outcome(ending: .notStarted(failure.errnoValue), output: ""))
            }
            return started()
        }
        let handle = cl_pidfd_open(process)
        guard handle >= 0 else {
            // Its end could not be noticed.
            finish(Outcome(ending: .notStarted(errno), output: ""))
            started()
            kill(-process, SIGKILL)
            Self.reap(process)
            return
        }
        defer { close(handle) }
        started()
        var output: [UInt8] = []
        let hasEnded = watch(
            handle, output: ends[0], into: &output,
            until: cl_now_nanoseconds() + limitNanoseconds)
        if !hasEnded {
            kill(-process, SIGKILL)
            // What is stuck in the kernel is waited for on this thread, but by nobody else.
            _ = watch(
                handle, output: ends[0], into: &output,
                until: cl_now_nanoseconds() + UInt64(Self.killSeconds) * 1_000_000_000)
            finish(Outcome(ending: .tooSlow, output: Self.text(output)))
        }
        let status = Self.reap(process)
        if hasEnded { finish(Outcome(ending: Self.ending(status), output: Self.text(output))) }
    }

    @discardableResult
    private static func reap(_ process: pid_t) -> Int32 {
        var status: Int32 = 0
        while waitpid(process, &status, 0) < 0 && errno == EINTR {}
        return status
    }

    /// Reads output until the process ends; false when `deadline` comes first.
    private func watch(
        _ process: Int32, output: Int32, into bytes: inout [UInt8], until deadline: UInt64
    ) -> Bool {
        var isOpen = true
        while true {
            let now = cl_now_nanoseconds()
            let left = deadline > now ? (deadline - now) / 1_000_000 + 1 : 0
            var entries = [
                pollfd(fd: process, events: Int16(POLLIN), revents: 0),
                pollfd(fd: isOpen ? output : -1, events: Int16(POLLIN), revents: 0),
            ]
            let count = poll(&entries, 2, Int32(clamping: left))
            if entries[1].revents != 0 { isOpen = Self.read(output, into: &bytes) }
            if count > 0, entries[0].revents != 0 { return true }
            if left == 0 { return false }
        }
    }

    /// Reads what is there, at most a pipe's worth; false at the end.
    private static func read(_ descriptor: Int32, into bytes: inout [UInt8]) -> Bool {
        var piece = [UInt8](repeating: 0, count: 65536)
        let count = Glibc.read(descriptor, &piece, piece.count)
        let reason = errno
        guard count > 0 else { return count < 0 && (reason == EAGAIN || reason == EINTR) }
        bytes.append(contentsOf: piece[..<count])
        if bytes.count > outputByteCountMax { bytes.removeFirst(bytes.count - outputByteCountMax) }
        return true
    }

    private static func ending(_ status: Int32) -> Ending {
        let signal = status & 0x7f
        return signal == 0 ? .exited(status >> 8 & 0xff) : .killed(signal: signal)
    }

    private static func text(_ bytes: [UInt8]) -> String {
        let text = String(decoding: bytes, as: UTF8.self)
        return String(text.reversed().drop { $0.isWhitespace }.reversed().drop { $0.isWhitespace })
    }

    private func spawn(output: Int32) -> Result<pid_t, HostError> {
        var start = ProgramStart(path, [path])
        start.environment = .only(environment.map { "\($0)=\($1)" })
        start.output = .descriptor(output)
        start.diagnostics = .descriptor(output)
        start.group = .own
        start.resetsSignals = true
        start.closesOthers = true
        start.runsInRoot = true
        do throws(HostError) { return .success(try start.run()) } catch { return .failure(error) }
    }
}
