import ArgumentParser
import Control

/// `probe`: what this machine offers.
struct Probe: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show what this machine offers, and how PATH would be reached.",
        discussion: "Looks for itself: the service need not run.")

    @Argument(help: "An origin to look at.")
    var path: String?

    @Flag(help: "Print one JSON document instead of text for people.")
    var json = false

    @Option(help: .hidden)
    var control: String?

    mutating func run() async throws {
        let path = try path.map { try Defaults.absolute($0) }
        let probe = try MachineProbe.run(path: path)
        var options = ClientOptions()
        options.json = json
        try options.show(probe) { Self.text(probe) }
    }

    private static func text(_ probe: MachineProbe) -> String {
        var facts: [(String, String)] = [
            ("kernel", probe.kernel),
            ("io_uring", probe.ioUring.usable ? "yes" : "no: \(probe.ioUring.reason ?? "")"),
            ("io_uring features", probe.ioUring.features.joined(separator: ", ")),
            ("FUSE", probe.fuse ? "yes" : "no"), ("loop devices", probe.loop ? "yes" : "no"),
            (
                "I/O flusher",
                probe.ioFlusher
                    ? "yes"
                    : "no: block devices may stall when memory is short; needs CAP_SYS_RESOURCE"
            ),
        ]
        if let origin = probe.path {
            facts.append(("origin", origin.path))
            facts.append(("O_DIRECT", origin.direct ? "yes" : "no"))
        }
        return factLines(facts)
    }
}
