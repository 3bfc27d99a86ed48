import Foundation
import Glibc
import TestSupport
import Testing

private let needsBlockDevices = "it needs root, loop devices and FUSE"
private let canUseBlockDevices = canUseLoopDevices && canUseFUSE

/// The guides under docs/: what they show runs as it stands, with a service that has the devices
/// they name; only the places are others.
@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `The guides` {
    private let place: GuidePlace

    init() throws {
        place = try GuidePlace(["srv", "mnt", "backup"])
        // Tools of the system's administrator, and PostgreSQL's.
        let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
        let more = ["/usr/sbin", "/sbin"] + Self.postgresPrograms
        place.environment["PATH"] = ([place.path("bin"), path] + more).joined(separator: ":")
    }

    private static let postgresPrograms: [String] = {
        let root = "/usr/lib/postgresql"
        // Without the directory there is no PostgreSQL.
        let versions = (try? FileManager.default.contentsOfDirectory(atPath: root)) ?? []
        return getpwnam("postgres") == nil
            ? [] : versions.sorted().suffix(1).map { "\(root)/\($0)/bin" }
    }()

    /// Runs commands of a guide after `preparation` and returns what they print.
    @discardableResult
    private func run(
        _ commands: String, after preparation: String = "", wrapper: [String] = []
    ) throws -> String {
        let outcome = try place.run(
            place.placed(preparation + "\n" + commands), wrapper: wrapper)
        guard outcome.status == 0 else {
            throw TestFailure(
                "a command of the guide ended with \(outcome.status): \(outcome.diagnostics)\n"
                    + "\(outcome.output)\n\(place.log)")
        }
        return outcome.output
    }

    /// Commands that start the service with sparse files as devices.
    private func serving(_ devices: String..., options: String = "") -> String {
        devices.map { "truncate -s 64M /srv/\($0).img\n" }.joined() + "stillpoint serve "
            + devices.map { "--attach \($0)=/srv/\($0).img " }.joined() + options + "\n"
    }

    @Test func `on snapshots runs as it stands`() throws {
        let output = try run(
            try Guide("docs/snapshots.md").commands(), after: serving("vm1", "data"))
        #expect(output.contains("nightly") && output.contains("destroyed"))
    }

    @Test(.enabled(if: Command.exists("openssl"), "openssl is not installed"))
    func `on monitoring runs as it stands`() throws {
        place.replacements += [
            (":9469", ":\(try TestService.freePort())"),
            ("/etc/stillpoint/", place.path("work") + "/"),
        ]
        let output = try run(try Guide("docs/monitoring.md").commands())
        #expect(output.contains("0 device(s), reading -") && output.contains("\"devices\""))
        let token = try String(contentsOfFile: place.path("work/page-token"), encoding: .utf8)
        #expect(token.count == 65)
    }

    @Test(.enabled(if: Command.exists("curl"), "curl is not installed"))
    func `on clients runs as it stands, and its program lists what changed`() throws {
        let guide = try Guide("docs/client.md")
        let output = try run(try guide.commands(), after: serving("vm1"))
        #expect(output.contains("\"vm1\""))
        try guide.text("python").write(
            toFile: place.path("work/client.py"), atomically: true, encoding: .utf8)
        let round = try run(
            """
            stillpoint checkpoint create monday --device vm1
            stillpoint changes mark vm1 --range 8192:4096
            python3 client.py "$STILLPOINT_CONTROL"
            """)
        #expect(round.hasSuffix("8192 4096\n"), "\(round)")
    }

    @Test(.enabled(if: Command.exists("nbdinfo"), "libnbd's tools are not installed"))
    func `on clients shows nbdinfo the changes of an image`() throws {
        place.replacements.append(("/run/stillpoint/", place.path("run") + "/"))
        let output = try run(
            try Guide("docs/client.md").commands("nbdinfo"),
            after: serving("vm1") + """
                stillpoint checkpoint create monday --device vm1
                stillpoint changes mark vm1 --range 1M:64K
                stillpoint snapshot create --device vm1 --name tuesday
                """)
        #expect(output.contains("1048576       65536    1"), "\(output)")
    }

    @Test(.enabled(if: Command.exists("nbdinfo"), "libnbd's tools are not installed"))
    func `on the interface shows nbdinfo the only bitmap of an export`() throws {
        place.replacements.append(("/run/stillpoint/", place.path("run") + "/"))
        let output = try run(
            try Guide("docs/interface.md").commands("nbdinfo"),
            after: serving("vm1") + """
                stillpoint checkpoint create mon --device vm1
                stillpoint changes mark vm1 --range 1M:64K
                stillpoint snapshot create --device vm1 --name tue
                """)
        #expect(output.contains("1048576       65536    1"), "\(output)")
    }

    @Test func `on other tools makes a full backup and an incremental one`() throws {
        let output = try run(
            try Guide("docs/migrating.md").commands(),
            after: "truncate -s 64M /srv/data.img\nstillpoint serve\n")
        #expect(output.contains("1048576 65536\n"), "\(output)")
    }

    @Test(.enabled(if: canUseBlockDevices, Comment(rawValue: needsBlockDevices)))
    func `on filesystems mounts images and discards`() throws {
        let guide = try Guide("docs/filesystems.md")
        let files = """
            truncate -s 512M /srv/files.img
            mkfs.xfs -q /srv/files.img
            stillpoint device attach files /srv/files.img
            mkdir -p /srv/files
            mount "$(stillpoint block attach files)" /srv/files
            echo here >/srv/files/here
            """
        let output = try run(
            try guide.commands() + "\nif command -v mkfs.xfs >/dev/null; then\n\(files)\n"
                + (try guide.commands("xfs")) + "else echo 'skipped: XFS is not installed'; fi\n",
            after: serving("data") + """
                mkdir -p /srv/data /mnt/image
                node=$(stillpoint block attach data)
                mkfs.ext4 -q "$node"
                mount "$node" /srv/data
                echo shown >/srv/data/shown

                """)
        #expect(output.contains("shown\n"), "\(output)")
        if output.contains("skipped") { print("docs/filesystems.md: \(output)") }
    }

    @Test(.enabled(if: canUseBlockDevices, Comment(rawValue: needsBlockDevices)))
    func `begin with the README, which protects a disk that was mounted`() throws {
        try makeSparseFile(place.path("disk.img"), byteCount: 64 << 20)
        let disk = try LoopDevice(over: place.path("disk.img"), sectorSize: 512)
        place.replacements.append(("/dev/disk/by-id/ata-DISK-part1", disk.path))
        let output = try run(
            try Guide("README.md").commands("protect") + "cat /srv/data/kept\n",
            after: """
                mkfs.ext4 -q '\(disk.path)'
                mkdir -p /srv/data
                mount '\(disk.path)' /srv/data
                echo it is there >/srv/data/kept
                stillpoint serve

                """)
        #expect(output.hasSuffix("it is there\n"), "\(output)")
        // The disk must be free again before its loop device is taken away.
        try run("umount /srv/data\nstillpoint device detach data --force")
    }

    @Test(
        .enabled(if: canUseBlockDevices, Comment(rawValue: needsBlockDevices)),
        .enabled(if: !postgresPrograms.isEmpty, "PostgreSQL is not installed"))
    func `on databases brings a PostgreSQL back that was in use when it was copied`() throws {
        let guide = try Guide("docs/databases.md")
        try Command.check("chmod", ["0755", place.directory.root, place.path("srv")])
        // `pg_ctl stop` returns a moment before the server has let go of its files.
        try place.addTool(
            "umount",
            """
            #!/bin/bash
            for path; do
                for ((round = 0; round < 300; round++)); do
                    /bin/umount "$path" 2>/dev/null && continue 2
                    sleep 0.1
                done
                exec /bin/umount "$path"
            done

            """)
        place.environment["PGHOST"] = place.path("srv/socket")
        let loss = "\nas psql -q -c 'DROP TABLE seen' postgres\n"
        let proof = "\nas psql -qAt -c 'SELECT count(*) FROM seen' postgres | sed 's/^/seen /'\n"
        let end = """
            trap - EXIT
            as pg_ctl stop --pgdata /srv/pgdata/15
            """
        let output = try run(
            try guide.commands("backup") + loss + guide.commands("restore") + proof + end,
            after: Self.cluster)
        #expect(output.contains("seen 1\n"), "\(output)")
    }

    /// A database cluster in use, with its data and its write-ahead log on two mounted devices.
    private static let cluster = """
        truncate -s 512M /srv/pgdata.img /srv/pgwal.img
        stillpoint serve --attach pgdata=/srv/pgdata.img --attach pgwal=/srv/pgwal.img
        for name in pgdata pgwal; do
            node=$(stillpoint block attach $name)
            mkfs.ext4 -q "$node"
            mkdir /srv/$name
            mount "$node" /srv/$name
            chown postgres /srv/$name
        done
        cd /srv/
        install -d -o postgres "$PGHOST"
        as() { runuser -u postgres -- "$@"; }
        as initdb --pgdata /srv/pgdata/15 --waldir /srv/pgwal/15 --auth=trust --no-locale >initdb.log
        printf "listen_addresses = ''\\nunix_socket_directories = '%s'\\n" "$PGHOST" \
            >>/srv/pgdata/15/postgresql.conf
        as pg_ctl start --pgdata /srv/pgdata/15 --log /srv/pgdata/log
        trap 'as pg_ctl stop --mode immediate --pgdata /srv/pgdata/15' EXIT
        as psql -q -c 'CREATE EXTENSION amcheck' -c 'CREATE TABLE seen (n int)' postgres
        as psql -q -c 'INSERT INTO seen VALUES (1)' postgres

        """

    @Test(.enabled(if: LiveGuide.unusable == nil, "\(LiveGuide.unusable ?? "")"))
    func `on live devices tracks a mounted disk`() throws {
        // The disk of the machine stays as it is: another takes its place.
        let guide = try Guide("docs/live.md")
        place.replacements.append(("root / --live", "root \(place.path("mnt/root")) --live"))
        let output = try run(
            try guide.commands(),
            after: """
                truncate -s 64M /srv/root.img
                mkfs.ext4 -q /srv/root.img
                mkdir /mnt/root
                mount -o loop /srv/root.img /mnt/root
                stillpoint serve

                """)
        #expect(output.contains("root"), "\(output)")
        try run("stillpoint device detach root")
    }
}

/// Whether live devices can be tried here.
private enum LiveGuide {
    static let unusable: String? = {
        guard canUseLoopDevices else { return "it needs root and loop devices" }
        guard access("/sys/kernel/btf/vmlinux", R_OK) == 0 else { return "the kernel has no BTF" }
        return nil
    }()
}
