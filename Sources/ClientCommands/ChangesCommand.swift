package import ArgumentParser
internal import BlockModel
internal import ClientSupport
internal import ControlDocuments

/// `changes`: what changed, and marks by hand.
package struct ChangesCommand: AsyncParsableCommand {
    /// How the command is called, and its manual page.
    package static let configuration = CommandConfiguration(
        commandName: "changes",
        abstract: "Show what changed on a device between two cuts, or mark ranges as changed.",
        discussion: """
            Examples:
              stillpoint changes data --since monday
              stillpoint changes data --since monday --until nightly --format ranges
              stillpoint changes mark data --range 1M:64K

            For a device that is called `mark` or `show`, use `changes show NAME`.

            Exit status: 3 no such device or checkpoint; 4 the snapshot of --until is not held; 5 what \
            changed is not known, make a full backup; 6 the snapshot of --until is corrupted.
            """,
        subcommands: [Show.self, Mark.self], defaultSubcommand: Show.self)

    /// `changes DEVICE`.
    struct Show: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Show what changed on a device between two cuts, or since a cut.",
            usage: "stillpoint changes DEVICE [--since NAME] [--until SNAPSHOT] [OPTIONS]",
            discussion: """
                Blocks that are not reported have not changed. The answer is exact to 4 KiB since the \
                newest checkpoint, and to 64 KiB at worst since older ones.

                Examples:
                  stillpoint changes show data --since monday --json
                """)

        @Argument(help: "Name of the device.", completion: .deviceNames)
        var device: String

        @Option(
            help: ArgumentHelp(
                "List changes since this cut: a checkpoint, a named snapshot, or `generation` for the "
                    + "time since tracking began. Default: list all that a full backup has to read, "
                    + "which is the whole device except for its holes.",
                valueName: "name|generation"),
            completion: .baseNames)
        var since: String?

        @Option(
            help: ArgumentHelp(
                "List changes up to the cut of this snapshot, which must be held. Default: now.",
                valueName: "snapshot"), completion: .snapshotNames)
        var until: String?

        @Option(
            help: ArgumentHelp(
                "How to print the answer: as a table, as one JSON document, as a line OFFSET LENGTH "
                    + "in bytes for each range, or as a picture.",
                valueName: "table|json|ranges|heatmap"))
        var format: Format?

        @OptionGroup var options: ClientOptions

        /// How changes are printed.
        enum Format: String, ExpressibleByArgument, CaseIterable {
            case table, json, ranges, heatmap
        }

        mutating func validate() throws {
            if options.json, let format, format != .json {
                throw ValidationError(
                    "--json and --format \(format.rawValue) exclude each other; give one of them")
            }
            for (name, value) in [("--since", since), ("--until", until)] where value == "" {
                throw ValidationError("\(name) names nothing; name a cut or leave it out")
            }
        }

        mutating func run() async throws {
            let reader = ChangesReader(
                client: try options.client(), device: device, since: since, until: until)
            let changes = try await reader.read()
            switch options.json ? .json : format ?? .table {
            case .json: try changes.printJSON()
            case .ranges: try changes.printRanges()
            case .table: try changes.printTable()
            case .heatmap:
                var map = Heatmap(
                    size: changes.document.size, columns: FileHandles.output.columns ?? 80,
                    rows: FileHandles.output.rows ?? 24)
                try changes.ranges.forEach { map.add($0) }
                FileHandles.output.write(
                    map.picture(
                        title: changes.title, rangeCount: changes.ranges.count,
                        isColoured: FileHandles.output.columns != nil
                            && Defaults.environment("NO_COLOR") == nil))
            }
        }
    }

    /// `changes mark`.
    struct Mark: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Mark ranges of a device as changed.",
            usage: "stillpoint changes mark DEVICE --range OFFSET:LENGTH... [OPTIONS]",
            discussion: """
                They appear in every later answer, including answers up to a snapshot that is held now. \
                Either all ranges are marked or none. A range marks every block of 4 KiB that it touches.

                Examples:
                  stillpoint changes mark data --range 0:1M --range 4096:512
                """)

        @Argument(help: "Name of the device.", completion: .deviceNames)
        var device: String

        @Option(
            help: ArgumentHelp(
                "Bytes to mark, such as 1M:64K; may be repeated.", valueName: "offset:length"))
        var range: [String]

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            let ranges = try range.map(Self.parse)
            let marked = try await options.client().call(
                .POST, "/v1/devices/\(ControlClient.escaped(device))/changes",
                body: ChangesMarkDocument(ranges: ranges), as: ChangesMarkedDocument.self)
            try options.show(marked) {
                "marked \(marked.ranges.count) range(s) of \(marked.device) as changed\n"
            }
        }

        private static func parse(_ text: String) throws(ControlError) -> ChangesDocument.Range {
            let parts = text.split(separator: ":", omittingEmptySubsequences: false)
            guard parts.count == 2, let offset = parseSize(String(parts[0]), rounding: .none),
                let length = parseSize(String(parts[1]), rounding: .none)
            else {
                throw ControlError(
                    .invalid,
                    "--range \(text): give OFFSET:LENGTH in whole bytes, such as 4096:512 or 1M:64K"
                )
            }
            guard length > 0 else {
                throw ControlError(.invalid, "--range \(text) is empty; give the bytes to mark")
            }
            return ChangesDocument.Range(offset: offset, length: length)
        }
    }

    package init() {}
}
