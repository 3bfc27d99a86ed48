// What tests leave in the system (processes, loop devices, mounts, files) must go even when the
// test process itself is killed or traps, where no `defer` runs. So one shell is started that reads
// instructions from a pipe: "+ID COMMAND" registers a command, "-ID" withdraws it. The pipe ends
// when the test process ends, however it ends; then the shell runs what is still registered.

import CTestSupport
import Foundation
import Glibc
import Synchronization

/// Cleans up after this test process, also after its sudden end.
package final class ExitCleanup: Sendable {
    /// The one of this process.
    package static let shared = ExitCleanup()

    private let pipe: Int32
    private let lastTicket = Atomic<Int>(0)

    private init() {
        let script = """
            trap '' INT TERM HUP
            while IFS= read -r line; do
                id=${line%% *}
                case $id in
                    +*) eval "task_${id#+}=\\${line#* }"; ids="${id#+} $ids" ;;
                    -*) eval "unset task_${id#-}" ;;
                esac
            done
            for id in $ids; do
                eval "task=\\${task_$id-}"
                [ -z "$task" ] || eval "$task" >/dev/null 2>&1 </dev/null
            done
            """
        var ends: [Int32] = [0, 0]
        guard stillpoint_test_pipe(&ends) == 0 else { preconditionFailure("no pipe: \(errno)") }
        do {
            // A session of its own: a Ctrl-C for the test process must not reach it.
            _ = try ChildProcess.spawn(
                "/bin/sh", ["-c", script], input: ends[0], output: nil, diagnostics: nil,
                ownSession: true)
        } catch {
            preconditionFailure("no shell for cleaning up: \(error)")
        }
        close(ends[0])
        pipe = ends[1]
    }

    /// Runs `command` with the shell should this process end before `withdraw` is called.
    package func register(_ command: String) -> Int {
        let ticket = lastTicket.add(1, ordering: .relaxed).newValue
        send("+\(ticket) \(command)\n")
        return ticket
    }

    /// Forgets the command of `ticket`: its work has been done.
    package func withdraw(_ ticket: Int) {
        send("-\(ticket)\n")
    }

    private func send(_ line: String) {
        // A line is shorter than PIPE_BUF, so lines of several threads do not mix.
        let bytes = Array(line.utf8)
        precondition(bytes.count < 4096, "a line longer than a pipe's atomic write")
        _ = write(pipe, bytes, bytes.count)
    }
}
