import Foundation
import Glibc
import TestSupport
import Testing

/// `serve --user`.
@Suite(
    .serialized,
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: isRoot, "needs root to give up"),
    .enabled(if: getpwnam("nobody") != nil, "needs a user nobody"))
struct `A service that gives up root` {
    private let directory: TemporaryDirectory
    private let nobody = getpwnam("nobody")!.pointee

    init() throws {
        directory = try TemporaryDirectory()
        // Its own directories are below one that others may enter.
        chmod(directory.root, 0o755)
        try makeSparseFile(directory.path("disk.img"), byteCount: 8 << 20)
        try makeSparseFile(directory.path("other.img"), byteCount: 1 << 20)
    }

    private var control: String { directory.path("run/control.sock") }

    private func arguments(user: String?) -> [String] {
        [
            "serve", "--control", control, "--state-dir", directory.path("state"),
            "--nbd", "unix:" + directory.path("run/nbd.sock"),
        ] + (user.map { ["--user", $0] } ?? [])
    }

    private func start(_ more: [String] = [], user: String? = "nobody") throws -> ChildProcess {
        let process = try ChildProcess(
            TestService.binary, arguments(user: user) + more, diagnostics: directory.path("log"))
        guard try process.readLine(deadline: 120) == "ready" else {
            throw TestFailure("not ready: \(log)")
        }
        return process
    }

    private var log: String {
        (try? String(contentsOfFile: directory.path("log"), encoding: .utf8)) ?? ""
    }

    private func client(_ arguments: String...) throws -> Command.Outcome {
        try Command.run(TestService.binary, arguments + ["--control", control])
    }

    /// Root may lift limits, which containers often forbid.
    private var canLiftLimits: Bool {
        get throws {
            let status = try String(contentsOfFile: "/proc/self/status", encoding: .utf8)
            let line = status.split(separator: "\n").first { $0.hasPrefix("CapEff:") }
            let mask = line.flatMap { UInt64($0.dropFirst(8), radix: 16) } ?? 0
            return mask >> 24 & 1 == 1
        }
    }

    private func threadStatuses(_ process: ChildProcess) throws -> [String] {
        let tasks = "/proc/\(process.processID)/task"
        return try FileManager.default.contentsOfDirectory(atPath: tasks).map {
            try String(contentsOfFile: "\(tasks)/\($0)/status", encoding: .utf8)
        }
    }

    @Test func `has another user, group and no capability in every thread`() throws {
        let process = try start(["--attach", "disk=\(directory.path("disk.img"))"])
        let statuses = try threadStatuses(process)
        #expect(statuses.count > 3)
        let user = nobody.pw_uid
        let group = nobody.pw_gid
        for status in statuses {
            #expect(status.contains("Uid:\t\(user)\t\(user)\t\(user)\t\(user)\n"))
            #expect(status.contains("Gid:\t\(group)\t\(group)\t\(group)\t\(group)\n"))
            #expect(status.contains("CapPrm:\t0000000000000000\n"))
            #expect(status.contains("CapEff:\t0000000000000000\n"))
        }
        process.send(signal: SIGTERM)
        #expect(try process.wait(deadline: 60) == .exited(0), "\(log)")
    }

    @Test func `serves what root opened, takes snapshots and remembers`() throws {
        let process = try start(["--attach", "disk=\(directory.path("disk.img"))"])
        let address = NBDAddress.unix(path: directory.path("run/nbd.sock"))
        let nbd = try NBDClient(address, export: "disk", headers: .structured)
        let old = [UInt8](repeating: 1, count: 65536)
        try nbd.write(0, old)
        try nbd.succeed(NBDRequest(.flush))
        let taken = try client("snapshot", "create", "--device", "disk", "--name", "s0")
        #expect(taken.status == 0, "\(taken.diagnostics)")
        let locked = try client(
            "snapshot", "create", "--device", "disk", "--name", "s1", "--storage", "memory:64M")
        if try canLiftLimits {
            #expect(locked.status == 0, "\(locked.diagnostics)")
        } else {
            print("memory storage of --user: this root has no CAP_SYS_RESOURCE to lift the limit")
            #expect(locked.diagnostics.contains("raise the limit of locked memory"))
        }
        try nbd.write(0, [UInt8](repeating: 2, count: 65536))
        let image = try NBDClient(address, export: "disk@s0", headers: .structured)
        #expect(try image.read(0, 65536) == old)
        try makeSparseFile(directory.path("state/own.img"), byteCount: 1 << 20)
        chown(directory.path("state/own.img"), nobody.pw_uid, nobody.pw_gid)
        let attached = try client("device", "attach", "own", directory.path("state/own.img"))
        #expect(attached.status == 0, "\(attached.diagnostics)")
        process.send(signal: SIGTERM)
        #expect(try process.wait(deadline: 60) == .exited(0), "\(log)")
        #expect(access(control, F_OK) != 0 && access(directory.path("run/nbd.sock"), F_OK) != 0)
        // What was remembered as another user is attached again, as either.
        for user in ["nobody", nil] {
            let again = try start(user: user)
            let list = try client("device", "list", "--json").output
            #expect(list.contains("\"own\"") && list.contains("\"disk\""), "\(list)")
            again.send(signal: SIGTERM)
            #expect(try again.wait(deadline: 60) == .exited(0), "\(log)")
        }
    }

    @Test func `says that what root alone may do is not permitted in this mode`() throws {
        let process = try start()
        let refused = try client("device", "attach", "other", directory.path("other.img"))
        #expect(refused.status == 1)
        #expect(
            refused.diagnostics.contains("not permitted in this mode"), "\(refused.diagnostics)")
        #expect(refused.diagnostics.contains("nobody"))
        process.send(signal: SIGTERM)
        #expect(try process.wait(deadline: 60) == .exited(0))
    }

    @Test func `gives away nothing that has another name elsewhere`() throws {
        try FileManager.default.createDirectory(
            atPath: directory.path("state"), withIntermediateDirectories: false)
        link(directory.path("other.img"), directory.path("state/linked"))
        symlink(directory.path("disk.img"), directory.path("state/symbolic"))
        let process = try start()
        var facts = stat()
        #expect(stat(directory.path("other.img"), &facts) == 0 && facts.st_uid == 0)
        #expect(stat(directory.path("disk.img"), &facts) == 0 && facts.st_uid == 0)
        #expect(stat(directory.path("state"), &facts) == 0 && facts.st_uid == nobody.pw_uid)
        #expect(stat(control, &facts) == 0 && facts.st_uid == nobody.pw_uid)
        process.send(signal: SIGTERM)
        #expect(try process.wait(deadline: 60) == .exited(0))
    }

    @Test func `refuses users that are none, and directories of others`() throws {
        for (user, reason) in [("root", "is root"), ("no-such-user", "no such user")] {
            let outcome = try TestService.refusal(arguments: arguments(user: user))
            #expect(outcome.status == 2)
            #expect(outcome.diagnostics.contains(reason))
        }
        try FileManager.default.createDirectory(
            atPath: directory.path("state"), withIntermediateDirectories: false)
        chown(directory.path("state"), 12_345, 12_345)
        let outcome = try TestService.refusal(arguments: arguments(user: "nobody"))
        #expect(outcome.status == 2)
        #expect(outcome.diagnostics.contains("belongs to neither root nor nobody"))
    }
}
