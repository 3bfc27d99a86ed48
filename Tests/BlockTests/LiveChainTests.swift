import Foundation
import Glibc
import Synchronization
import TestSupport
import Testing

/// Goes on changing files of a filesystem while others look at others of it.
private final class BusyWriter: Sendable {
    private let isOver: Flag
    private let load: Background<FileLoad>

    private final class Flag: Sendable {
        let isSet = Atomic(false)
    }

    /// Makes the directory `root` and begins.
    init(in root: String, seed: UInt64) throws {
        try FileManager.default.createDirectory(atPath: root, withIntermediateDirectories: false)
        let isOver = Flag()
        self.isOver = isOver
        load = Background {
            var load = FileLoad(in: root, seed: seed)
            while !isOver.isSet.load(ordering: .relaxed) { try load.run(seconds: 0.05) }
            return load
        }
    }

    deinit { isOver.isSet.store(true, ordering: .relaxed) }

    /// Stops it and returns what must be there now.
    func end() throws -> FileLoad {
        isOver.isSet.store(true, ordering: .relaxed)
        return try load.value(within: 120)
    }
}

/// A live ext4 on a device, and a copy that is brought forward from cut to cut.
private struct LiveFilesystem {
    static let byteCount = 256 * mebibyte

    let origin: TestOrigin
    let harness: BlockHarness
    let block: String
    let mount: Mount
    private let copies: TemporaryDirectory

    var copy: String { copies.path("copy") }

    init() throws {
        origin = try TestOrigin(.sparseFile, byteCount: Self.byteCount)
        harness = try BlockHarness(attaching: ["disk": origin.path])
        block = try harness.attachBlock("disk")
        try Filesystem.ext4.make(on: block)
        mount = try Mount(block)
        copies = try TemporaryDirectory()
    }

    /// Deletes the ballast of the round before and gives its space back, then writes that of this
    /// round.
    func shift(ballast round: Int, _ generator: inout SeededGenerator) throws {
        let former = mount.path + "/ballast-\(round - 1)"
        if round > 0 {
            try FileManager.default.removeItem(atPath: former)
            try Command.check("sync", ["-f", mount.path])
            // /mnt: 8.4 MiB (8810496 bytes) trimmed; less where the load beside has taken some of
            // the space again.
            let text = try Command.check("fstrim", ["--verbose", mount.path])
            let trimmed = text.split(separator: "(").last?.split(separator: " ").first
            #expect(Int(trimmed ?? "") ?? 0 > 0, "\(text)")
        }
        try makeRandomFile(
            mount.path + "/ballast-\(round)", byteCount: 8 * mebibyte, generator: &generator)
    }

    /// Takes a snapshot, with the filesystem frozen for the cut without being asked to. A file that
    /// is deleted and still open is part of every cut, as writeback makes some by chance.
    func take(_ name: String) throws {
        let path = mount.path + "/deleted"
        try Data(repeating: 0x5a, count: mebibyte).write(to: URL(filePath: path))
        let held = try #require(FileHandle(forReadingAtPath: path))
        try FileManager.default.removeItem(atPath: path)
        defer { try? held.close() }
        let json = try harness.command(
            "snapshot", "create", "--device", "disk", "--name", name, "--storage", "memory:256M",
            "--json")
        #expect(json.contains("\"consistency\" : \"filesystem\""), "\(json)")
        #expect(json.contains(mount.path), "\(json)")
    }

    /// Brings the copy forward to a snapshot, sees that it is the image to the byte, and ends the
    /// snapshot.
    func bringForward(to name: String, since former: String?) throws {
        let text = try harness.command(
            ["copy", "disk@" + name, copy, "--json"] + (former.map { ["--since", $0] } ?? []))
        let result = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any]
        #expect(result?["full"] as? Bool == (former == nil))
        let written = try #require(result?["changed_bytes"] as? Int)
        print("\(name): \(written) bytes changed of \(Self.byteCount)")
        #expect(former == nil || (8 * mebibyte..<Self.byteCount).contains(written))
        // An independent look at the image, free space included: a discard that was not noticed
        // harms no file before its space is used again.
        let image = try harness.attachBlock("disk@" + name, "--read-only")
        try Command.check("cmp", [copy, image])
        try harness.command("block", "detach", image)
        try harness.command("snapshot", "destroy", name)
        if let former { try harness.command("checkpoint", "delete", former) }
    }

    /// The copy is a clean filesystem with exactly these files.
    func expectCopy(holds files: EditedFiles, ballast round: Int) throws {
        // Its header names the deleted file as an orphan, which whoever mounts it next releases.
        // There is nothing else to mend for a mount: the journal is empty.
        let header = try Command.check("dumpe2fs", ["-h", copy])
        #expect(!header.contains("needs_recovery"), "\(header)")
        #expect(header.contains("First orphan inode:"), "\(header)")
        let released = copies.path("released")
        try Command.check("cp", ["--sparse=always", copy, released])
        try Mount(released, options: "loop").unmount()
        try Filesystem.ext4.check(released)
        let mounted = try Mount(copy, options: "ro,loop")
        try files.check(in: mounted.path + "/quiet")
        #expect(
            try FileManager.default.contentsOfDirectory(atPath: mounted.path).sorted()
                == ["ballast-\(round)", "busy", "lost+found", "quiet"])
        try mounted.unmount()
    }
}

/// A chain of copies over a filesystem that is in use.
@Suite(.needsBlockDevices)
struct `A chain of copies of a live filesystem` {
    @Test func `each copy passes fsck and has the files of its cut`() throws {
        let rounds = isSoak ? 20 : 3
        print("copies of a live ext4: \(rounds) of 20 increments; STILLPOINT_SOAK=1 runs all")
        var generator = SeededGenerator.announced("chain over a live ext4")
        let live = try LiveFilesystem()
        let writer = try BusyWriter(in: live.mount.path + "/busy", seed: generator.next())
        var files = try EditedFiles(in: live.mount.path + "/quiet", seed: generator.next())
        try files.edit(100)
        for round in 0...rounds {
            try live.shift(ballast: round, &generator)
            try files.edit(30)
            try live.take("cut-\(round)")
            let atCut = files
            // What comes after the cut is none of the copy, discards included.
            try files.edit(15)
            try Command.check("fstrim", [live.mount.path])
            try live.bringForward(
                to: "cut-\(round)", since: round == 0 ? nil : "cut-\(round - 1)")
            try live.expectCopy(holds: atCut, ballast: round)
        }
        let written = try writer.end()
        print("\(written.operationCount) operations beside \(rounds + 1) cuts")
        #expect(written.operationCount > rounds)
        try written.checkAll(in: live.mount.path + "/busy")
        try files.check(in: live.mount.path + "/quiet")
        try live.mount.unmount()
        try Filesystem.ext4.check(live.block)
    }
}
