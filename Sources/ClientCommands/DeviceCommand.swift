package import ArgumentParser
internal import ClientSupport
internal import ControlDocuments

/// `device`: attach, list, show, resize, detach.
package struct DeviceCommand: AsyncParsableCommand {
    /// How the command is called, and its manual page.
    package static let configuration = CommandConfiguration(
        commandName: "device", abstract: "Attach, list, show, resize and detach devices.",
        subcommands: [Attach.self, List.self, Show.self, Resize.self, Detach.self])

    /// `device attach`.
    struct Attach: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Attach an origin, a disk image or block device, under a name.",
            usage: "stillpoint device attach NAME PATH [OPTIONS]",
            discussion: """
                From then on changes are tracked. If the origin was attached under this name before, and \
                nobody has written to it since, its change history continues; `device show` says \
                whether it does. Attaching the same origin again succeeds and changes nothing.

                Examples:
                  stillpoint device attach data /dev/sdb1
                  stillpoint device attach old /srv/old.img --read-only
                  stillpoint device attach root / --live
                """)

        @Argument(help: "Name of the device: letters, digits, '.', '_', '-'.")
        var name: String

        @Argument(
            help: "Path of the origin; with --live also a mount point or UUID=...",
            completion: .file())
        var path: String

        @Flag(
            help: ArgumentHelp(
                "Track a block device that stays in use: nothing is unmounted, and its users notice "
                    + "nothing. Checkpoints and changes work as usual; snapshots are not possible.")
        )
        var live = false

        @Flag(help: "Serve it read-only.")
        var readOnly = false

        @Option(
            help: "Sector size that users see, 512 or 4096. Default: that of the origin.",
            completion: .list(["512", "4096"]))
        var sectorSize: UInt32?

        @Flag(
            help: ArgumentHelp(
                "You promise that nobody but this service ever writes to the origin. The change "
                    + "history of a block device then survives a restart of the machine. With --live: "
                    + "that no other system writes to the device, nor this one while the service does "
                    + "not track it."))
        var exclusive = false

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            let request = try AttachRequest(
                name: name,
                path: live && LiveTag.isOne(path) ? path : try Defaults.absolute(path),
                isReadOnly: readOnly, sectorBytes: sectorSize, isExclusive: exclusive, isLive: live)
            let device = try await options.client().call(
                .POST, "/v1/devices",
                body: AttachDocument(
                    name: request.name.text, path: request.path, readOnly: readOnly,
                    sectorSize: sectorSize, exclusive: exclusive, live: live ? true : nil),
                as: DeviceDocument.self)
            if !options.json, let format = ContainerFormat(of: device.path) {
                FileHandles.error.write("warning: \(format.warning(device.path))\n")
            }
            try options.show(device) {
                "attached \(device.name): \(device.path), \(sizeText(device.size))\n"
            }
        }
    }

    /// `device list`.
    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "List all devices.",
            discussion: """
                Examples:
                  stillpoint device list
                """)

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            let devices = try await options.client().call(
                .GET, "/v1/devices", as: [DeviceDocument].self)
            try options.show(devices) { deviceTable(devices) }
        }
    }

    /// `device show`.
    struct Show: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Show one device.",
            discussion: """
                Examples:
                  stillpoint device show data
                """)

        @Argument(help: "Name of the device.", completion: .deviceNames)
        var name: String

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            let device = try await options.client().call(
                .GET, "/v1/devices/\(ControlClient.escaped(name))", as: DeviceDocument.self)
            try options.show(device) { Self.text(device) }
        }

        private static func text(_ device: DeviceDocument) -> String {
            let kind = device.blockDevice ? "block device" : "disk image"
            var facts: [(String, String)] = [
                ("name", device.name), ("origin", "\(device.path) (\(kind))"),
                ("size", "\(sizeText(device.size)) (\(device.size) bytes)"),
                ("sector size", "\(device.sectorSize) bytes"),
                ("chunks", "\(device.chunkCount) of \(sizeText(device.chunkSize))"),
                (
                    "mode",
                    device.mode == "live"
                        ? "live: tracked in use" : device.readOnly ? "read-only" : "read/write"
                ),
                ("granularity", sizeText(device.granularity)),
                ("access", device.access), ("loop", "\(device.loop)"),
                ("connections", "\(device.connections)"),
                ("snapshots", device.snapshots.isEmpty ? "none" : "\(device.snapshots.count)"),
                ("attached", device.attachedAt.formatted(.iso8601)),
            ]
            if let sentence = device.originState?.sentence(path: device.path) {
                facts.append(("attention", sentence))
            }
            if let history = device.history, let generation = device.generation {
                facts += [
                    ("history", history + (device.historyReason.map { ": \($0)" } ?? "")),
                    ("generation", generation), ("epoch", device.epoch.map { "\($0)" } ?? ""),
                    ("last cut", device.lastCut?.formatted(.iso8601) ?? "none yet"),
                ]
            }
            if device.mode == "live" {
                facts.append(
                    (
                        "over a reboot",
                        device.exclusive
                            ? "the history goes on if the service starts before the device is used and ends "
                                + "after; for a root disk it begins anew"
                            : "the history begins anew (see --exclusive)"
                    ))
            } else if device.exclusive {
                facts.append(("exclusive", "nobody else writes to the origin"))
            }
            if let counters = device.counters {
                facts += [
                    ("reads", "\(counters.reads), \(sizeText(counters.readBytes))"),
                    ("writes", "\(counters.writes), \(sizeText(counters.writtenBytes))"),
                    ("flushes", "\(counters.flushes)"), ("discards", "\(counters.discards)"),
                    ("zeroes", "\(counters.zeroes)"), ("failures", "\(counters.failures)"),
                    ("copied", sizeText(counters.copiedBytes)),
                    ("parked writes", "\(counters.parkedWrites)"),
                ]
            }
            return factLines(facts)
        }
    }

    /// `device resize`.
    struct Resize: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Adopt the current size of the origin.",
            discussion: """
                Resize the origin first, then tell the service. The part that was added counts as changed. \
                Shrinking ends the change history of the device, and is refused while a snapshot of it \
                is held. NBD clients see the new size when they connect again.

                Examples:
                  truncate -s 20G /srv/vm1.img
                  stillpoint device resize vm1
                """)

        @Argument(help: "Name of the device.", completion: .deviceNames)
        var name: String

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            let device = try await options.client().call(
                .POST, "/v1/devices/\(ControlClient.escaped(name))/resize",
                as: DeviceDocument.self)
            try options.show(device) {
                "device \(device.name) has \(sizeText(device.size)) (\(device.size) bytes)\n"
            }
        }
    }

    /// `device detach`.
    struct Detach: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Flush a device, close it and forget it.",
            usage: "stillpoint device detach NAME [OPTIONS]",
            discussion: """
                Refused while it is in use or in a snapshot, unless --force is given.

                Examples:
                  stillpoint device detach data
                """)

        @Argument(help: "Name of the device.", completion: .deviceNames)
        var name: String

        @Flag(help: "Destroy its snapshots and close the connections it has open.")
        var force = false

        @Flag(help: loseWritesHelp)
        var forceLoseWrites = false

        @OptionGroup var options: ClientOptions

        mutating func run() async throws {
            let query =
                forceLoseWrites ? "?force_lose_writes=true" : force ? "?force=true" : ""
            let last = try await options.client().call(
                .DELETE, "/v1/devices/\(ControlClient.escaped(name))\(query)",
                as: DetachedDocument.self)
            try options.show(last) { "detached \(last.name)\n" }
        }
    }

    package init() {}
}

/// What remains to be said of a detached device.
struct DetachedDocument: Codable {
    var name: String
    /// Nil when it was only remembered.
    var path: String?
}

/// A table of devices.
func deviceTable(_ devices: [DeviceDocument]) -> String {
    guard !devices.isEmpty else {
        return "no devices; attach one with `stillpoint device attach NAME PATH`\n"
    }
    var table = Table(
        [
            ("NAME", .left), ("SIZE", .right), ("SECTOR", .right), ("MODE", .left),
            ("LOOP", .right), ("CONNECTIONS", .right), ("ORIGIN", .left),
        ], elastic: 6)
    for device in devices {
        table.add([
            device.name, sizeText(device.size), "\(device.sectorSize)",
            device.mode == "live" ? "live" : device.readOnly ? "ro" : "rw", "\(device.loop)",
            "\(device.connections)", device.path,
        ])
    }
    return table.lines(columns: FileHandles.output.columns)
}

/// Lines of facts, one under the other.
package func factLines(_ facts: [(name: String, value: String)]) -> String {
    let width = facts.reduce(0) { max($0, $1.name.count) }
    return facts.map { fact in
        fact.name + String(repeating: " ", count: width - fact.name.count) + "  " + fact.value
            + "\n"
    }.joined()
}
