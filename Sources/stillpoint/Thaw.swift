import ArgumentParser
import Control

/// `thaw`: what a service that is gone left frozen.
struct Thaw: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Thaw filesystems that a service which is gone left frozen.",
        usage: "stillpoint thaw [OPTIONS]",
        discussion: """
            A killed service's guardian thaws what was frozen for a cut, and so does the next start. \
            This is for the service manager (ExecStopPost= of the systemd unit), and for the day on \
            which both were killed. A service that lives is left alone: exit status 4.

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
            thawed: try thawLeftovers(ofServiceIn: try directory()))
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
