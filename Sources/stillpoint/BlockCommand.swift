import ArgumentParser
import Control

/// `block`: attach, list, detach.
struct BlockCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "block", abstract: "Attach, list and detach local block devices.",
        subcommands: [Attach.self, List.self, Detach.self])

    /// `block attach`.
    struct Attach: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make a local block device for a device or an image.",
            discussion: """
                Prints its path. Every request passes through the service. What is written to the \
                block device of an image stays in an overlay of that image and ends with the \
                snapshot.

                Examples:
                  mount "$(stillpoint block attach data)" /srv/data
                  mount "$(stillpoint block attach data@nightly)" /mnt/nightly
                """)

        @Argument(help: "DEVICE or DEVICE@SNAPSHOT.")
        var target: String

        @Flag(help: "Refuse writes.")
        var readOnly = false

        @Flag(help: "Make block devices of its partitions too: /dev/loopNpM.")
        var partitions = false

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            _ = try BlockTargetName(target)
            let block = try await options.client().call(
                .POST, "/v1/blocks",
                body: BlockAttachDocument(
                    target: target, readOnly: readOnly, partitions: partitions),
                as: BlockDocument.self)
            try options.show(block) { block.path + "\n" }
        }
    }

    /// `block list`.
    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "List the local block devices.")

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
            abstract: "Take a local block device away that nobody uses.")

        @Argument(help: "Its path, /dev/loopN.")
        var path: String

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            let name = path.hasPrefix("/dev/") ? String(path.dropFirst(5)) : path
            let block = try await options.client().call(
                .DELETE, "/v1/blocks/\(ControlClient.escaped(name))", as: BlockDocument.self)
            try options.show(block) { "detached \(block.path)\n" }
        }
    }
}

/// A table of block devices.
func blockTable(_ blocks: [BlockDocument]) -> String {
    guard !blocks.isEmpty else {
        return "no block devices; make one with `stillpoint block attach DEVICE`\n"
    }
    var table = Table(
        [
            ("PATH", .left), ("TARGET", .left), ("SIZE", .right), ("SECTOR", .right),
            ("MODE", .left),
        ],
        elastic: 1)
    for block in blocks {
        table.add([
            block.path, block.target, sizeText(block.size), "\(block.sectorSize)",
            block.readOnly ? "read-only" : "read/write",
        ])
    }
    return table.lines(columns: FileHandles.output.columns)
}
