import Foundation
import Glibc
import TestSupport
import Testing

/// Databases on block devices.
@Suite(.needsBlockDevices)
struct `Databases on block devices` {
    @Test(.enabled(if: Database.programs != nil, "PostgreSQL is not installed"))
    func `a database does not notice that the service is stopped or killed`() throws {
        var generator = SeededGenerator.announced("restarts under a database")
        let rounds = isSoak ? 20 : 2
        print("restarts under a database: \(rounds) of 20 each; STILLPOINT_SOAK=1 runs all")
        let origin = try TestOrigin(.sparseFile, byteCount: 1024 * mebibyte)
        let harness = try BlockHarness(attaching: ["disk": origin.path])
        let block = try harness.attachBlock("disk")
        try Filesystem.ext4.make(on: block)
        let mount = try Mount(block)
        try Self.letOthersIn(mount)
        let data = mount.path + "/data"
        try Database.make(in: data)
        let database = try Database(on: data)
        try database.client("pgbench", "--initialize", "--quiet", "--scale", "2", "postgres")
        let seconds = rounds * 4 + 2
        let bench = Background {
            try database.client(
                "pgbench", "--client", "4", "--jobs", "2", "--time", "\(seconds)", "postgres")
        }
        for round in 0..<2 * rounds {
            // The moment is what the test varies; nothing waits for it.
            usleep(useconds_t(Int.random(in: 200_000...1_200_000, using: &generator)))
            if round % 2 == 0 {
                #expect(try harness.service.stop() == .exited(0))
            } else {
                try harness.service.process.killAndWait()
            }
            try harness.service.restart()
        }
        let report = try bench.value(within: Double(seconds) + 300)
        #expect(report.contains("number of failed transactions: 0 "), "\(report)")
        try database.client("psql", "-qc", "CREATE EXTENSION amcheck", "postgres")
        try database.client("pg_amcheck", "--all")
        try database.stop()
        try mount.unmount()
        try Filesystem.ext4.check(block)
    }

    @Test(.enabled(if: Database.programs != nil, "PostgreSQL is not installed"))
    func `every image of a busy database recovers with all that was committed before its cut`()
        throws
    {
        let rounds = isSoak ? 20 : 2
        print("images of a database: \(rounds) of 20; STILLPOINT_SOAK=1 runs all")
        let origin = try TestOrigin(.sparseFile, byteCount: 1024 * mebibyte)
        let harness = try BlockHarness(attaching: ["disk": origin.path])
        let block = try harness.attachBlock("disk")
        try Filesystem.ext4.make(on: block)
        let mount = try Mount(block)
        try Self.letOthersIn(mount)
        let data = mount.path + "/data"
        try Database.make(in: data)
        let database = try Database(on: data)
        try database.client("psql", "-q", "-c", "CREATE EXTENSION amcheck", "postgres")
        try database.client("psql", "-q", "-c", "CREATE TABLE seen (n int PRIMARY KEY)", "postgres")
        try database.client("pgbench", "-q", "-i", "-s", "2", "postgres")
        let witness = try Witness(database)
        let witnessing = Background { try witness.run() }
        let bench = Background {
            try database.client("pgbench", "-c", "4", "-T", "\(rounds * 30)", "postgres")
        }
        for round in 0..<rounds { try Self.checkImage(round, harness, witness) }
        witness.end()
        try witnessing.value()
        // It may still run: its end is not what is tested.
        try database.client("psql", "-qAt", "-c", Self.endOthers, "postgres")
        _ = try? bench.value()
        #expect(witness.lastCommitted > 0)
        try database.stop()
        try mount.unmount()
        try Filesystem.ext4.check(block)
    }

