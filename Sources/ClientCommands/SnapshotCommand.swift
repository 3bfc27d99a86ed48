package import ArgumentParser
internal import ClientSupport
internal import ControlDocuments

/// `snapshot`: create, take, destroy, list, show, append storage.
package struct SnapshotCommand: AsyncParsableCommand {
    /// How the command is called, and its manual page.
    package static let configuration = CommandConfiguration(
        commandName: "snapshot",
        abstract: "Make, list and destroy snapshots: devices as they are at one moment.",
        discussion: """
            A snapshot is identified by its name, its id or a unique prefix of the id. Its images are \
            exported as DEVICE@SNAPSHOT (read-only) and DEVICE@SNAPSHOT:rw (writable; what is \
            written ends with the snapshot). Snapshots end with the service.
            """,
        subcommands: [
            Create.self, Take.self, Destroy.self, List.self, Show.self, AppendStorage.self,
        ])

    /// `snapshot create`.
    struct Create: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make a snapshot of one or more devices and take it; print its id.",
            usage: "stillpoint snapshot create --device NAME... [OPTIONS]",
            discussion: """
                Examples:
                  stillpoint snapshot create --device vm1 --name before-upgrade
                  stillpoint snapshot create --device a --device b --limit 20G
                  stillpoint snapshot create --device db --pre /etc/hold --post /etc/go-on
                """)

        @Option(
            help: "Device to take a snapshot of; may be repeated. All are cut at one moment.",
            completion: .deviceNames)
        var device: [String]

        @OptionGroup var storage: StorageOptions

        @Option(help: "Name of the snapshot.")
        var name: String?

        @Option(
            help: ArgumentHelp(
                "What to do if storage is full or too slow: give the snapshot up (break), or first let "
                    + "writers wait for more storage (throttle; for 30 s unless SECONDS are given).",
                valueName: "break|throttle[:SECONDS]"),
            completion: .list(["break", "throttle", "throttle:60"]))
        var onOverflow: String = "break"

        @OptionGroup var take: TakeOptionGroup

        @Flag(help: "Only prepare the snapshot; `snapshot take` makes the cut.")
        var prepare = false

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            var document = SnapshotCreateDocument(devices: device)
            document.name = name
            document.storage = try storage.texts()
            document.limit = try storage.limitBytes()
            document.onOverflow = onOverflow
            try take.apply(to: &document)
            document.prepare = prepare
            document.force = storage.force
            // Wrong usage is reported without a service.
            _ = try SnapshotRequest(document)
            let snapshot = try await options.client().call(
                .POST, "/v1/snapshots", body: document,
                timeLimit: ControlClient.timeLimit(
                    withHooks: take.hookTimeout ?? HookOptions.limitSecondsDefault),
                as: SnapshotDocument.self)
            warn(of: snapshot, options)
            try options.show(snapshot) { "\(snapshot.id)\n" }
        }
    }

    /// `snapshot take`.
    struct Take: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make the cut of a prepared snapshot.",
            discussion: """
                Examples:
                  stillpoint snapshot create --device vm1 --name nightly --prepare
                  stillpoint snapshot take nightly
                """)

        @Argument(help: "Name or id of the snapshot.", completion: .snapshotNames)
        var snapshot: String

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            let taken = try await options.client().call(
                .POST, "\(path(of: snapshot))/take",
                timeLimit: ControlClient.timeLimit(withHooks: nil), as: SnapshotDocument.self)
            try options.show(taken) { "took \(taken.label)\n" }
        }
    }

    /// `snapshot destroy`.
    struct Destroy: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "End a snapshot, whatever its state, and its exports.",
            usage: "stillpoint snapshot destroy SNAPSHOT [OPTIONS]",
            discussion: """
                Refused while a block device of one of its images is in use.

                Examples:
                  stillpoint snapshot destroy nightly
                """)

        @Argument(help: "Name or id of the snapshot.", completion: .snapshotNames)
        var snapshot: String

        @Flag(help: loseWritesHelp)
        var forceLoseWrites = false

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            let last = try await options.client().call(
                .DELETE,
                path(of: snapshot) + (forceLoseWrites ? "?force_lose_writes=true" : ""),
                as: SnapshotDocument.self)
            try options.show(last) { "destroyed \(last.label)\n" }
        }
    }

    /// `snapshot list`.
    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "List all snapshots.",
            discussion: """
                Examples:
                  stillpoint snapshot list
                """)

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            let snapshots = try await options.client().call(
                .GET, "/v1/snapshots", as: [SnapshotDocument].self)
            try options.show(snapshots) {
                snapshots.isEmpty
                    ? "no snapshots; make one with `stillpoint snapshot create --device NAME`\n"
                    : snapshotTable(snapshots)
            }
        }
    }

    /// `snapshot show`.
    struct Show: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Show one snapshot.",
            discussion: """
                Examples:
                  stillpoint snapshot show nightly
                """)

        @Argument(help: "Name or id of the snapshot.", completion: .snapshotNames)
        var snapshot: String

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            let shown = try await options.client().call(
                .GET, path(of: snapshot), as: SnapshotDocument.self)
            try options.show(shown) { Self.text(shown) }
        }

        private static func text(_ snapshot: SnapshotDocument) -> String {
            var facts: [(String, String)] = [("id", snapshot.id)]
            if let name = snapshot.name { facts.append(("name", name)) }
            facts += [
                ("state", snapshot.state), ("consistency", snapshot.consistency),
                ("created", snapshot.createdAt.formatted(.iso8601)),
            ]
            if let taken = snapshot.takenAt {
                facts.append(("taken", taken.formatted(.iso8601)))
            }
            if let closed = snapshot.cutMicroseconds, let drain = snapshot.drainMicroseconds {
                facts.append(("cut", "\(closed) us, \(drain) us of it waiting for writes"))
            }
            if !snapshot.frozen.isEmpty {
                facts.append(("frozen", snapshot.frozen.joined(separator: " ")))
            }
            facts += snapshot.freezeErrors.map { ("not frozen", $0) }
            let storage = snapshot.storage
            facts += [
                ("on overflow", snapshot.onOverflow),
                (
                    "storage",
                    "\(sizeText(storage.used)) used, \(sizeText(storage.capacity)) there, "
                        + "\(sizeText(storage.available)) available, limit "
                        + sizeText(storage.limit)
                ),
                (
                    "preserved",
                    "\(sizeText(storage.storedBytes)), and \(storage.zeroBlocks) zero block(s)"
                ),
            ]
            facts += storage.sources.map { source in
                (
                    "source",
                    "\(source.name): \(sizeText(source.used)) of \(sizeText(source.limit)) used"
                )
            }
            facts += snapshot.warnings.map { ("warning", $0) }
            var table = Table(
                [
                    ("DEVICE", .left), ("SIZE", .right), ("EPOCH", .right), ("COPIED", .right),
                    ("IMAGE", .left), ("ERROR", .left),
                ], elastic: 4)
            for device in snapshot.devices {
                table.add([
                    device.device, sizeText(device.size), device.epoch.map { "\($0)" } ?? "-",
                    sizeText(device.copiedBytes), device.image ?? "-", device.error ?? "-",
                ])
            }
            return factLines(facts) + "\n" + table.lines(columns: FileHandles.output.columns)
        }
    }

    /// `snapshot append-storage`.
    struct AppendStorage: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Give a snapshot that is held more storage.",
            usage: "stillpoint snapshot append-storage SNAPSHOT --storage PLACE... [OPTIONS]",
            discussion: """
                Examples:
                  stillpoint snapshot append-storage nightly --storage /srv/more --limit 20G
                  stillpoint snapshot append-storage nightly --storage memory:256M
                """)

        @Argument(help: "Name or id of the snapshot.", completion: .snapshotNames)
        var snapshot: String

        @OptionGroup var storage: StorageOptions

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            let body = StorageAppendDocument(
                storage: try storage.texts(), limit: try storage.limitBytes(),
                force: storage.force)
            guard !body.storage.isEmpty else {
                throw ControlError(.invalid, "name the storage to append with --storage")
            }
            _ = try StorageSelection(
                texts: body.storage, limit: body.limit, isForced: storage.force)
            let changed = try await options.client().call(
                .POST, "\(path(of: snapshot))/storage", body: body, as: SnapshotDocument.self)
            warn(of: changed, options)
            try options.show(changed) {
                "\(changed.label) has \(changed.storage.sources.count) storage source(s), limit "
                    + "\(sizeText(changed.storage.limit))\n"
            }
        }
    }

    package init() {}

    private static func path(of snapshot: String) -> String {
        "/v1/snapshots/\(ControlClient.escaped(snapshot))"
    }
}

