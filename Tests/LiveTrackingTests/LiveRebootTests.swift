import Foundation
import Glibc
import TestSupport
import Testing

/// A disk that can leave and come back as over a restart of the machine.
private struct ReturningDisk {
    let directory: TemporaryDirectory
    let file: String
    let device: NumberedLoopDevice
    var path: String { device.path }

    init(byteCount: Int) throws {
        directory = try TemporaryDirectory(inMemory: true)
        file = directory.path("disk.img")
        try makeSparseFile(file, byteCount: byteCount)
        device = try NumberedLoopDevice(over: file)
    }

    func write(block: Int) throws {
        try Command.check(
            "dd",
            [
                "if=/dev/urandom", "of=\(path)", "bs=4096", "count=1", "seek=\(block)",
                "oflag=direct", "conv=notrunc", "status=none",
            ])
    }
}

@Suite(.serialized, .enabled(if: LiveSupport.reason == nil, LiveSupport.comment))
struct `A live device over a restart of the machine` {
    private static func environment(_ boot: String, _ state: String) -> [String: String] {
        ["STILLPOINT_BOOT_ID": boot, "STILLPOINT_MACHINE_STATE": state]
    }

    /// What happens besides: while the service stops, before the disk leaves, after it came back.
    private struct Disturbance {
        var state = "stopping"
        var next = "initializing"
        var promise = ["--exclusive"]
        var claims = false
        var before: (ReturningDisk) throws -> Void = { _ in }
        var after: (ReturningDisk) throws -> Void = { _ in }
    }

    /// One change, then a restart of the machine.
    private static func restart(
        _ disturbance: Disturbance = Disturbance()
    ) throws -> (disk: ReturningDisk, harness: LiveHarness) {
        let disk = try ReturningDisk(byteCount: 64 << 20)
        let harness = try LiveHarness(environment: environment("first", disturbance.state))
        let attach = ["device", "attach", "d", disk.path, "--live"] + disturbance.promise
        #expect(try harness.command(attach).status == 0)
        try harness.object("checkpoint", "create", "one", "--device", "d")
        try disk.write(block: 1)
        let pins = try harness.pins()
        let claim = disturbance.claims ? open(disk.path, O_RDONLY | O_EXCL | O_CLOEXEC) : -1
        #expect(try harness.service.stop() == .exited(0))
        if claim >= 0 { close(claim) }
        try disturbance.before(disk)
        for name in try FileManager.default.contentsOfDirectory(atPath: pins)
        where !name.contains(".") {
            #expect(unlink("\(pins)/\(name)") == 0)
        }
        try disk.device.leave()
        try disk.device.come(over: disk.file)
        try disturbance.after(disk)
        try harness.service.restart(environment: environment("second", disturbance.next))
        return (disk, harness)
    }

    private static func expectNew(
        _ disturbance: Disturbance, _ reason: String
    ) throws {
        let (disk, harness) = try restart(disturbance)
        let history = try harness.history("d")
        #expect(history.state == "new" && history.reason.contains(reason), "\(history.reason)")
        #expect(try harness.failure("changes", "d", "--since", "one").status == 5)
        withExtendedLifetime(disk) {}
    }

    @Test func `goes on with its history when it was at rest on both sides`() throws {
        let (disk, harness) = try Self.restart()
        let history = try harness.history("d")
        #expect(history.state == "continued", "\(history.reason)")
        #expect(try harness.changedBlocks("d", since: "one") == [1])
        try disk.write(block: 5)
        #expect(try harness.changedBlocks("d", since: "one") == [1, 5])
    }

    @Test func `begins anew where nobody promised that it is not written in between`() throws {
        try Self.expectNew(Disturbance(promise: []), "--exclusive")
    }

    @Test func `begins anew when it was in use while the service ended`() throws {
        try Self.expectNew(Disturbance(claims: true), "in use when the service ended")
    }

    @Test func `begins anew when the machine was not going down while the service ended`() throws {
        try Self.expectNew(Disturbance(state: "running"), "not going down")
    }

    @Test func `begins anew when the machine was up before it was attached`() throws {
        try Self.expectNew(Disturbance(next: "running"), "had come up")
    }

    @Test func `begins anew when it was written to before it was attached`() throws {
        try Self.expectNew(
            Disturbance(after: { try $0.write(block: 9) }), "written to before it was attached")
    }

    @Test func `begins anew when its first bytes are others than before`() throws {
        try Self.expectNew(Disturbance(before: { try $0.write(block: 0) }), "changed while")
    }
}
