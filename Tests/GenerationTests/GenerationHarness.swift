import CTestSupport
import Foundation
import Glibc
import TestSupport
import Testing

/// A service with one device, whose history a test follows over the service's ends.
final class GenerationHarness {
    /// What `device show` says of a history.
    struct History: Equatable {
        var isContinued: Bool
        var reason: String
        var generation: String
        var epoch: Int
    }

    let service: TestService
    let device = "vm"

    /// `runtime`, `state`: directories other than the service's own.
    init(runtime: String? = nil, state: String? = nil) throws {
        var arguments: [String] = []
        if let runtime { arguments += ["--runtime-dir", runtime] }
        if let state { arguments += ["--state-dir", state] }
        service = try TestService(attaching: [:], loops: 1, extraArguments: arguments)
    }

    var statePath: String { service.directory.path("state") }
    var savedMap: String { statePath + "/\(device).map" }
    var runningMap: String { service.directory.path("run") + "/\(device).running" }

    /// Makes a sparse disk image and attaches it.
    @discardableResult
    func attachImage(byteCount: Int = 64 << 20, _ options: String...) throws -> String {
        let path = service.directory.path("disk.img")
        try makeSparseFile(path, byteCount: byteCount)
        try done(["device", "attach", device, path] + options)
        return path
    }

    func run(_ arguments: [String]) throws -> Command.Outcome {
        try Command.run(
            TestService.binary, arguments + ["--control", service.controlPath], deadline: 300)
    }

    func done(_ arguments: [String]) throws {
        try Command.check(
            TestService.binary, arguments + ["--control", service.controlPath], deadline: 300)
    }

    func json(_ arguments: [String]) throws -> Any {
        let text = try Command.check(
            TestService.binary, arguments + ["--json", "--control", service.controlPath],
            deadline: 300)
        return try JSONSerialization.jsonObject(with: Data(text.utf8))
    }

    func history() throws -> History {
        guard let object = try json(["device", "show", device]) as? [String: Any],
            let history = object["history"] as? String,
            let reason = object["history_reason"] as? String,
            let generation = object["generation"] as? String, let epoch = object["epoch"] as? Int
        else { throw TestFailure("device show tells no history") }
        return History(
            isContinued: history == "continued", reason: reason, generation: generation,
            epoch: epoch)
    }

    /// The history of before goes on.
    func expectContinued() throws {
        let history = try history()
        #expect(history.isContinued, "\(history.reason)")
    }

    func checkpoint(_ name: String) throws {
        try done(["checkpoint", "create", name, "--device", device])
    }

    /// The blocks of 4 KiB changed since a checkpoint.
    func changedBlocks(since name: String) throws -> Set<Int> {
        guard let object = try json(["changes", device, "--since", name]) as? [String: Any],
            let ranges = object["ranges"] as? [[String: Any]]
        else { throw TestFailure("changes tells no ranges") }
        var blocks: Set<Int> = []
        for range in ranges {
            guard let offset = range["offset"] as? Int, let length = range["length"] as? Int else {
                throw TestFailure("a range without its ends")
            }
            blocks.formUnion(offset / 4096..<(offset + length + 4095) / 4096)
        }
        return blocks
    }

    /// The exit status of asking for the changes since a checkpoint.
    func status(ofChangesSince name: String) throws -> Int32 {
        try run(["changes", device, "--since", name, "--json"]).status
    }

    func client() throws -> NBDClient {
        let client = try NBDClient(.unix(path: service.socketPath))
        _ = try client.greet()
        try client.open(device, headers: .structured)
        return client
    }

    /// Writes one block and flushes.
    func write(_ byte: UInt8, block: Int) throws {
        let client = try client()
        try client.write(UInt64(block) * 4096, [UInt8](repeating: byte, count: 4096), flags: 1)
    }

    /// Stops the service as an operator does; its guardian is gone before it.
    func stop() throws {
        let guardians = try guardians()
        guard try service.stop() == .exited(0) else { throw TestFailure("it did not stop cleanly") }
        for guardian in guardians where kill(guardian, 0) == 0 {
            throw TestFailure("guardian \(guardian) outlives a service that ended cleanly")
        }
    }

    /// The first event of that type after `number`, waited for.
    func event(_ type: String, after number: Int = 0) throws -> [String: Any] {
        var last = number
        let end = monotonicSeconds() + 120
        while monotonicSeconds() < end {
            let events =
                try json(["events", "--after", "\(last)", "--timeout", "30"]) as? [[String: Any]]
            for event in events ?? [] {
                if event["type"] as? String == type { return event }
                last = event["number"] as? Int ?? last
            }
        }
        throw TestFailure("no event \(type) came")
    }

    /// Kills the service, and waits until its guardian has done its work.
    func killed() throws {
        let guardians = try guardians()
        try service.process.killAndWait()
        for guardian in guardians { try waitForEnd(of: guardian) }
    }

    /// Waits until a process that is not ours to reap is gone.
    func waitForEnd(of process: pid_t) throws {
        let descriptor = stillpoint_test_pidfd_open(process)
        guard descriptor >= 0 else { return }
        defer { close(descriptor) }
        guard try waitReadable(descriptor, until: monotonicSeconds() + 60) else {
            throw TestFailure("process \(process) does not end")
        }
    }

    /// Whether a guardian of the service watches the file.
    func isWatched(_ path: String) throws -> Bool {
        try guardians().contains { guardian in
            // Before it is a program of its own it has the service's descriptors; and one that has
            // ended meanwhile watches nothing.
            let name = try? String(contentsOfFile: "/proc/\(guardian)/comm", encoding: .utf8)
            guard name == "guardian\n" else { return false }
            let names = try? FileManager.default.contentsOfDirectory(
                atPath: "/proc/\(guardian)/fd")
            return (names ?? []).contains { name in
                let target = try? FileManager.default.destinationOfSymbolicLink(
                    atPath: "/proc/\(guardian)/fd/\(name)")
                return target == path
            }
        }
    }

    /// The children of the service: its guardian.
    func guardians() throws -> [pid_t] {
        let folder = "/proc/\(service.process.processID)/task"
        return try FileManager.default.contentsOfDirectory(atPath: folder).flatMap { task in
            // A thread that has ended meanwhile has no children.
            let text = try? String(contentsOfFile: "\(folder)/\(task)/children", encoding: .utf8)
            return (text ?? "").split(separator: " ").compactMap { pid_t($0) }
        }
    }
}

/// Writes bytes into a file, as another program.
func overwrite(_ path: String, at offset: Int, _ bytes: [UInt8]) throws {
    let descriptor = open(path, O_WRONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw TestFailure("cannot open \(path): \(errno)") }
    defer { close(descriptor) }
    guard pwrite(descriptor, bytes, bytes.count, off_t(offset)) == bytes.count,
        fsync(descriptor) == 0
    else { throw TestFailure("cannot write \(path): \(errno)") }
}

/// Uses up what a filesystem has left.
func fill(_ folder: String) throws -> String {
    let path = folder + "/filler"
    let descriptor = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else { throw TestFailure("cannot make \(path): \(errno)") }
    defer { close(descriptor) }
    let bytes = [UInt8](repeating: 1, count: 4096)
    while write(descriptor, bytes, bytes.count) > 0 {}
    guard errno == ENOSPC else { throw TestFailure("\(path) does not fill: \(errno)") }
    return path
}