    @Test(.enabled(if: Database.programs != nil, "PostgreSQL is not installed"))
    func `a database that is restored from a kept copy starts, and is as it was that night`() throws
    {
        let nights = isSoak ? 14 : 4
        let chosen = isSoak ? 9 : 2
        print("nights of a database: \(nights) of 14; STILLPOINT_SOAK=1 runs all")
        let origin = try TestOrigin(.sparseFile, byteCount: 1024 * mebibyte)
        let backup = try TemporaryDirectory()
        let harness = try BlockHarness(attaching: ["disk": origin.path])
        var committed: [Int] = []
        do {
            let mount = try Mount(try Self.databaseDisk(harness))
            try Self.letOthersIn(mount)
            let data = mount.path + "/data"
            try Database.make(in: data)
            let database = try Database(on: data)
            try database.client(
                "psql", "-q", "-c", "CREATE TABLE seen (n int PRIMARY KEY)", "postgres")
            try database.client("pgbench", "-q", "-i", "-s", "1", "postgres")
            let witness = try Witness(database)
            let witnessing = Background { try witness.run() }
            for night in 0..<nights {
                try witness.waitForMore(20)
                committed.append(witness.lastCommitted)
                var arguments = ["copy", "disk", backup.path("disk.img"), "--since", "auto"]
                if night > 0 { arguments += ["--keep", "n\(night - 1)"] }
                try harness.command(arguments + ["--checkpoint", "n\(night)"])
            }
            witness.end()
            try witnessing.value()
            committed.append(witness.lastCommitted)
            try database.stop()
            try mount.unmount()
        }
        try harness.command("block", "detach", "disk")
        try harness.command("restore", backup.path("disk.img@n\(chosen)"), "disk", "--yes")
        let block = try harness.attachBlock("disk")
        let mount = try Mount(block)
        try Command.check("chmod", ["0755", (mount.path as NSString).deletingLastPathComponent])
        // That of the server which ran that night.
        try FileManager.default.removeItem(atPath: mount.path + "/data/postmaster.pid")
        let database = try Database(on: mount.path + "/data")
        let found = Int(try database.value("SELECT count(*) FROM seen")) ?? -1
        #expect(found >= committed[chosen] && found <= committed[chosen + 1], "\(found)")
        #expect(try database.value("SELECT max(n) - count(*) FROM seen") == "0")
        try database.client("psql", "-q", "-c", "CREATE EXTENSION amcheck", "postgres")
        try database.client("pg_amcheck", "--heapallindexed", "postgres")
        try database.stop()
        try mount.unmount()
        try Filesystem.ext4.check(block)
    }

    private static func databaseDisk(_ harness: BlockHarness) throws -> String {
        let block = try harness.attachBlock("disk")
        try Filesystem.ext4.make(on: block)
        return block
    }

    private static let endOthers = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE pid <> pg_backend_pid() AND application_name = 'pgbench'
        """

    /// The user postgres must reach what is mounted below a directory of root's.
    private static func letOthersIn(_ mount: Mount) throws {
        try Database.letIn(to: mount.path)
    }

    private static func checkImage(
        _ round: Int, _ harness: BlockHarness, _ witness: Witness
    ) throws {
        let name = "s\(round)"
        try witness.waitForMore(20)
        let before = witness.lastCommitted
        try harness.command(
            "snapshot", "create", "--device", "disk", "--name", name, "--storage", "memory:512M")
        let image = try harness.attachBlock("disk@" + name)
        let mount = try Mount(image)
        try Command.check("chmod", ["0755", (mount.path as NSString).deletingLastPathComponent])
        // It names the server of the original, which runs.
        try FileManager.default.removeItem(atPath: mount.path + "/data/postmaster.pid")
        let database = try Database(on: mount.path + "/data")
        let found = Int(try database.value("SELECT count(*) FROM seen")) ?? -1
        let gaps = try database.value("SELECT max(n) - count(*) FROM seen")
        print("image \(round): \(found) of at least \(before) committed numbers")
        #expect(found >= before, "committed transactions are missing")
        #expect(gaps == "0")
        try database.client("pg_amcheck", "--heapallindexed", "postgres")
        try database.client("pg_dumpall", "--no-sync", "--file", "/dev/null")
        try database.stop()
        try mount.unmount()
        try harness.command("block", "detach", image)
        try harness.command("snapshot", "destroy", name)
    }
}
