import Foundation
import Glibc
import TestSupport
import Testing

// The truth about what changed is the disk itself: its image between one freeze and the next. Every
// block that differs must have been reported; blocks that were written as they were may be.

/// A disk with a mounted filesystem and a raw partition, and loads on both.
private final class LoadedDisk {
    let disk: LiveDisk
    let mount: String
    private let ticket: Int
    private var generator: SeededGenerator

    var raw: String { disk.path + "p2" }

    init(_ generator: SeededGenerator) throws {
        self.generator = generator
        // The first partition begins in the middle of a block.
        disk = try LiveDisk(
            byteCount: 96 << 20,
            withPartitions: "label: dos\\n2049,98304\\n102400,81920\\n")
        mount = disk.directory.path("mount")
        try FileManager.default.createDirectory(
            atPath: mount, withIntermediateDirectories: false)
        let size = ["1024", "4096"].randomElement(using: &self.generator) ?? "4096"
        try Command.check("mkfs.ext4", ["-q", "-b", size, disk.path + "p1"])
        ticket = ExitCleanup.shared.register("fsfreeze --unfreeze \(mount); umount --lazy \(mount)")
        try Command.check("mount", ["-o", "discard", disk.path + "p1", mount])
    }

    deinit {
        // Mostly it is not frozen, which is what this says then.
        _ = try? Command.run("fsfreeze", ["--unfreeze", mount])
        umount2(mount, Int32(MNT_DETACH))
        ExitCleanup.shared.withdraw(ticket)
    }

    /// The disk's bytes while its filesystem is frozen, and what `body` returns then.
    func frozen<Value>(_ body: () throws -> Value) throws -> (image: Data, value: Value) {
        // Raw writes through the page cache of the partition are not the filesystem's.
        try Command.check("blockdev", ["--flushbufs", raw])
        try Command.check("fsfreeze", ["--freeze", mount])
        defer { _ = try? Command.run("fsfreeze", ["--unfreeze", mount]) }
        let value = try body()
        return (try Data(contentsOf: URL(fileURLWithPath: disk.file)), value)
    }

    // MARK: Load

    private func pick<Element>(_ choices: [Element]) -> Element {
        choices.randomElement(using: &generator) ?? choices[0]
    }

    /// Other ways of the block layer to cut, merge and order requests.
    func retune() throws {
        let queue = "/sys/block/\((disk.path as NSString).lastPathComponent)/queue"
        let known = try String(contentsOfFile: "\(queue)/scheduler", encoding: .utf8)
            .split(whereSeparator: { " []\n".contains($0) }).map(String.init)
        for (file, value) in [
            ("scheduler", pick(known)), ("max_sectors_kb", pick(["4", "64", "256", "1280"])),
            ("nomerges", pick(["0", "1", "2"])),
        ] {
            // A value that this driver does not take leaves the one before.
            _ = try? Command.run("sh", ["-c", "echo \(value) > \(queue)/\(file)"])
        }
    }

    /// Several loads at once, then what filesystems do besides.
    func work(round: Int) throws {
        var jobs: [String] = ["[global]", "thread", "overwrite=0", "randseed=\(generator.next())"]
        for index in 0..<3 {
            let engine = pick(["psync", "sync", "libaio", "io_uring", "posixaio", "mmap"])
            let isRaw = index == 2
            let isDirect = engine == "mmap" ? "0" : pick(["0", "1"])
            let size = pick(["512", "1k", "4k", "16k", "128k", "1m", "2m"])
            jobs += [
                "[job\(index)]", "ioengine=\(engine)", "direct=\(isDirect)",
                "bs=\(engine == "mmap" ? "4k" : size)",
                "rw=\(pick(["randwrite", "write"] + (isRaw ? ["randtrim"] : [])))",
                "iodepth=\(pick(["1", "4", "16"]))", "size=\(isRaw ? 16 : 6)m",
                "io_size=\(pick([1, 2, 4]))m", "fsync=\(pick([0, 8]))",
                "filename=\(isRaw ? raw : "\(mount)/load\(index)")",
            ]
        }
        let file = disk.directory.path("job")
        try Data(jobs.joined(separator: "\n").utf8).write(to: URL(fileURLWithPath: file))
        // A combination that an engine refuses has written less.
        _ = try Command.run("fio", ["--output=/dev/null", file], deadline: 120)
        let actions = [
            "fstrim \(mount)",
            "dd if=/dev/urandom of=\(mount)/odd\(round % 5) bs=700 count=9 status=none",
            "rm -f \(mount)/odd\((round + 2) % 5)",
            "fallocate -p -o 65536 -l 200000 \(mount)/load0",
            "fallocate -z -o 4096 -l 100000 \(mount)/load1", "fallocate -l 1M \(mount)/room",
            "blkdiscard -f -o \(4096 * Int(generator.next() % 1000)) -l 262144 \(raw)",
            "blkdiscard -f -z -o \(4096 * Int(generator.next() % 1000)) -l 131072 \(raw)",
            "dd if=/dev/urandom of=\(raw) bs=512 count=3 seek=\(generator.next() % 9999) "
                + "conv=notrunc status=none",
        ]
        for _ in 0..<4 { _ = try Command.run("sh", ["-c", pick(actions)]) }
    }
}

@Suite(
    .serialized, .enabled(if: LiveSupport.reason == nil, LiveSupport.comment),
    .enabled(if: Command.exists("fio") && Command.exists("sfdisk"), "fio or sfdisk is missing"))
struct `What a live device reports` {
    @Test func `lacks no block that differs between two frozen images`() throws {
        let rounds = scaled(300, "rounds of random load")
        let generator = SeededGenerator.announced("random load of a live device")
        let seed = generator.seed
        let loaded = try LoadedDisk(generator)
        let harness = try LiveHarness()
        try harness.object("device", "attach", "d", loaded.disk.path, "--live")
        var (before, _) = try loaded.frozen {
            try harness.object("checkpoint", "create", "r0", "--device", "d")
        }
        var (changedCount, reportedCount) = (0, 0)
        for round in 1...rounds {
            try loaded.retune()
            try loaded.work(round: round)
            let (image, reported) = try loaded.frozen {
                let reported = try harness.changedBlocks("d", since: "r\(round - 1)")
                try harness.object("checkpoint", "create", "r\(round)", "--device", "d")
                return reported
            }
            let changed = differingBlocks(before, image)
            let missing = changed.subtracting(reported)
            #expect(missing.isEmpty, "round \(round) of seed \(seed): \(missing.sorted())")
            #expect(!changed.isEmpty, "round \(round) of seed \(seed) changed nothing")
            changedCount += changed.count
            reportedCount += reported.count
            before = image
        }
        print("\(rounds) rounds: \(changedCount) blocks changed, \(reportedCount) reported")
        #expect(try harness.history("d").state == "new")
        #expect(try harness.history("d").reason.contains("first time"))
    }
}

/// Blocks of 4 KiB that are not the same in both.
func differingBlocks(_ left: Data, _ right: Data) -> Set<Int> {
    var blocks: Set<Int> = []
    left.withUnsafeBytes { left in
        right.withUnsafeBytes { right in
            for block in 0..<left.count / 4096
            where memcmp(left.baseAddress! + block * 4096, right.baseAddress! + block * 4096, 4096)
                != 0
            {
                blocks.insert(block)
            }
        }
    }
    return blocks
}
