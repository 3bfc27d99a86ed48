import ArgumentParser
import ClientSupport
import Control
import Quiescing

/// `thaw`: what a service that is gone left frozen.
struct Thaw: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Thaw filesystems that a dead service has left frozen.",
        usage: "stillpoint thaw [OPTIONS]",
        discussion: """
            If a service is killed in the middle of a cut, its guardian thaws what was frozen, and so \
            does the next start. This command is for the service manager (ExecStopPost= of the \
            systemd unit), in case both were killed. It does nothing while the service runs: exit \
            status 4.

            Examples:
              stillpoint thaw
              stillpoint thaw --runtime-dir /run/stillpoint --json
            """)

    @OptionGroup var options: ClientOptions

    @Option(
        help: "Runtime directory of the service. Default: that of the control socket.",
        completion: .directory)
    var runtimeDir: String?

    mutating func run() throws {
        let document = ThawedDocument(
            thawed: try thawFilesystems(ofServiceIn: try directory()))
        try options.show(document) {
            document.thawed.isEmpty
                ? "nothing was frozen\n" : document.thawed.map { "thawed \($0)\n" }.joined()
        }
    }

    private func directory() throws -> String {
        if let runtimeDir { return try Defaults.absolute(runtimeDir) }
        let control = try Defaults.absolute(try options.control ?? Defaults.control())
        let directory = control[..<(control.lastIndex(of: "/") ?? control.startIndex)]
        return directory.isEmpty ? "/" : String(directory)
    }
}

/// What `thaw --json` prints.
struct ThawedDocument: Encodable {
    /// Mount points, the last frozen first.
    let thawed: [String]
}
