package import ArgumentParser
internal import ClientSupport
internal import ControlDocuments

/// `events`: what happened, numbered.
package struct EventsCommand: AsyncParsableCommand {
    /// How the command is called, and its manual page.
    package static let configuration = CommandConfiguration(
        commandName: "events",
        abstract: "Print past events, and follow new ones.",
        usage: "stillpoint events [--follow] [OPTIONS]",
        discussion: """
            Without --follow, it prints the events so far; with --timeout, it waits for the first \
            event if there is none yet. With --snapshot, it ends when the snapshot ends. If the time \
            runs out, the exit status is 0.

            Examples:
              stillpoint events --after 100
              stillpoint events --follow --snapshot nightly --json
            """)

    @Flag(help: "Keep printing new events; with --json, one document per line.")
    var follow = false

    @Option(help: "Only events after this number.")
    var after: UInt64 = 0

    @Option(
        help: "Only events of this snapshot, by name or id.", completion: .snapshotNames)
    var snapshot: String?

    @Option(help: "Longest time to wait, in seconds.")
    var timeout: UInt64?

    @OptionGroup var options: ClientOptions

    package init() {}

    package mutating func run() async throws {
        var target = "/v1/events?after=\(after)&follow=\(follow)"
        if let snapshot { target += "&snapshot=\(ControlClient.escaped(snapshot))" }
        if let timeout { target += "&timeout=\(timeout)" }
        var all: [EventDocument] = []
        let isOneDocument = options.json && !follow
        let isLineOfJSON = options.json
        FileHandles.output.endWithReader()
        try await options.client().events(target) { event in
            if isOneDocument {
                all.append(event)
            } else {
                FileHandles.output.write(
                    try isLineOfJSON ? Self.line(of: event) : Self.text(event))
            }
        }
        if isOneDocument { try options.show(all) { "" } }
    }

    private static func line(of event: EventDocument) throws -> String {
        String(decoding: try DocumentCoding.encoder().encode(event), as: UTF8.self) + "\n"
    }

    private static func text(_ event: EventDocument) -> String {
        "\(event.number)  \(event.time.formatted(.iso8601))  \(event.type)  \(event.message)\n"
    }
}
