import ArgumentParser
import Control
import ControlDocuments
import Glibc
import ServiceState

/// `guardian`: the process that the service starts beside itself; see `GuardianProcess`.
struct GuardianCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "guardian", abstract: "A helper of the service; started by it alone.",
        shouldDisplay: false)

    @Option(help: "Lock that the next service waits for.")
    var lock: String

    @Option(help: "List of filesystems that the service has frozen.")
    var frozenList: String

    @Option(help: "Where the next service asks for what is held.")
    var stateDir: String

    @Option(help: "Where it is written down what waits.")
    var runtimeDir: String

    @Option(help: "Seconds for which block devices wait for the next service.")
    var restartLimit: UInt64

    mutating func run() throws {
        guard isSocket(3) else {
            throw ControlError(.invalid, "the guardian is started by `stillpoint serve` alone")
        }
        Glibc.exit(
            runGuardian(
                lockPath: lock, frozenListPath: frozenList, stateDirectory: stateDir,
                runtimeDirectory: runtimeDir, restartLimitSeconds: restartLimit))
    }
}

/// `errand`: a call that may wait for the service itself, made in a process of its own; see
/// `ErrandProcess`.
struct ErrandCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "errand", abstract: "Runs an errand for the service; started by it alone.",
        shouldDisplay: false)

    @Argument(parsing: .captureForPassthrough, help: "What to do.")
    var words: [String] = []

    mutating func run() throws {
        guard isSocket(3) else {
            throw ControlError(.invalid, "errands are run by `stillpoint serve` alone")
        }
        Glibc.exit(runErrand(words))
    }
}

private func isSocket(_ descriptor: Int32) -> Bool {
    var facts = stat()
    return fstat(descriptor, &facts) == 0 && facts.st_mode & S_IFMT == S_IFSOCK
}
