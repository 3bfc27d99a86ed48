package import ArgumentParser
internal import ClientSupport
internal import ControlDocuments

/// `status`: the service at a glance.
package struct Status: AsyncParsableCommand {
    /// How the command is called, and its manual page.
    package static let configuration = CommandConfiguration(
        abstract: "Show the service, its devices, snapshots and block devices at a glance.",
        discussion: """
            Examples:
              stillpoint status
              stillpoint status --json
            """)

    @OptionGroup var options: ClientOptions

    package init() {}

    package mutating func run() async throws {
        let status = try await options.client().call(.GET, "/v1/status", as: StatusDocument.self)
        try options.show(status) { Self.text(status) }
    }

    private static func text(_ status: StatusDocument) -> String {
        var facts: [(String, String)] = [
            ("service", "stillpoint \(status.version), process \(status.processId)"),
            ("started", status.startedAt.formatted(.iso8601)),
            ("state", status.stateDirectory),
        ]
        facts += status.nbd.map { ("NBD", $0) }
        facts += status.http.map { ("page", $0) }
        facts += status.loops.map { loop in
            let features = loop.features.isEmpty ? "none" : loop.features.joined(separator: ", ")
            return (
                "loop \(loop.loop)", "\(loop.devices) device(s); io_uring features: \(features)"
            )
        }
        if let letGo = status.letGo {
            facts.append(
                (
                    "let go",
                    "no service ran from \(letGo.since.formatted(.iso8601)) to "
                        + "\(letGo.until.formatted(.iso8601)), so I/O failed on "
                        + letGo.devices.joined(separator: ", ")
                ))
        }
        facts.append(("memory", "\(sizeText(status.memory.residentBytes)) resident"))
        var text = factLines(facts) + "\n" + deviceTable(status.devices)
        if !status.snapshots.isEmpty { text += "\n" + snapshotTable(status.snapshots) }
        if !status.blocks.isEmpty { text += "\n" + blockTable(status.blocks) }
        for device in status.devices {
            guard let sentence = device.originState?.sentence(path: device.path) else { continue }
            text += "device \(device.name): \(sentence)\n"
        }
        for device in status.missing {
            text += "missing: \(device.name), \(device.path): \(device.reason)\n"
        }
        return text
    }
}
