import Foundation
import Glibc
import TestSupport
import Testing

@Suite(.serialized, .enabled(if: LiveSupport.reason == nil, LiveSupport.comment))
struct `A live device` {
    @Test func `reports exactly the blocks that others wrote and discarded`() throws {
        let disk = try LiveDisk(byteCount: 64 << 20)
        let harness = try LiveHarness()
        let attached = try harness.object("device", "attach", "d", disk.path, "--live")
        #expect(attached["mode"] as? String == "live")
        #expect(attached["granularity"] as? Int == 4096)
        try harness.object("checkpoint", "create", "one", "--device", "d")
        try disk.write(block: 5)
        try disk.write(block: 100, count: 3)
        #expect(try harness.changedBlocks("d", since: "one") == [5, 100, 101, 102])
        try Command.check(
            "blkdiscard", ["--offset", "\(1 << 20)", "--length", "\(1 << 20)", disk.path])
        try harness.object("checkpoint", "create", "two", "--device", "d")
        try disk.write(block: 7)
        // Exact for the newest checkpoint; an older one gets whole chunks at worst.
        let older = try harness.changedBlocks("d", since: "one")
        #expect(older.isSuperset(of: Set([5, 7, 100, 101, 102]).union(256..<512)))
        #expect(older.isSubset(of: Set(0..<16).union(96..<112).union(256..<512)))
        #expect(try harness.changedBlocks("d", since: "two") == [7])
        try harness.done("device", "detach", "d")
    }

    @Test func `is a window of its disk when it is a partition`() throws {
        let disk = try LiveDisk(
            byteCount: 64 << 20,
            withPartitions: "label: dos\\n2048,32768\\n34817,32768\\n")
        let (first, second) = (disk.path + "p1", disk.path + "p2")
        let harness = try LiveHarness()
        try harness.object("device", "attach", "a", first, "--live")
        try harness.object("device", "attach", "b", second, "--live")
        try harness.object("checkpoint", "create", "c", "--device", "a", "--device", "b")
        try disk.write(to: first, block: 9)
        try disk.write(to: second, block: 3)
        #expect(try harness.changedBlocks("a", since: "c") == [9])
        // The second begins in the middle of a block of the disk, so a mark covers two of its own.
        let changed = try harness.changedBlocks("b", since: "c")
        #expect(changed.isSuperset(of: [3]) && changed.isSubset(of: [2, 3, 4]))
        let refusal = try harness.failure("device", "attach", "whole", disk.path, "--live")
        #expect(refusal.status == 4 && refusal.message.contains("shares its disk"))
    }

    @Test func `is never served too, nor a disk live while a partition is served`() throws {
        let disk = try LiveDisk(
            byteCount: 16 << 20, withPartitions: "label: dos\\n2048,8192\\n")
        let harness = try LiveHarness()
        try harness.object("device", "attach", "served", disk.path + "p1")
        #expect(
            try harness.failure("device", "attach", "live", disk.path + "p1", "--live").status == 4)
        #expect(try harness.failure("device", "attach", "live", disk.path, "--live").status == 4)
        try harness.done("device", "detach", "served")
        try harness.object("device", "attach", "live", disk.path, "--live")
        #expect(try harness.failure("device", "attach", "served", disk.path).status == 4)
        #expect(
            try harness.failure("device", "attach", "served", disk.path + "p1").status == 4)
    }

    @Test func `has no snapshots, and the refusal names the alternative`() throws {
        let disk = try LiveDisk(byteCount: 16 << 20)
        let harness = try LiveHarness()
        try harness.object("device", "attach", "d", disk.path, "--live")
        let refusal = try harness.failure("snapshot", "create", "--device", "d")
        #expect(refusal.status == 1 || refusal.status == 4)
        #expect(refusal.message.contains("checkpoint"))
        let file = harness.service.directory.path("file.img")
        try makeSparseFile(file, byteCount: 1 << 20)
        #expect(
            try harness.failure("device", "attach", "f", file, "--live").message.contains(
                "not a block device"))
    }

    @Test func `is cut with its mounted filesystem frozen, and says when it was not`() throws {
        let mounted = try MountedDisk(.ext4)
        let bare = try LiveDisk(byteCount: 16 << 20)
        let harness = try LiveHarness()
        // By its mount point.
        let attached = try harness.object("device", "attach", "fs", mounted.path, "--live")
        #expect(attached["path"] as? String == mounted.device)
        try harness.object("device", "attach", "bare", bare.path, "--live")
        let cut = try harness.object("checkpoint", "create", "one", "--device", "fs")
        #expect(cut["consistency"] as? String == "filesystem")
        #expect(cut["frozen"] as? [String] == [mounted.path])
        #expect(try mounted.isWritable())
        let both = try harness.object(
            "checkpoint", "create", "two", "--device", "fs", "--device", "bare")
        #expect(both["consistency"] as? String == "crash")
        try Command.check(
            "dd",
            [
                "if=/dev/urandom", "of=\(mounted.path("file"))", "bs=64k", "count=4", "conv=fsync",
                "status=none",
            ])
        #expect(try harness.changedBlocks("fs", since: "two").count >= 64)
        #expect(try harness.changedBlocks("bare", since: "two") == [])
    }

    @Test func `is exported read-only with what changed until the moment of the question`() throws {
        let disk = try LiveDisk(byteCount: 16 << 20)
        let harness = try LiveHarness()
        try harness.object("device", "attach", "d", disk.path, "--live")
        try harness.object("checkpoint", "create", "one", "--device", "d")
        try disk.write(block: 3, count: 2)
        let text = try Command.check(
            "nbdinfo",
            ["--map=qemu:dirty-bitmap:one", harness.service.uri("d")])
        let dirty = text.split(separator: "\n").filter {
            $0.split(separator: " ", omittingEmptySubsequences: true).dropFirst(2).first == "1"
        }
        #expect(dirty.count == 1)
        #expect(dirty.first?.contains("12288") == true && dirty.first?.contains("8192") == true)
        #expect(
            try Command.run("nbdinfo", ["--is", "read-only", harness.service.uri("d")]).status == 0)
    }

    @Test func `grows with its disk, and what grew counts as changed`() throws {
        let disk = try LiveDisk(byteCount: 16 << 20)
        let harness = try LiveHarness()
        try harness.object("device", "attach", "d", disk.path, "--live")
        try harness.object("checkpoint", "create", "one", "--device", "d")
        let before = try harness.history("d").generation
        try disk.write(block: 1)
        try Command.check("truncate", ["-s", "32M", disk.file])
        try Command.check("losetup", ["-c", disk.path])
        try disk.write(block: 5000)
        let resized = try harness.object("device", "resize", "d")
        #expect(resized["size"] as? Int == 32 << 20)
        try disk.write(block: 6000)
        #expect(try harness.changedBlocks("d", since: "one") == Set([1]).union(4096..<8192))
        try harness.object("checkpoint", "create", "two", "--device", "d")
        try disk.write(block: 7000)
        #expect(try harness.changedBlocks("d", since: "two") == [7000])
        #expect(try harness.history("d").generation == before)
    }
}
