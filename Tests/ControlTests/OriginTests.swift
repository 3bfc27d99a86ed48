import Foundation
import Glibc
import TestSupport
import Testing

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `The origin of a device` {
    private func events(_ harness: ControlHarness, _ type: String) throws -> [[String: Any]] {
        let outcome = try harness.command("events", "--json")
        guard
            let all = try JSONSerialization.jsonObject(with: Data(outcome.output.utf8))
                as? [[String: Any]]
        else { throw TestFailure("events is no list: \(outcome.output)") }
        return all.filter { $0["type"] as? String == type }
    }

    private func state(_ harness: ControlHarness) throws -> String? {
        try harness.object("device", "show", "a")["origin_state"] as? String
    }

    @Test func `is told when its file is replaced or deleted under its name`() throws {
        let harness = try ControlHarness()
        let path = try harness.attach("a")
        #expect(try state(harness) == "present")
        #expect(try events(harness, "origin-replaced").isEmpty)

        #expect(rename(try harness.image("other.img"), path + ".new") == 0)
        #expect(rename(path, path + ".old") == 0)
        #expect(try state(harness) == "deleted")
        #expect(rename(path + ".new", path) == 0)
        #expect(try state(harness) == "replaced")
        for command in [["device", "show", "a"], ["status"]] {
            let outcome = try Command.run(
                TestService.binary, command + ["--control", harness.service.controlPath])
            #expect(outcome.output.contains("was replaced"), "\(command)")
        }
        // What was attached goes on.
        let client = try NBDClient(.unix(path: harness.service.socketPath), export: "a")
        try client.write(0, [UInt8](repeating: 7, count: 4096))

        #expect(rename(path + ".old", path) == 0)
        #expect(try state(harness) == "present")
        let messages = try events(harness, "origin-replaced").map { $0["message"] as? String ?? "" }
        #expect(messages.count == 2)
        #expect(messages.first?.contains("deleted or renamed") == true)
        #expect(messages.last?.contains("was replaced") == true)
    }

    @Test(.enabled(if: canUseFUSE, "needs /dev/fuse"), arguments: [ENXIO, ENODEV])
    func `that is gone fails its requests, corrupts its snapshots and is told, others go on`(
        errno: Int32
    ) throws {
        let filesystem = try PowerCutFilesystem(byteCount: 4 << 20)
        let harness = try ControlHarness(attaching: ["a": filesystem.diskPath])
        try harness.attach("b")
        try harness.done("snapshot", "create", "--device", "a", "--device", "b", "--name", "s")
        try filesystem.fail("read", at: 1, with: errno, lasting: true)
        try filesystem.fail("write", at: 1, with: errno, lasting: true)
        let client = try NBDClient(.unix(path: harness.service.socketPath), export: "a")
        let reply = try client.perform(NBDRequest(.read, length: 4096))
        #expect(reply.error == 5)
        #expect(try state(harness) == "gone")
        let gone = try events(harness, "device-gone")
        #expect(gone.count == 1 && gone.first?["errno"] as? Int == Int(errno))
        #expect(gone.first?["device"] as? String == "a")
        let corrupted = try events(harness, "corrupted")
        #expect(corrupted.map { $0["device"] as? String } == ["a"])
        let snapshot = try harness.object("snapshot", "show", "s")
        #expect(snapshot["state"] as? String == "corrupted")
        let refused = try harness.command("snapshot", "create", "--device", "a")
        #expect(refused.status == 1 && refused.diagnostics.contains("is gone"))
        // The other device of the same snapshot, and its image.
        let other = try NBDClient(.unix(path: harness.service.socketPath), export: "b")
        try other.write(0, [UInt8](repeating: 7, count: 4096))
        let image = try NBDClient(.unix(path: harness.service.socketPath), export: "b@s")
        #expect(try image.read(0, 4096) == [UInt8](repeating: 0, count: 4096))

        // It is back: attached again it is as any other.
        try filesystem.clearFaults()
        try harness.done("device", "detach", "a", "--force")
        try harness.done("device", "attach", "a", filesystem.diskPath)
        #expect(try state(harness) == "present")
    }

    @Test(.enabled(if: canUseFUSE, "needs /dev/fuse"))
    func `that another command names and that does not answer stops no other device`() throws {
        let filesystem = try PowerCutFilesystem(byteCount: 4 << 20)
        let harness = try ControlHarness()
        try harness.attach("b", byteCount: 1 << 30)
        try filesystem.hang()
        defer { filesystem.goOn() }
        // More than there are threads for paths; each waits for one that hangs.
        let waiting = (0..<8).map { index in
            Background {
                try harness.command("device", "attach", "h\(index)", filesystem.diskPath).status
            }
        }
        let client = try NBDClient(
            .unix(path: harness.service.socketPath), export: "b", headers: .structured,
            contexts: ["base:allocation"])
        for region in 0..<UInt64(32) {
            try client.write(region * 32 << 20, [UInt8](repeating: 7, count: 4096))
        }
        #expect(try client.blockStatus(0, 1 << 20).isEmpty == false)
        try harness.done("checkpoint", "create", "c", "--device", "b")
        try harness.done("snapshot", "create", "--device", "b", "--name", "s")
        filesystem.goOn()
        for command in waiting { _ = try command.value() }
    }

    @Test(.enabled(if: canFreeze, "needs filesystems that can be frozen"))
    func `that does not answer keeps no flush of another device waiting`() throws {
        let disk = try MountedDisk()
        let image = disk.path("a.img")
        try Data(repeating: 1, count: 16 << 20).write(to: URL(fileURLWithPath: image))
        let harness = try ControlHarness()
        try harness.done("device", "attach", "a", image)
        // There are two loops: one of these shares that of `a`.
        for name in ["b", "c"] { try harness.attach(name) }
        let waiting = try NBDClient(.unix(path: harness.service.socketPath), export: "a")
        try Command.check("fsfreeze", ["--freeze", disk.path])
        // More than the kernel has workers for a loop.
        let count = 4 * ProcessInfo.processInfo.processorCount + 8
        for number in 0..<count {
            try waiting.send(
                NBDRequest(
                    .write, cookie: UInt64(number), offset: UInt64(number * 4096), length: 4096,
                    payload: [UInt8](repeating: 2, count: 4096)))
        }
        for name in ["b", "c"] {
            let client = try NBDClient(.unix(path: harness.service.socketPath), export: name)
            for _ in 0..<3 {
                try client.write(0, [UInt8](repeating: 7, count: 4096))
                #expect(try client.perform(NBDRequest(.flush)).error == nil)
            }
        }
        try Command.check("fsfreeze", ["--unfreeze", disk.path])
        for _ in 0..<count {
            // The error of a simple reply lies behind its magic.
            #expect(try Array(waiting.receive(16)[4..<8]) == [0, 0, 0, 0])
        }
    }
}
