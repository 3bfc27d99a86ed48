import Foundation
import Glibc
import TestSupport
import Testing

@Suite(
    .serialized, .enabled(if: LiveSupport.reason == nil, LiveSupport.comment),
    .enabled(if: Database.programs != nil, "PostgreSQL is not installed"))
struct `A database on a live device` {
    @Test func `recovers from every increment with all that was committed before its cut`() throws {
        let rounds = isSoak ? 20 : 2
        print("increments of a busy database: \(rounds) of 20; STILLPOINT_SOAK=1 runs all")
        let live = try MountedLive(.ext4, mebibytes: 768)
        let harness = try LiveHarness()
        let copy = harness.service.directory.path("copy.img")
        try Database.letIn(to: live.mount)
        let data = live.mount + "/data"
        try Database.make(in: data)
        let database = try Database(on: data)
        try database.client("psql", "-q", "-c", "CREATE EXTENSION amcheck", "postgres")
        try database.client("psql", "-q", "-c", "CREATE TABLE seen (n int PRIMARY KEY)", "postgres")
        try database.client("pgbench", "-q", "-i", "-s", "2", "postgres")
        try harness.object("device", "attach", "d", live.mount, "--live")
        let witness = try Witness(database)
        let witnessing = Background { try witness.run() }
        let bench = Background {
            try database.client("pgbench", "-c", "4", "-T", "\(rounds * 30)", "postgres")
        }
        for night in 0...rounds {
            try witness.waitForMore(20)
            let before = witness.lastCommitted
            let made = try harness.object(
                "copy", "d", copy, "--since", "auto", "--checkpoint", "night-\(night)")
            #expect(made["full"] as? Bool == (night == 0))
            #expect(made["consistency"] as? String == "filesystem")
            try Self.check(copy, before, night)
        }
        witness.end()
        try witnessing.value()
        // It may still run: its end is not what is tested.
        try database.client("psql", "-qAt", "-c", Self.endOthers, "postgres")
        _ = try? bench.value()
        try database.stop()
    }

    private static let endOthers = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE pid <> pg_backend_pid() AND application_name = 'pgbench'
        """

    /// The database in a copy of the copy starts, is consistent and lacks nothing.
    private static func check(_ copy: String, _ committed: Int, _ night: Int) throws {
        let directory = try TemporaryDirectory(inMemory: true)
        let image = directory.path("check.img")
        try Command.check("cp", ["--sparse=always", copy, image])
        #expect(try Command.run("e2fsck", ["-fn", image], deadline: 300).status == 0)
        let loop = try LoopDevice(over: image, sectorSize: 512)
        let mount = directory.path("mount")
        try FileManager.default.createDirectory(atPath: mount, withIntermediateDirectories: false)
        let ticket = ExitCleanup.shared.register("umount --lazy \(mount)")
        defer {
            umount2(mount, Int32(MNT_DETACH))
            ExitCleanup.shared.withdraw(ticket)
        }
        try Command.check("mount", [loop.path, mount])
        try Database.letIn(to: mount)
        // It names the server of the original, which runs.
        try FileManager.default.removeItem(atPath: mount + "/data/postmaster.pid")
        let database = try Database(on: mount + "/data")
        let found = Int(try database.value("SELECT count(*) FROM seen")) ?? -1
        print("night \(night): \(found) of at least \(committed) committed numbers")
        #expect(found >= committed, "committed transactions are missing")
        #expect(try database.value("SELECT max(n) - count(*) FROM seen") == "0")
        try database.client("pg_amcheck", "--heapallindexed", "postgres")
        try database.stop()
    }
}
