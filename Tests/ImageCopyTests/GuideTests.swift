import Foundation
import TestSupport
import Testing

/// The commands of docs/copies.md, run as they stand: only the places are others.
@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: canUseLoopDevices && canUseFUSE, "it needs root, loop devices and FUSE"))
struct `The guide to copies` {
    /// The commands of the blocks that are marked `kind`, in their order.
    private static func commands(_ kind: String) throws -> String {
        let root = URL(filePath: #filePath).deletingLastPathComponent()
            .deletingLastPathComponent().deletingLastPathComponent()
        let guide = try String(
            contentsOf: root.appending(path: "docs/copies.md"), encoding: .utf8)
        let blocks = guide.components(separatedBy: "```\(kind)\n").dropFirst().compactMap {
            $0.components(separatedBy: "```").first
        }
        return blocks.joined()
    }

    private func perform(_ commands: String, _ preparation: String = "") throws {
        let files = try TemporaryDirectory()
        for name in ["backup", "restored", "bin"] {
            try FileManager.default.createDirectory(
                atPath: files.path(name), withIntermediateDirectories: false)
        }
        try FileManager.default.createSymbolicLink(
            atPath: files.path("bin/stillpoint"), withDestinationPath: TestService.binary)
        try makeSparseFile(files.path("vm1.img"), byteCount: 64 << 20)
        try Command.check("mkfs.ext4", ["-q", "-F", files.path("vm1.img")])
        let service = try TestService(attaching: ["vm1": files.path("vm1.img")])
        var script = commands
        for directory in ["/backup", "/restored"] {
            script = script.replacingOccurrences(of: directory, with: files.root + directory)
        }
        #expect(!script.isEmpty)
        let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
        let outcome = try Command.run(
            "bash", ["-c", "set -euo pipefail\n\(preparation)\n\(script)\necho the end"],
            environment: [
                "PATH": files.path("bin") + ":" + path, "HOME": files.root,
                "STILLPOINT_CONTROL": service.controlPath, "TMPDIR": files.root,
                "RESTIC_REPOSITORY": files.path("restic"), "RESTIC_PASSWORD": "secret",
                "BORG_REPO": files.path("borg"), "files": files.root,
            ])
        #expect(outcome.status == 0, "\(outcome.diagnostics)\n\(outcome.output)")
        #expect(outcome.output.hasSuffix("the end\n"), "\(outcome.output)")
    }

    @Test func `does what it says`() throws {
        try perform(try Self.commands("sh"))
    }

    @Test(.enabled(if: Command.exists("restic"), "restic is not installed"))
    func `backs up with restic`() throws {
        try perform(
            "restic --quiet init\n" + (try Self.commands("sh restic"))
                + "restic ls latest >\"$files/list\"; grep -q lost+found \"$files/list\"\n")
    }

    @Test(.enabled(if: Command.exists("borg"), "borg is not installed"))
    func `backs up with borg`() throws {
        try perform(
            "borg init --encryption none\n" + (try Self.commands("sh borg"))
                + "borg list >\"$files/list\"; grep -q . \"$files/list\"\n")
    }

    @Test(.enabled(if: Command.exists("qemu-nbd"), "it needs qemu-utils"))
    func `keeps versions in qcow2 files`() throws {
        try perform(
            try Self.commands("sh qcow2") + "qemu-img check -q /backup/vm1-2.qcow2\n")
    }

    @Test(.enabled(if: Command.exists("nbdkit"), "it needs nbdkit"))
    func `copies to an NBD server`() throws {
        try perform(
            try Self.commands("sh nbdkit") + "cmp \"$files/vm1.img\" \"$files/target\"\n",
            """
            truncate -s 64M "$files/target"
            nbdkit --exit-with-parent -f -U "$files/backup/nbd.sock" file "$files/target" &
            until [ -S "$files/backup/nbd.sock" ]; do :; done
            """)
    }

    @Test(.enabled(if: TestCeph.obstacle == nil, "\(TestCeph.obstacle ?? "")"))
    func `copies to Ceph`() throws {
        let ceph = try TestCeph.shared.get()
        try perform(
            try Self.commands("sh ceph")
                + "cmp \"$files/vm1.img\" /restored/vm1-ceph.img\n",
            "export CEPH_CONF=\(ceph.configuration)")
    }
}