/// Options that name difference storage.
struct StorageOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Where to keep overwritten data: a directory (in an unnamed file), a file that does not "
                + "exist yet, a block device, or memory:SIZE; may be repeated. Default for a new "
                + "snapshot: an unnamed file in the state directory.",
            valueName: "dir|newfile|blockdev|memory:size"), completion: .file())
    var storage: [String] = []

    @Option(
        help: ArgumentHelp(
            "Size to which each file given with --storage may grow, such as 20G. Default: the most "
                + "that the devices can need, which is the sum of their sizes. A file never takes the "
                + "last twentieth of its filesystem, or the last 1G of a large one.",
            valueName: "size"))
    var limit: String?

    @Flag(help: "Use a block device as storage even if there is data on it.")
    var force = false

    /// The sources, with absolute paths.
    func texts() throws -> [String] {
        try storage.map { $0.hasPrefix("memory:") ? $0 : try Defaults.absolute($0) }
    }

    /// The limit in bytes.
    func limitBytes() throws(ControlError) -> UInt64? {
        guard let limit else { return nil }
        guard let bytes = parseSize(limit) else {
            throw ControlError(
                .invalid, "--limit \(limit): give a size such as 20G or 1.5T")
        }
        return bytes
    }
}

/// Options of what happens around the cut.
struct TakeOptionGroup: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Filesystems to freeze for the cut: all that are mounted from local block devices of "
                + "these devices (auto, the default), none, or the one at a mount point; may be "
                + "repeated, to add mount points to auto.",
            valueName: "auto|none|mountpoint"), completion: .directory)
    var freeze: [String] = []

    @Flag(help: "Take the snapshot even if a filesystem cannot be frozen.")
    var freezeBestEffort = false

    @Option(
        help: ArgumentHelp(
            "Program to run before anything is frozen. If it fails or takes too long, the snapshot "
                + "is not taken. It runs as the user of the service.", valueName: "program"))
    var pre: String?

    @Option(
        help: ArgumentHelp(
            "Program to run after everything is thawed, whether or not the snapshot was taken.",
            valueName: "program"))
    var post: String?

    @Option(
        help: ArgumentHelp(
            "Seconds after which a hook is killed, with its whole process group. Default: "
                + "\(HookOptions.limitSecondsDefault).", valueName: "seconds"))
    var hookTimeout: UInt64?

    /// Writes the options into a request.
    func apply(to document: inout SnapshotCreateDocument) throws {
        if !freeze.isEmpty {
            document.freeze = try freeze.map {
                ["auto", "none"].contains($0) ? $0 : try Defaults.absolute($0)
            }
        }
        if freezeBestEffort { document.freezeBestEffort = true }
        guard pre != nil || post != nil else {
            if hookTimeout != nil {
                throw ControlError(.invalid, "--hook-timeout needs --pre or --post")
            }
            return
        }
        document.hooks = HooksDocument(
            pre: try pre.map { try Defaults.absolute($0) },
            post: try post.map { try Defaults.absolute($0) }, timeoutSeconds: hookTimeout)
    }
}

/// Tells people what the service says about a snapshot's storage; scripts find it in the document.
private func warn(of snapshot: SnapshotDocument, _ options: ClientOptions) {
    guard !options.json else { return }
    for warning in snapshot.warnings {
        FileHandles.error.write("warning: snapshot \(snapshot.label): \(warning)\n")
    }
}

/// A table of snapshots.
func snapshotTable(_ snapshots: [SnapshotDocument]) -> String {
    var table = Table(
        [
            ("ID", .left), ("NAME", .left), ("STATE", .left), ("TAKEN", .left), ("USED", .right),
            ("LIMIT", .right), ("DEVICES", .left),
        ], elastic: 6)
    for snapshot in snapshots {
        table.add([
            snapshot.id, snapshot.name ?? "-", snapshot.state,
            snapshot.takenAt?.formatted(.iso8601) ?? "-", sizeText(snapshot.storage.used),
            sizeText(snapshot.storage.limit),
            snapshot.devices.map(\.device).joined(separator: " "),
        ])
    }
    return table.lines(columns: FileHandles.output.columns)
}
