import Foundation
import Glibc
import TestSupport
import Testing

/// A service of one test, and the commands that are given to it.
final class LiveHarness: Sendable {
    let service: TestService

    init(wrapper: [String] = [], environment: [String: String] = [:]) throws {
        service = try TestService(
            attaching: [:], loops: 2, wrapper: wrapper, environment: environment)
    }

    /// Runs a client command.
    func command(_ arguments: [String]) throws -> Command.Outcome {
        try Command.run(
            TestService.binary, arguments + ["--control", service.controlPath], deadline: 300)
    }

    /// Runs a client command that must succeed.
    func done(_ arguments: String...) throws {
        try Command.check(
            TestService.binary, arguments + ["--control", service.controlPath], deadline: 300)
    }

    /// Runs a client command with `--json` and returns its one object.
    @discardableResult
    func object(_ arguments: String...) throws -> [String: Any] {
        let outcome = try command(arguments + ["--json"])
        guard outcome.status == 0 else {
            throw TestFailure("\(arguments) ended with \(outcome.status): \(outcome.diagnostics)")
        }
        let document = try JSONSerialization.jsonObject(with: Data(outcome.output.utf8))
        guard let object = document as? [String: Any] else {
            throw TestFailure("\(arguments) printed no object: \(outcome.output)")
        }
        return object
    }

    /// The status and message of a command that must fail.
    func failure(_ arguments: String...) throws -> (status: Int32, message: String) {
        let outcome = try command(arguments)
        #expect(outcome.status != 0 && outcome.output == "")
        return (outcome.status, outcome.diagnostics)
    }

    /// The blocks of 4 KiB that changed.
    func changedBlocks(_ device: String, since: String) throws -> Set<Int> {
        let ranges = try object("changes", device, "--since", since)["ranges"] as? [[String: Int]]
        var blocks: Set<Int> = []
        for range in ranges ?? [] {
            let (offset, length) = (range["offset"] ?? 0, range["length"] ?? 0)
            blocks.formUnion(offset / 4096..<(offset + length + 4095) / 4096)
        }
        return blocks
    }

    func history(_ device: String) throws -> (state: String, reason: String, generation: String) {
        let shown = try object("device", "show", device)
        return (
            shown["history"] as? String ?? "", shown["history_reason"] as? String ?? "",
            shown["generation"] as? String ?? ""
        )
    }

    /// Kills the service and waits for its end.
    func kill() throws {
        service.process.send(signal: SIGKILL)
        _ = try service.process.wait(deadline: 60)
    }

    /// The directory of this service's pins.
    func pins() throws -> String {
        let own = service.directory.path("run/bpf")
        if FileManager.default.fileExists(atPath: own + "/devices") { return own }
        let common = "/sys/fs/bpf"
        for name in try FileManager.default.contentsOfDirectory(atPath: common)
        where name.hasPrefix("stillpoint-") {
            if FileManager.default.fileExists(atPath: "\(common)/\(name)/devices") {
                return "\(common)/\(name)"
            }
        }
        throw TestFailure("no pins were found")
    }
}

/// A loop device over a sparse file on tmpfs.
final class LiveDisk: Sendable {
    let directory: TemporaryDirectory
    let file: String
    let path: String
    private let loop: LoopDevice

    init(byteCount: Int, withPartitions table: String? = nil) throws {
        directory = try TemporaryDirectory(inMemory: true)
        file = directory.path("disk.img")
        try makeSparseFile(file, byteCount: byteCount)
        if let table {
            try Command.check("sh", ["-c", "printf '\(table)' | sfdisk --quiet \(file)"])
        }
        loop = try LoopDevice(over: file, sectorSize: 512, withPartitions: table != nil)
        path = loop.path
    }

    /// Writes random bytes past the page cache.
    func write(to device: String? = nil, block: Int, count: Int = 1) throws {
        try Command.check(
            "dd",
            [
                "if=/dev/urandom", "of=\(device ?? path)", "bs=4096", "count=\(count)",
                "seek=\(block)", "oflag=direct", "conv=notrunc", "status=none",
            ])
    }

    var sequence: String {
        get throws {
            let name = (path as NSString).lastPathComponent
            return try String(contentsOfFile: "/sys/block/\(name)/diskseq", encoding: .utf8)
                .trimmingCharacters(in: .whitespacesAndNewlines)
        }
    }
}

/// Whether this kernel lets programs mark writes, and why not.
enum LiveSupport {
    static let reason: String? = {
        guard canUseLoopDevices, TestService.isBuilt else {
            return "no loop devices, or no program at \(TestService.binary)"
        }
        guard FileManager.default.fileExists(atPath: "/sys/kernel/btf/vmlinux") else {
            return "the kernel has no BTF"
        }
        do {
            let harness = try LiveHarness()
            let disk = try LiveDisk(byteCount: 1 << 20)
            let outcome = try harness.command(["device", "attach", "probe", disk.path, "--live"])
            return outcome.status == 0 ? nil : outcome.diagnostics
        } catch { return "\(error)" }
    }()

    static let comment: Comment = "live devices cannot be tried here: \(reason ?? "")"
}
