import Foundation
import Glibc
import TestSupport
import Testing

/// A filesystem on a loop device over a file in memory, mounted, and a load on it.
final class MountedLive {
    enum Kind: String, CaseIterable { case ext4, xfs }

    let kind: Kind
    let disk: LiveDisk
    let mount: String
    private let ticket: Int
    private var loads: [ChildProcess] = []

    init(_ kind: Kind, mebibytes: Int? = nil) throws {
        self.kind = kind
        disk = try LiveDisk(byteCount: (mebibytes ?? (kind == .ext4 ? 96 : 320)) << 20)
        mount = disk.directory.path("mount")
        try FileManager.default.createDirectory(
            atPath: mount, withIntermediateDirectories: false)
        try Command.check(
            "mkfs.\(kind.rawValue)",
            kind == .ext4
                ? ["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk.path]
                : ["-q", disk.path])
        ticket = ExitCleanup.shared.register("fsfreeze --unfreeze \(mount); umount --lazy \(mount)")
        try Command.check("mount", [disk.path, mount])
    }

    deinit {
        loads = []
        // Mostly it is not frozen, which is what this says then.
        _ = try? Command.run("fsfreeze", ["--unfreeze", mount])
        umount2(mount, Int32(MNT_DETACH))
        ExitCleanup.shared.withdraw(ticket)
    }

    /// Writes to it until `rest`: files at random places, direct and buffered, and files that come
    /// and go.
    func load(seed: UInt64) throws {
        let files = [
            "[global]", "time_based", "runtime=3000", "thread", "directory=\(mount)", "bs=4k",
            "randseed=\(seed % 1_000_000)", "rate_iops=1200", "size=8m", "group_reporting",
            "[direct]", "ioengine=libaio", "iodepth=8", "direct=1", "rw=randwrite",
            "[buffered]", "ioengine=psync", "rw=randwrite", "fsync=16",
        ]
        let job = disk.directory.path("job")
        try Data(files.joined(separator: "\n").utf8).write(to: URL(fileURLWithPath: job))
        loads.append(try ChildProcess("/usr/bin/fio", ["--output=/dev/null", job]))
        let script = """
            while :; do for n in 1 2 3 4 5 6; do
            dd if=/dev/urandom of=\(mount)/come$n bs=7000 count=9 status=none
            rm -f \(mount)/come$(((n + 3) % 6)); echo $n; done; done
            """
        let files2 = try ChildProcess("/bin/sh", ["-c", script])
        loads.append(files2)
        // It has begun.
        for _ in 0..<3 { _ = try files2.readLine(deadline: 120) }
    }

    /// Ends the load.
    func rest() throws {
        for load in loads { load.send(signal: SIGKILL) }
        for load in loads { _ = try load.wait(deadline: 120) }
        loads = []
    }

    /// The disk's bytes while its filesystem is frozen, and what `body` returns then.
    func frozen<Value>(_ body: () throws -> Value) throws -> (image: Data, value: Value) {
        try Command.check("fsfreeze", ["--freeze", mount], deadline: 120)
        defer { _ = try? Command.run("fsfreeze", ["--unfreeze", mount]) }
        let value = try body()
        return (try Data(contentsOf: URL(fileURLWithPath: disk.file)), value)
    }

    /// A file can be written in it: it is not frozen any more within a while.
    func isWritable() throws -> Bool {
        let writer = try ChildProcess("/bin/sh", ["-c", "echo x > \(mount)/written; echo done"])
        return try writer.readLine(deadline: 60) == "done"
    }

    /// What a check of the filesystem in a copy finds wrong; empty when it is sound.
    func errors(ofCopy path: String) throws -> String {
        let directory = try TemporaryDirectory(inMemory: true)
        let image = directory.path("check.img")
        try Command.check("cp", ["--sparse=always", path, image])
        if kind == .ext4 {
            let outcome = try Command.run("e2fsck", ["-fn", image], deadline: 300)
            return outcome.status == 0 ? "" : outcome.output + outcome.diagnostics
        }
        // XFS leaves its log to be replayed even when it was frozen.
        let mounted = directory.path("mounted")
        let script = """
            mkdir \(mounted) && mount -o loop,nouuid \(image) \(mounted) && umount \(mounted) &&
            xfs_repair -n \(image)
            """
        let outcome = try Command.run("sh", ["-c", script], deadline: 300)
        return outcome.status == 0 ? "" : outcome.output + outcome.diagnostics
    }
}

extension LiveHarness {
    /// Blocks in which a copy differs from the disk and that did not change since its cut: there
    /// may be none.
    func wrongBlocks(
        _ copy: String, of live: MountedLive, _ device: String, since cut: String
    ) throws -> Set<Int> {
        let (image, changed) = try live.frozen { try changedBlocks(device, since: cut) }
        let copied = try Data(contentsOf: URL(fileURLWithPath: copy))
        guard copied.count == image.count else {
            throw TestFailure("the copy has \(copied.count) bytes, the disk \(image.count)")
        }
        return differingBlocks(copied, image).subtracting(changed)
    }

    /// Names of all checkpoints.
    func checkpoints() throws -> [String] {
        let outcome = try command(["checkpoint", "list", "--json"])
        guard outcome.status == 0 else { throw TestFailure(outcome.diagnostics) }
        let list = try JSONSerialization.jsonObject(with: Data(outcome.output.utf8))
        return (list as? [[String: Any]] ?? []).compactMap { $0["name"] as? String }
    }
}
