import ArgumentParser
import Control

/// `checkpoint`: create, list, delete.
struct CheckpointCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint",
        abstract: "Remember moments that later questions about changes can name.",
        discussion: """
            A checkpoint is a cut over one or more devices for which no data is kept. It is \
            remembered until it is deleted, over restarts too. A named snapshot leaves a checkpoint \
            of its name. Checkpoints are deleted singly and in any order; no answer since another \
            one becomes wrong by it.
            """,
        subcommands: [Create.self, List.self, Delete.self])

    /// `checkpoint create`.
    struct Create: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make a cut over one or more devices and remember it.",
            usage: "stillpoint checkpoint create NAME --device NAME... [OPTIONS]",
            discussion: """
                Examples:
                  stillpoint checkpoint create monday --device data --device log
                """)

        @Argument(help: "Name of the checkpoint; no snapshot may have it.")
        var name: String

        @Option(
            help: "Device to cut; may be repeated. All are cut at one moment.",
            completion: .deviceNames)
        var device: [String]

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            let document = CheckpointCreateDocument(name: name, devices: device)
            // Wrong usage is told without a service.
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
                USABLE says of which devices a question about changes can name it: those that are \
                attached and whose tracking history is the same as then.

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
                Questions since it are refused from then on (exit status 3). A question that is \
                being answered is answered to its end of page.

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
}
