import Foundation
import TestSupport
import Testing

/// The original's main scenarios, with real filesystems.
@Suite(.needsBlockDevices)
struct `Images with filesystems` {
    /// Where the blocks go that a snapshot preserves.
    enum Storage: String, CaseIterable, Sendable {
        case directory, blockDevice, memory
    }

    /// A device with a filesystem that is mounted.
    private struct Volume {
        let name: String
        let origin: TestOrigin
        let block: String
        let mount: Mount
        var files: FileLoad
        var inSnapshot: FileLoad

        init(_ name: String, _ harness: BlockHarness, seed: UInt64) throws {
            self.name = name
            origin = try TestOrigin(.sparseFile, byteCount: 256 * mebibyte)
            try harness.command("device", "attach", name, origin.path)
            block = try harness.attachBlock(name)
            try Filesystem.ext4.make(on: block)
            mount = try Mount(block)
            files = FileLoad(in: mount.path, seed: seed)
            inSnapshot = files
        }
    }

    @Test(arguments: Storage.allCases)
    func `images of two filesystems hold the files of the cut, take writes and leave no trace`(
        storage: Storage
    ) throws {
        let harness = try BlockHarness()
        var generator = SeededGenerator.announced("images, storage in \(storage)")
        var volumes = [
            try Volume("one", harness, seed: generator.next()),
            try Volume("two", harness, seed: generator.next()),
        ]
        for index in volumes.indices {
            try volumes[index].files.writeFiles(40)
            try Command.check("sync", ["-f", volumes[index].mount.path])
            volumes[index].inSnapshot = volumes[index].files
        }
        let room = try Room(storage)
        try harness.command(
            "snapshot", "create", "--device", "one", "--device", "two", "--name", "s",
            "--storage", room.argument, "--limit", "300M")
        for index in volumes.indices {
            try volumes[index].files.run(seconds: 2)
            try volumes[index].files.writeFiles(20)
        }
        for volume in volumes { try Self.useImage(of: volume, harness) }
        try harness.command("snapshot", "destroy", "s")
        for volume in volumes {
            try volume.mount.unmount()
            try Filesystem.ext4.check(volume.block)
            let again = try Mount(volume.block)
            try volume.files.checkAll(in: again.path)
            #expect(!FileManager.default.fileExists(atPath: again.path + "/only-in-the-image"))
            try again.unmount()
        }
    }

    /// Storage that lives as long as the object.
    private struct Room {
        let argument: String
        private let directory: TemporaryDirectory
        private let loop: LoopDevice?

        init(_ storage: Storage) throws {
            directory = try TemporaryDirectory()
            switch storage {
            case .directory:
                argument = directory.root
                loop = nil
            case .blockDevice:
                let file = directory.path("storage.img")
                try makeSparseFile(file, byteCount: 300 * mebibyte)
                let made = try LoopDevice(over: file, sectorSize: 512)
                loop = made
                argument = made.path
            case .memory:
                argument = "memory:300M"
                loop = nil
            }
        }
    }

    private static func useImage(of volume: Volume, _ harness: BlockHarness) throws {
        // Journal replay is the first thing that is written to it.
        let image = try harness.attachBlock(volume.name + "@s")
        let first = try Mount(image)
        try volume.inSnapshot.checkAll(in: first.path)
        let place = first.path + "/only-in-the-image"
        try "words".write(toFile: place, atomically: false, encoding: .utf8)
        var scribbles = FileLoad(in: first.path, seed: 7)
        try scribbles.writeFiles(5)
        try first.unmount()
        let second = try Mount(image)
        #expect(
            try String(
                contentsOfFile: second.path + "/only-in-the-image", encoding: .utf8) == "words")
        try scribbles.checkSynced(in: second.path)
        try second.unmount()
        try Filesystem.ext4.check(image)
        #expect(!FileManager.default.fileExists(atPath: volume.mount.path + "/only-in-the-image"))
        try harness.command("block", "detach", image)

        let untouched = try harness.attachBlock(volume.name + "@s", "--read-only")
        let third = try Mount(untouched, options: "ro,noload")
        #expect(!FileManager.default.fileExists(atPath: third.path + "/only-in-the-image"))
        try volume.inSnapshot.checkSynced(in: third.path)
        try third.unmount()
        #expect(try Command.run("mkfs.ext4", ["-q", "-F", untouched]).status != 0)
        try harness.command("block", "detach", untouched)
    }

    @Test func `destroying a snapshot takes the mounted image away and hangs nobody`() throws {
        let harness = try BlockHarness()
        let volume = try Volume("disk", harness, seed: 3)
        try harness.command(
            "snapshot", "create", "--device", "disk", "--name", "s", "--storage", "memory:64M")
        let image = try harness.attachBlock("disk@s")
        let mount = try Mount(image)
        // Its requests fail as soon as the snapshot is gone, whatever moment that is.
        let load = Background { () -> Bool in
            var files = FileLoad(in: mount.path, seed: 4)
            do {
                try files.run(seconds: 60)
                return false
            } catch { return true }
        }
        try harness.command("snapshot", "destroy", "s", "--force-lose-writes")
        #expect(try load.value(within: 90), "writes to a destroyed image went on for a minute")
        try mount.unmount(deadline: 30)
        #expect(try harness.loopDevices() == [volume.block])
        #expect(try harness.mounts().count == 1)
        #expect(try harness.command("block", "list").contains("disk@s") == false)
    }
}
