import Foundation
import Glibc
import TestSupport
import Testing

let mebibyte = 1 << 20

/// Why the tests of block devices cannot run here; nil when they can.
let blockDevicesUnusable: String? = {
    guard TestService.isBuilt else { return "no stillpoint binary at \(TestService.binary)" }
    guard isRoot else { return "block devices need root" }
    guard canUseFUSE else { return "block devices need /dev/fuse" }
    guard canUseLoopDevices else { return "block devices need /dev/loop-control" }
    return nil
}()

extension Trait where Self == ConditionTrait {
    /// Skips with the reason where block devices cannot be used.
    static var needsBlockDevices: Self {
        .enabled(
            if: blockDevicesUnusable == nil,
            Comment(rawValue: blockDevicesUnusable ?? "block devices can be used"))
    }
}

/// Seconds of a load: the full time in `make soak`; says which.
func loadSeconds(_ what: String, soak: Int, otherwise: Int) -> Int {
    print(
        isSoak
            ? "\(what): full length, \(soak) s"
            : "\(what): \(otherwise) s of \(soak); STILLPOINT_SOAK=1 runs all")
    return isSoak ? soak : otherwise
}

/// A service of one test with block devices.
final class BlockHarness: @unchecked Sendable {
    // Driven by one thread at a time.
    let service: TestService

    init(
        attaching origins: [String: String] = [:], loops: Int? = nil,
        extraArguments: [String] = [], environment: [String: String] = [:]
    ) throws {
        service = try TestService(
            attaching: origins, loops: loops, extraArguments: extraArguments,
            environment: environment)
    }

    /// Runs a client command that must succeed and returns its output without the last newline.
    @discardableResult
    func command(_ arguments: String...) throws -> String { try command(arguments) }

    /// Likewise.
    @discardableResult
    func command(_ arguments: [String]) throws -> String {
        try Command.check(
            TestService.binary, arguments + ["--control", service.controlPath], deadline: 120
        ).trimmingCharacters(in: .newlines)
    }

    /// Runs a client command and returns how it ended.
    func outcome(_ arguments: String...) throws -> Command.Outcome {
        try Command.run(
            TestService.binary, arguments + ["--control", service.controlPath], deadline: 120)
    }

    /// Attaches a block device and returns the path of its loop device.
    func attachBlock(_ target: String, _ flags: String...) throws -> String {
        let text = try command(["block", "attach", target, "--json"] + flags)
        return try BlockHarness.node(in: text)
    }

    /// The loop device in what `block attach --json` prints.
    static func node(in json: String) throws -> String {
        let object = try JSONSerialization.jsonObject(with: Data(json.utf8)) as? [String: Any]
        guard let node = object?["node"] as? String else { throw TestFailure("no node: \(json)") }
        return node
    }

    /// Kills the service and its guardian at once: nobody is left to whom users could wait.
    func killWithGuardian() throws {
        let guardians = try service.guardians()
        try service.process.suspend()
        for guardian in guardians { kill(guardian, SIGKILL) }
        try service.process.killAndWait()
    }

    /// Ends the service and what outlives it, as a restart of the machine does: processes, loop
    /// devices, mounts, names and the runtime directory are gone, the state is kept.
    func loseMachine() throws {
        try killWithGuardian()
        try service.endWhatOutlivesIt()
        for name in ["run", "dev"] where access(service.directory.path(name), F_OK) == 0 {
            try FileManager.default.removeItem(atPath: service.directory.path(name))
        }
    }

    /// The directory in which it mounts.
    var mountDirectory: String { service.directory.path("run/block") }

    /// Loop devices over its mounts, as the kernel tells.
    func loopDevices() throws -> [String] {
        let folder = "/sys/block"
        return try FileManager.default.contentsOfDirectory(atPath: folder).filter { name in
            guard name.hasPrefix("loop") else { return false }
            // One that is not set up has no backing file.
            let text = try? String(
                contentsOfFile: "\(folder)/\(name)/loop/backing_file", encoding: .utf8)
            return text?.hasPrefix(mountDirectory + "/") ?? false
        }.map { "/dev/" + $0 }.sorted()
    }

    /// Its mounts, as the kernel tells.
    func mounts() throws -> [String] {
        try kernelText("/proc/self/mountinfo")
            .split(separator: "\n").map { String($0.split(separator: " ")[4]) }
            .filter { $0.hasPrefix(mountDirectory + "/") }
    }
}

/// A filesystem, with the commands that make and check it.
enum Filesystem: String, CaseIterable, Sendable, CustomStringConvertible {
    case ext4
    case xfs = "XFS"
    case btrfs

    var description: String { rawValue }

    /// Bytes of a disk that every one of them fits on.
    static let byteCount = 512 * mebibyte

    func make(on path: String) throws {
        switch self {
        case .ext4: try Command.check("mkfs.ext4", ["-q", "-F", path])
        case .xfs: try Command.check("mkfs.xfs", ["-q", "-f", path])
        case .btrfs: try Command.check("mkfs.btrfs", ["-q", "-f", path])
        }
    }

    /// Checks an unmounted one; throws what the checker said when it is not clean.
    func check(_ path: String) throws {
        switch self {
        case .ext4: try Command.check("fsck.ext4", ["-f", "-n", path])
        case .xfs: try Command.check("xfs_repair", ["-n", path])
        case .btrfs: try Command.check("btrfs", ["check", "--readonly", path])
        }
    }
}

/// A mounted filesystem, unmounted when the object goes.
final class Mount: @unchecked Sendable {
    // Driven by one thread at a time.
    let path: String
    private let device: String
    private let directory: TemporaryDirectory
    private let ticket: Int
    private var isMounted = true

    init(_ device: String, options: String? = nil) throws {
        self.device = device
        directory = try TemporaryDirectory()
        path = directory.path("mount")
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: false)
        ticket = ExitCleanup.shared.register("umount --lazy \(path)")
        do {
            try Command.check(
                "mount", (options.map { ["-o", $0] } ?? []) + [device, path], deadline: 120)
        } catch {
            isMounted = false
            ExitCleanup.shared.withdraw(ticket)
            throw error
        }
    }

    deinit {
        guard isMounted else { return }
        umount2(path, Int32(MNT_DETACH))
        ExitCleanup.shared.withdraw(ticket)
    }

    /// Unmounts, and waits until the device is unused; the deadline only detects hangs. A child of
    /// another test, between fork and exec, may hold what was open here for a moment: busy is tried
    /// again.
    func unmount(deadline: Double = 120) throws {
        let end = monotonicSeconds() + deadline
        var outcome = try Command.run("umount", [path], deadline: deadline)
        while outcome.diagnostics.contains("busy"), monotonicSeconds() < end {
            outcome = try Command.run("umount", [path], deadline: deadline)
        }
        guard outcome.status == 0 else {
            throw TestFailure("umount \(path) ended with \(outcome.status): \(outcome.diagnostics)")
        }
        isMounted = false
        ExitCleanup.shared.withdraw(ticket)
        try waitUntilUnused(device, deadline: max(0, end - monotonicSeconds()))
    }
}

/// Bytes that are allocated to a file.
func allocatedByteCount(_ path: String) throws -> Int {
    var status = stat()
    guard stat(path, &status) == 0 else { throw TestFailure("stat \(path): \(errno)") }
    return Int(status.st_blocks) * 512
}
