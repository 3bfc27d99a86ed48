package import ArgumentParser
internal import ClientSupport
internal import ControlDocuments

/// `checkpoint`: create, list, delete.
package struct CheckpointCommand: AsyncParsableCommand {
    /// How the command is called, and its manual page.
    package static let configuration = CommandConfiguration(
        commandName: "checkpoint",
        abstract: "Make, list and delete checkpoints: moments to compare with later.",
        discussion: """
            A checkpoint is a cut of one or more devices for which no data is kept. It is \
            remembered until it is deleted, even over restarts. A named snapshot leaves a checkpoint \
            with its name. Checkpoints can be deleted in any order; this does not affect answers \
            about the time since another checkpoint.
            """,
        subcommands: [Create.self, List.self, Delete.self])

    /// `checkpoint create`.
    struct Create: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make a cut of one or more devices and remember it.",
            usage: "stillpoint checkpoint create NAME --device NAME... [OPTIONS]",
            discussion: """
                Examples:
                  stillpoint checkpoint create monday --device data --device log
                """)

        @Argument(help: "Name of the checkpoint; no snapshot may have the same name.")
        var name: String

        @Option(
            help: "Device to cut; may be repeated. All are cut at one moment.",
            completion: .deviceNames)
        var device: [String]

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            let document = CheckpointCreateDocument(name: name, devices: device)
            // Wrong usage is reported without a service.
            _ = try CheckpointRequest(document)
            let checkpoint = try await options.client().call(
                .POST, "/v1/checkpoints", body: document, as: CheckpointDocument.self)
            try options.show(checkpoint) {
                "made checkpoint \(checkpoint.name) of "
                    + checkpoint.devices.map { "\($0.device) (epoch \($0.epoch))" }
                    .joined(separator: ", ") + Self.frozenText(checkpoint) + "\n"
            }
            for error in checkpoint.freezeErrors ?? [] {
                FileHandles.error.write("not frozen: \(error)\n")
            }
        }

        /// What was frozen for a cut with live devices.
        private static func frozenText(_ checkpoint: CheckpointDocument) -> String {
            guard let consistency = checkpoint.consistency else { return "" }
            let frozen = checkpoint.frozen ?? []
            return "; \(consistency)-consistent"
                + (frozen.isEmpty
                    ? ", nothing was frozen" : ", frozen: " + frozen.joined(separator: " "))
        }
    }

    /// `checkpoint list`.
    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "List all checkpoints, the oldest first.",
            discussion: """
                USABLE lists the devices for which `changes --since` can name the checkpoint: those that \
                are attached and have had the same change history since.

                Examples:
                  stillpoint checkpoint list
                """)

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            let checkpoints = try await options.client().call(
                .GET, "/v1/checkpoints", as: [CheckpointDocument].self)
            try options.show(checkpoints) {
                checkpoints.isEmpty
                    ? "no checkpoints; make one with `stillpoint checkpoint create NAME --device "
                        + "NAME`\n"
                    : Self.table(checkpoints)
            }
        }

        private static func table(_ checkpoints: [CheckpointDocument]) -> String {
            var table = Table(
                [
                    ("NAME", .left), ("CREATED", .left), ("SNAPSHOT", .left), ("DEVICES", .left),
                    ("USABLE", .left),
                ], elastic: 3)
            for checkpoint in checkpoints {
                let usable = checkpoint.devices.filter(\.usable).map(\.device)
                table.add([
                    checkpoint.name, checkpoint.createdAt.formatted(.iso8601),
                    checkpoint.snapshot.map { String($0.prefix(8)) } ?? "-",
                    checkpoint.devices.map(\.device).joined(separator: " "),
                    usable.count == checkpoint.devices.count
                        ? "yes" : usable.isEmpty ? "no" : usable.joined(separator: " "),
                ])
            }
            return table.lines(columns: FileHandles.output.columns)
        }
    }

    /// `checkpoint delete`.
    struct Delete: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Forget a checkpoint.",
            discussion: """
                From then on, `changes --since` and `copy --since` do not find it any more (exit status 3).

                Examples:
                  stillpoint checkpoint delete monday
                """)

        @Argument(help: "Name of the checkpoint.", completion: .checkpointNames)
        var name: String

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            let last = try await options.client().call(
                .DELETE, "/v1/checkpoints/\(ControlClient.escaped(name))",
                as: CheckpointDocument.self)
            try options.show(last) { "deleted checkpoint \(last.name)\n" }
        }
    }

    package init() {}
}
