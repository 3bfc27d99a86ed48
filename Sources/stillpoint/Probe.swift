import ArgumentParser
import ClientCommands
import ClientSupport
import Control
import ControlDocuments
import DeviceManagement

/// `probe`: what this machine offers.
struct Probe: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show what this machine offers, and how PATH would be served.",
        discussion: """
            The service does not have to run.

            Examples:
              stillpoint probe
              stillpoint probe /srv/vm1.img
            """)

    @Argument(help: "An origin to look at.", completion: .file())
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
        ]
        if let origin = probe.path {
            let kind = origin.kind == "block" ? "block device" : "disk image"
            facts += [
                ("origin", "\(origin.path) (\(kind), \(sizeText(origin.size)))"),
                (
                    "O_DIRECT",
                    origin.directAlignment.map { "yes, in units of \($0) bytes" } ?? "no"
                ), ("requests reach it", origin.access),
            ]
            if let format = ContainerFormat(of: origin.path) {
                facts.append(("warning", format.warning(origin.path)))
            }
            if let live = origin.live {
                facts.append(("live", live ? "yes" : "no: \(origin.liveReason ?? "")"))
            }
        }
        var table = Table(
            [("FACILITY", .left), ("USABLE", .left), ("USED FOR", .left), ("REASON", .left)],
            elastic: 3)
        for facility in probe.facilities where facility.name != "io_uring" {
            table.add([
                facility.name, facility.usable ? "yes" : "no", facility.usedFor,
                facility.reason ?? "-",
            ])
        }
        return factLines(facts) + "\n" + table.lines(columns: FileHandles.output.columns)
    }
}
