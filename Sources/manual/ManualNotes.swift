/// What the manual page of a command says beyond the command's own help.
struct ManualNotes {
    /// A section of its own, between the options and the examples.
    struct Section {
        let title: String
        /// Paragraphs; in one with tabs, each line is a term, a tab and its meaning.
        let paragraphs: [String]
    }

    /// Paragraphs that are added to the description.
    var description: [String] = []
    var sections: [Section] = []
    /// Variables besides those that every command reads.
    var environment: [(name: String, meaning: String)] = []
    /// Files besides those of the service.
    var files: [(path: String, meaning: String)] = []
    /// What an exit status means here, where that is more exact than in general.
    var exitStatus: [Int: String] = [:]
    /// Other pages to read: names of pages of section 1, or with the section in parentheses.
    var seeAlso: [String] = []

    /// The notes of a page; empty where the help says it all.
    static func of(_ page: String) -> ManualNotes { all[page] ?? ManualNotes() }

    private static let all: [String: ManualNotes] = [
        "stillpoint": ManualNotes(
            description: [
                """
                The service (stillpoint serve) stands between a disk and its users. It opens the disk, \
                the origin, and exports it under a name over NBD and as a local block device. It marks \
                every block that is written, and while a snapshot is held it saves the old data before \
                a block is overwritten. All other commands talk to the service over its control socket.
                """,
                """
                A first backup: attach a disk and mount the block device that is made for it, take a \
                snapshot and copy it, and bring the copy forward every night with what has changed. \
                See EXAMPLES.
                """,
            ],
            sections: [
                Section(
                    title: "TERMS",
                    paragraphs: [
                        """
                        origin\tThe block device or disk image that is protected.
                        device\tAn origin attached to the service under a name.
                        block\t4 KiB, the unit of change tracking.
                        cut\tThe moment at which a snapshot or a checkpoint is taken, the same for all its devices.
                        snapshot\tA cut whose data stays readable while the snapshot is held. It ends with the service.
                        image\tOne device as it was at the cut of a snapshot, DEVICE@SNAPSHOT.
                        checkpoint\tA named cut that is remembered without its data, as a base for later comparisons.
                        generation\tAn unbroken history of a device. When a new one begins, a full backup is due.
                        difference storage\tWhere overwritten data is kept while a snapshot is held.
                        export\tA way to reach a device or an image: NBD or a local block device.
                        corrupted\tSaid of a snapshot that has lost data: its images fail every read.
                        guardian\tThe small process that keeps block devices waiting while no service runs.
                        """
                    ]),
                Section(
                    title: "NAMES AND SIZES",
                    paragraphs: [
                        """
                        Names of devices, snapshots and checkpoints have up to 64 letters, digits, dots, \
                        underscores and hyphens. A snapshot can also be named by its id or by any unique \
                        beginning of the id. The name of a snapshot remains as a checkpoint.
                        """,
                        """
                        Sizes are bytes, or a number with a unit: 64K, 10M, 1.5G and 2T count in powers of \
                        1024, and so do 10KiB or 10GiB.
                        """,
                    ]),
                Section(
                    title: "OUTPUT",
                    paragraphs: [
                        """
                        Commands print tables for people. With --json they print one JSON document instead, \
                        whose keys do not change between releases. Messages go to standard error. If a \
                        command with --json fails, the document on standard output has the key error with a \
                        code to act on and a message to read.
                        """
                    ]),
            ],
            seeAlso: [
                "stillpoint-serve", "stillpoint-device", "stillpoint-snapshot",
                "stillpoint-changes",
                "stillpoint-copy", "stillpoint-restore", "stillpoint-block", "nbdinfo", "qemu-img",
            ]),
        "stillpoint-serve": ManualNotes(
            description: [
                """
                The service opens origins exclusively where the kernel lets it, and refuses one that is \
                mounted, in use by another program or by another service. It needs io_uring; stillpoint \
                probe tells what this machine offers.
                """,
                """
                Without options, a service of root keeps its state in /var/lib/stillpoint and its sockets \
                in /run/stillpoint, and serves NBD on a Unix socket only. Only the user of the service can \
                use the sockets.
                """,
            ],
            sections: [
                Section(
                    title: "CONFIGURATION FILE",
                    paragraphs: [
                        """
                        The keys are the long options without their dashes. attach is a mapping from names \
                        to paths, or from names to mappings with path, read-only, sector-size and exclusive. \
                        block lists the devices whose local block devices must be there. nbd is an address \
                        or a list of them. Keys that are not known are refused, with the line. The package \
                        installs a file in which every key is explained.
                        """
                    ]),
                Section(
                    title: "SIGNALS",
                    paragraphs: [
                        """
                        SIGTERM, SIGINT\tStop: finish the requests under way, flush the origins, save the \
                        change maps, hand block devices that are in use over to the guardian, and exit with 0.
                        SIGKILL\tNothing that was acknowledged is lost. Block devices wait for the next \
                        service on Linux 6.9 or later. Snapshots end.
                        """
                    ]),
                Section(
                    title: "NETWORK",
                    paragraphs: [
                        """
                        NBD over TCP is served without TLS on loopback addresses only, unless \
                        --allow-plaintext is given. With --tls-cert and --tls-key, clients must show a \
                        certificate signed by --tls-ca. With --tls-psk, clients and service share keys. \
                        Every client that is let in can open every export and write to every device.
                        """
                    ]),
            ],
            environment: [
                (
                    "LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES",
                    "Sockets that a service manager passes."
                ),
                ("NOTIFY_SOCKET", "Where to tell a service manager that the service is ready."),
                ("STILLPOINT_NO_LIVE", "If set, live devices are refused."),
            ],
            files: [
                ("/etc/default/stillpoint", "Options of the packaged unit, SERVE_OPTIONS."),
                ("/run/stillpoint/block", "Where local block devices are mounted by FUSE."),
                ("/dev/stillpoint/", "Links to the loop devices of local block devices, by name."),
            ],
            exitStatus: [
                0:
                    "The service was told to stop and has stopped; with --check, the configuration is good.",
                2: "Wrong usage or a fault in the configuration.",
                4:
                    "An origin, a socket or the state directory is in use by another process, or block "
                    + "devices wait with a guardian of another version.",
            ],
            seeAlso: [
                "stillpoint-probe", "stillpoint-status", "stillpoint-thaw", "systemd.socket(5)",
                "systemd.service(5)",
            ]),
        "stillpoint-status": ManualNotes(
            description: [
                "The table of devices says how much of each history is known, and who uses a device. "
                    + "Origins that are gone, replaced or deleted are named in sentences of their own."
            ], seeAlso: ["stillpoint-device", "stillpoint-block", "stillpoint-events"]),
        "stillpoint-probe": ManualNotes(
            description: [
                "For PATH it says how the origin would be opened: its size and sector size, whether it "
                    + "can be read past the page cache, discarded and zeroed, and whether it can be "
                    + "tracked live."
            ], seeAlso: ["stillpoint-serve", "stillpoint-device-attach"]),
        "stillpoint-device": ManualNotes(
            description: [
                "A device is an origin that is attached under a name. The service remembers its devices "
                    + "and attaches them again at every start. Its change history continues over restarts "
                    + "of the service, and over a clean restart of the machine for disk images and for "
                    + "block devices attached with --exclusive. That of a live device continues over a restart "
                    + "of the machine only if the device was at rest when the service ended and when it started."
            ], seeAlso: ["stillpoint-block", "stillpoint-snapshot", "stillpoint-changes"]),
        "stillpoint-device-attach": ManualNotes(
            description: [
                "Unmount a disk before you attach it, and from then on use it through its export only: "
                    + "the block device of stillpoint block attach, or NBD."
            ],
            exitStatus: [
                3: "There is no such file or block device.",
                4: "The name or the origin is in use.",
            ], seeAlso: ["stillpoint-block-attach", "stillpoint-probe"]),
        "stillpoint-device-resize": ManualNotes(seeAlso: [
            "stillpoint-device-show", "truncate", "lvresize(8)",
        ]),
        "stillpoint-device-detach": ManualNotes(
            description: [
                "The origin can be used directly again. Its change history is kept for the next time that "
                    + "it is attached under the same name, but continues only if nobody else writes to "
                    + "the origin meanwhile."
            ], exitStatus: [4: "The device is in use; the message says by whom."],
            seeAlso: ["stillpoint-block-detach", "stillpoint-snapshot-destroy"]),
        "stillpoint-snapshot": ManualNotes(
            description: [
                """
                All devices of a snapshot are cut at one moment while they are written to. Before a block \
                is overwritten for the first time after the cut, its old data goes to difference storage. \
                If the storage is full, the snapshot is given up rather than a writer failed: its state is \
                corrupted then, and its images fail every read.
                """
            ], seeAlso: ["stillpoint-copy", "stillpoint-checkpoint", "stillpoint-events"]),
        "stillpoint-snapshot-create": ManualNotes(
            description: [
                """
                Filesystems that are mounted from block devices of these devices are frozen for the cut. \
                The document of the snapshot says whether the images are consistent for them \
                (filesystem) or as after a power failure (crash).
                """,
                """
                The hooks of --pre and --post find in their environment what ENVIRONMENT lists. The --post \
                hook runs whenever the --pre hook was started.
                """,
            ],
            environment: [
                ("STILLPOINT_PHASE", "Of hooks: pre or post."),
                (
                    "STILLPOINT_SNAPSHOT_ID, STILLPOINT_SNAPSHOT_NAME",
                    "Of hooks: the snapshot; the name is empty if it has none."
                ),
                ("STILLPOINT_DEVICES", "Of hooks: the names of its devices, separated by spaces."),
                ("STILLPOINT_RESULT", "Of the --post hook: taken or failed."),
                (
                    "STILLPOINT_ERROR",
                    "Of the --post hook: why the snapshot was not taken, otherwise empty."
                ),
            ],
            exitStatus: [
                1:
                    "A filesystem could not be frozen, a hook failed, or writers would have had to wait too "
                    + "long; nothing has changed.",
                3: "There is no such device.",
                4: "The name is taken.",
            ], seeAlso: ["stillpoint-snapshot-destroy", "stillpoint-copy", "fsfreeze(8)"]),
        "stillpoint-snapshot-take": ManualNotes(seeAlso: ["stillpoint-snapshot-create"]),
        "stillpoint-snapshot-destroy": ManualNotes(
            description: ["The name of the snapshot remains as a checkpoint."],
            seeAlso: ["stillpoint-checkpoint-delete"]),
        "stillpoint-snapshot-append-storage": ManualNotes(
            description: [
                "The event low-space tells that less than a tenth of what storage can give is left."
            ], seeAlso: ["stillpoint-snapshot-create", "stillpoint-events"]),
        "stillpoint-checkpoint": ManualNotes(seeAlso: ["stillpoint-changes", "stillpoint-snapshot"]
        ),
        "stillpoint-changes": ManualNotes(
            description: [
                """
                If it is not known for certain what changed, the question is refused with exit status 5: \
                after a power failure, for example, or if somebody wrote to the origin while the service \
                did not run. Make a full backup then. The reason is shown by stillpoint device show.
                """
            ], seeAlso: ["stillpoint-checkpoint", "stillpoint-copy", "nbdinfo"]),
        "stillpoint-changes-mark": ManualNotes(
            exitStatus: [3: "There is no such device."], seeAlso: ["stillpoint-changes"]),
        "stillpoint-copy": ManualNotes(
            files: [
                (
                    "TARGET.stillpoint",
                    "The record of a copy: which cut it equals, and what was written so far."
                ),
                ("TARGET@NAME", "A version that --keep NAME has kept, with a record of its own."),
                ("/var/lib/stillpoint/copies/", "The records of copies on block devices."),
            ],
            exitStatus: [
                4:
                    "The target is in use, holds something else, or is a complete copy of another cut; or the "
                    + "filesystems of a live device would be frozen too long.",
                5:
                    "What changed since the cut of the target is not known, or the target does not equal it.",
                6: "The snapshot was corrupted during the copy.",
            ],
            seeAlso: ["stillpoint-copies", "stillpoint-verify", "stillpoint-restore", "rbd(8)"]),
        "stillpoint-copies": ManualNotes(seeAlso: ["stillpoint-copy", "stillpoint-verify"]),
        "stillpoint-verify": ManualNotes(seeAlso: ["stillpoint-copy", "cmp"]),
        "stillpoint-restore": ManualNotes(
            exitStatus: [4: "The device is in use, or something is mounted from it."],
            seeAlso: ["stillpoint-copy", "stillpoint-verify"]),
        "stillpoint-run": ManualNotes(
            environment: [
                ("STILLPOINT_SNAPSHOT", "Of the command: the id of the snapshot."),
                (
                    "STILLPOINT_IMAGES",
                    "Of the command: a line DEVICE=PATH for the block device of each image."
                ),
                (
                    "STILLPOINT_MOUNTS",
                    "Of the command, with --mount: a line DEVICE=PATH for each mount point."
                ),
            ], seeAlso: ["stillpoint-snapshot-create", "restic", "borg"]),
        "stillpoint-block": ManualNotes(
            description: [
                """
                A local block device is a loop device over a file that the service provides by FUSE. Its \
                name, /dev/stillpoint/NAME, does not change. Mount by this name rather than by UUID or \
                label, which may find the origin first.
                """
            ],
            files: [
                ("/dev/stillpoint/NAME", "The block device of a device."),
                ("/dev/stillpoint/DEVICE@SNAPSHOT", "The block device of an image."),
            ], seeAlso: ["stillpoint-device", "fstab(5)", "losetup(8)"]),
        "stillpoint-block-attach": ManualNotes(
            files: [
                ("/dev/stillpoint/NAME", "The block device; NAME1 and so on are its partitions.")
            ],
            seeAlso: ["stillpoint-block-detach", "mount(8)", "fstab(5)"]),
        "stillpoint-block-detach": ManualNotes(
            exitStatus: [4: "The block device is in use; the message says by whom."],
            seeAlso: ["stillpoint-block-attach"]),
        "stillpoint-events": ManualNotes(
            sections: [
                Section(
                    title: "EVENTS",
                    paragraphs: [
                        """
                        device-attached, device-detached\tA device came or went.
                        device-resized\tA device has taken over the size of its origin.
                        block-attached, block-detached\tA local block device came or went.
                        device-gone\tThe disk of a device does not answer any more.
                        origin-replaced\tThe path of an origin names another file or device, or none.
                        taken, destroyed\tA snapshot was taken or ended.
                        hook-failed\tA hook of a snapshot failed or took too long.
                        freeze-failed\tA filesystem could not be frozen for a cut.
                        low-space\tLess than a tenth of what the storage of a snapshot can give is left.
                        storage-grown\tThe storage of a snapshot has grown.
                        storage-not-erased\tA block device that was storage could not be erased.
                        corrupted\tA snapshot has lost data of a device; the event says why.
                        overlay-corrupted\tWhat was written to a writable image is lost.
                        history-new\tA new history of a device began: a full backup is due.
                        """
                    ])
            ], seeAlso: ["stillpoint-snapshot", "stillpoint-status"]),
        "stillpoint-thaw": ManualNotes(
            exitStatus: [
                4: "The service lives, or a filesystem waits for the next service to be thawed."
            ],
            seeAlso: ["stillpoint-serve", "fsfreeze(8)"]),
    ]
}
