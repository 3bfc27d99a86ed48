import ArgumentParser
import Control
import Glibc

/// `guardian`: the process that the service starts beside itself; see `GuardianProcess`.
struct GuardianCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "guardian", abstract: "The service's companion; started by it alone.",
        shouldDisplay: false)

    @Option(help: "Lock that the next service waits for.")
    var lock: String

    @Option(help: "List of filesystems that the service has frozen.")
    var frozenList: String

    mutating func run() throws {
        guard isSocket(3) else {
            throw ControlError(.invalid, "the guardian is started by `stillpoint serve` alone")
        }
        Glibc.exit(runGuardian(lockPath: lock, frozenListPath: frozenList))
    }

    private func isSocket(_ descriptor: Int32) -> Bool {
        var facts = stat()
        return fstat(descriptor, &facts) == 0 && facts.st_mode & S_IFMT == S_IFSOCK
    }
}
