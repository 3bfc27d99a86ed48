package import ArgumentParser
internal import ClientSupport
internal import ControlDocuments

/// `block`: attach, list, detach.
package struct BlockCommand: AsyncParsableCommand {
    /// How the command is called, and its manual page.
    package static let configuration = CommandConfiguration(
        commandName: "block", abstract: "Attach, list and detach local block devices.",
        subcommands: [Attach.self, List.self, Detach.self])

    /// `block attach`.
    struct Attach: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make a local block device for a device or an image.",
            usage: "stillpoint block attach DEVICE[@SNAPSHOT] [OPTIONS]",
            discussion: """
                Prints its path, /dev/stillpoint/NAME, which is a link to a loop device. Every request \
                passes through the service. The block device of a device outlives the service: while \
                no service runs, its users wait, for at most the time given with serve \
                --restart-limit. It comes back whenever the service starts, even after a restart of \
                the machine, unless --temporary is given. What is written to the block device of an \
                image goes to an overlay of that image, which ends with the snapshot.

                Examples:
                  mount "$(stillpoint block attach data)" /srv/data
                  mount "$(stillpoint block attach data@nightly)" /mnt/nightly
                """)

        @Argument(help: "DEVICE or DEVICE@SNAPSHOT.", completion: .targetNames)
        var target: String

        @Flag(help: "Refuse writes.")
        var readOnly = false

        @Flag(help: "Also make block devices of its partitions: /dev/stillpoint/NAME1 and so on.")
        var partitions = false

        @Flag(help: "Do not make it again at the next start.")
        var temporary = false

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            _ = try BlockTargetName(target)
            let block = try await options.client().call(
                .POST, "/v1/blocks",
                body: BlockAttachDocument(
                    target: target, readOnly: readOnly, partitions: partitions,
                    temporary: temporary),
                as: BlockDocument.self)
            try options.show(block) { block.path + "\n" }
        }
    }

    /// `block list`.
    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "List the local block devices.",
            discussion: """
                Examples:
                  stillpoint block list
                """)

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            let blocks = try await options.client().call(
                .GET, "/v1/blocks", as: [BlockDocument].self)
            try options.show(blocks) { blockTable(blocks) }
        }
    }

    /// `block detach`.
    struct Detach: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Remove a local block device that is not in use.",
            usage: "stillpoint block detach PATH [OPTIONS]",
            discussion: """
                Refused while it is mounted, open, used as swap, part of a RAID array or an LVM volume \
                group, or backs another loop device. The message says who uses it.

                Examples:
                  stillpoint block detach /dev/stillpoint/data
                """)

        @Argument(
            help: "Its path, /dev/stillpoint/NAME or /dev/loopN.", completion: .blockPaths)
        var path: String

        @Flag(help: loseWritesHelp)
        var forceLoseWrites = false

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            let name = path.split(separator: "/").last.map(String.init) ?? path
            let query = forceLoseWrites ? "?force_lose_writes=true" : ""
            let block = try await options.client().call(
                .DELETE, "/v1/blocks/\(ControlClient.escaped(name))\(query)",
                as: BlockDocument.self)
            try options.show(block) { "detached \(block.path)\n" }
        }
    }

    package init() {}
}

/// What `--force-lose-writes` costs.
let loseWritesHelp: ArgumentHelp = """
    Remove block devices even while they are mounted or open. What their users have written but \
    not synced is lost, and their I/O fails from then on.
    """

/// A table of block devices.
func blockTable(_ blocks: [BlockDocument]) -> String {
    guard !blocks.isEmpty else {
        return "no block devices; make one with `stillpoint block attach DEVICE`\n"
    }
    var table = Table(
        [
            ("PATH", .left), ("NODE", .left), ("TARGET", .left), ("SIZE", .right),
            ("MODE", .left), ("TAKEN OVER", .right), ("USERS", .left),
        ],
        elastic: 6)
    for block in blocks {
        table.add([
            block.path, block.node, block.target, sizeText(block.size),
            block.readOnly ? "read-only" : "read/write", "\(block.takeovers)",
            block.users.isEmpty ? "none seen" : block.users.joined(separator: "; "),
        ])
    }
    return table.lines(columns: FileHandles.output.columns)
}
