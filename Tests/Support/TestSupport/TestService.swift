import Foundation
import Glibc
import Synchronization

/// The built `stillpoint` program, serving origins for one test.
package final class TestService: @unchecked Sendable {
    /// How a client reaches an export.
    package enum Transport: String, CaseIterable, Sendable, CustomStringConvertible {
        case unix = "Unix socket"
        case tcp = "TCP"

        package var description: String { rawValue }
    }

    package let directory: TemporaryDirectory
    package let port: UInt16
    package private(set) var process: ChildProcess
    private let arguments: [String]
    private let ticket: Int

    /// Starts the service for origins by name and returns when it is reachable.
    package init(
        attaching origins: [String: String], loops: Int? = nil, extraArguments: [String] = [],
        wrapper: [String] = [], environment: [String: String] = [:]
    ) throws {
        directory = try TemporaryDirectory()
        let place = directory.path("run/block")
        ticket = ExitCleanup.shared.register(
            "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline | "
                + "grep -q ' guardian .*\(directory.path("state")) ' && kill -9 ${p#/proc/}; done; "
                + "for d in /sys/block/loop*; do grep -q '^\(place)/' $d/loop/backing_file && "
                + "losetup -d /dev/${d##*/}; done; umount -f -l \(place)/*; "
                + "umount -l \(directory.path("run/bpf"))")
        port = try Self.freePort()
        var arguments = Self.baseArguments(directory, port: port)
        for (name, path) in origins.sorted(by: { $0.key < $1.key }) {
            arguments += ["--attach", "\(name)=\(path)"]
        }
        if let loops { arguments += ["--loops", "\(loops)"] }
        self.arguments =
            wrapper.dropFirst() + (wrapper.isEmpty ? [] : [Self.binary])
            + arguments + extraArguments
        program = wrapper.first ?? Self.binary
        // The names of block devices are one directory of the machine, which tests share not.
        self.environment = environment.merging(["STILLPOINT_BLOCK_LINKS": directory.path("dev")]) {
            own, _ in own
        }
        process = try ChildProcess(
            program, self.arguments, environment: self.environment,
            diagnostics: directory.path("log"))
        try waitUntilReady()
    }

    /// Ends a service with block devices, and what outlives it. Should the test process die, the
    /// cleanup shell does the same.
    deinit {
        if process.isRunning { HoldRecord.add(of: controlPath) }
        let mounts = try? FileManager.default.contentsOfDirectory(
            atPath: directory.path("run/block"))
        // A test that ended it already has taken care of what was left.
        if mounts?.isEmpty == false {
            if process.isRunning { _ = try? stop() }
            _ = try? endWhatOutlivesIt()
        }
        // With the pins in it, marks of live devices end.
        umount2(directory.path("run/bpf"), Int32(MNT_DETACH))
        ExitCleanup.shared.withdraw(ticket)
    }

    /// Ends the guardian that waits for the next service, and takes its block devices away.
    package func endWhatOutlivesIt() throws {
        for guardian in try guardians() { kill(guardian, SIGKILL) }
        let place = directory.path("run/block")
        for name in try FileManager.default.contentsOfDirectory(atPath: "/sys/block")
        where name.hasPrefix("loop") {
            // One that is not set up has no backing file.
            let file = try? String(
                contentsOfFile: "/sys/block/\(name)/loop/backing_file", encoding: .utf8)
            guard file?.hasPrefix(place + "/") == true else { continue }
            _ = try Command.run("losetup", ["-d", "/dev/" + name])
        }
        for line in try kernelText("/proc/self/mountinfo").split(separator: "\n") {
            let path = String(line.split(separator: " ")[4])
            if path.hasPrefix(place + "/") { umount2(path, Int32(MNT_FORCE) | Int32(MNT_DETACH)) }
        }
    }

    /// The guardians of the service: its own, and those of former ones that wait for the next.
    package func guardians() throws -> [pid_t] {
        let state = directory.path("state")
        return try FileManager.default.contentsOfDirectory(atPath: "/proc").compactMap { name in
            guard let id = pid_t(name),
                // A process that has ended meanwhile.
                let words = try? kernelText("/proc/\(id)/cmdline").split(separator: "\0"),
                words.contains("guardian"), words.contains(where: { $0 == state })
            else { return nil }
            return id
        }
    }

    private let program: String
    private let environment: [String: String]

    /// Starts the same command line again after the process has ended; with `changes` to the
    /// environment, this time.
    package func restart(environment changes: [String: String] = [:]) throws {
        process = try ChildProcess(
            program, arguments, environment: environment.merging(changes) { $1 },
            diagnostics: directory.path("log"))
        try waitUntilReady()
    }

    private func waitUntilReady() throws {
        guard try process.readLine(deadline: 120) == "ready" else {
            let ending = try process.wait(deadline: 60)
            throw TestFailure("the service did not become ready: \(ending)\n\(log)")
        }
    }

    /// Starts another program on the same directories after the process has ended.
    package func restart(program: String, environment changes: [String: String] = [:]) throws {
        process = try ChildProcess(
            program, arguments, environment: environment.merging(changes) { $1 },
            diagnostics: directory.path("log"))
        try waitUntilReady()
    }

    /// Asks the service to stop as an operator would and returns how it ended.
    package func stop() throws -> ChildProcess.Ending {
        HoldRecord.add(of: controlPath)
        process.send(signal: SIGTERM)
        return try process.wait(deadline: 120)
    }

    /// What the service has logged.
    package var log: String {
        // A log that is not there yet is empty.
        (try? String(contentsOfFile: directory.path("log"), encoding: .utf8)) ?? ""
    }

    package var socketPath: String { directory.path("nbd.sock") }
    package var controlPath: String { directory.path("control.sock") }

    /// The NBD URI of an export.
    package func uri(_ export: String, _ transport: Transport = .unix) -> String {
        switch transport {
        case .unix: "nbd+unix:///\(export)?socket=\(socketPath)"
        case .tcp: "nbd://127.0.0.1:\(port)/\(export)"
        }
    }

    /// The address of the NBD server.
    package func address(_ transport: Transport = .unix) -> NBDAddress {
        switch transport {
        case .unix: .unix(path: socketPath)
        case .tcp: .tcp(port: port)
        }
    }

    /// What the service has open, as the kernel names it: files, sockets, pipes.
    package func openDescriptors() throws -> [String] {
        let directory = "/proc/\(process.processID)/fd"
        return try FileManager.default.contentsOfDirectory(atPath: directory).map { number in
            // One that was closed since the listing has no name any more.
            (try? FileManager.default.destinationOfSymbolicLink(atPath: "\(directory)/\(number)"))
                ?? "closed"
        }
    }

    /// Waits until the service has no more open than it had, except for `spare`: connections whose
    /// clients have ended take a moment to be closed.
    ///
    /// - Returns: What is open beyond `before` when the time is over; nothing if all was returned.
    package func descriptorsNotReturned(
        since before: [String], spare: Int = 0, deadline: Double = 60
    ) throws -> [String] {
        let end = monotonicSeconds() + deadline
        while true {
            var now = try openDescriptors()
            if now.count <= before.count + spare { return [] }
            guard monotonicSeconds() < end else {
                for name in before { now.firstIndex(of: name).map { _ = now.remove(at: $0) } }
                return now
            }
            sched_yield()
        }
    }

    /// The thread of that name.
    package func thread(named name: String) throws -> pid_t {
        let place = "/proc/\(process.processID)/task"
        for thread in try FileManager.default.contentsOfDirectory(atPath: place)
        where try kernelText("\(place)/\(thread)/comm") == name + "\n" {
            return pid_t(thread) ?? 0
        }
        throw TestFailure("the service has no thread \(name)")
    }

    /// Processor time of the threads that run now.
    package func processorSeconds() throws -> Double {
        let place = "/proc/\(process.processID)/task"
        return try FileManager.default.contentsOfDirectory(atPath: place).reduce(0) { sum, thread in
            // One that has ended meanwhile has no file.
            let words = try? kernelText("\(place)/\(thread)/schedstat").split(separator: " ")
            return sum + (words?.first.flatMap { Double($0) } ?? 0) / 1e9
        }
    }

    /// A figure in KiB of /proc/PID/status, such as VmRSS.
    package func statusKibibytes(_ name: String) throws -> Int {
        let text = try String(
            contentsOfFile: "/proc/\(process.processID)/status", encoding: .utf8)
        for line in text.split(separator: "\n") where line.hasPrefix(name + ":") {
            return Int(line.split(separator: "\t").last?.split(separator: " ").first ?? "") ?? 0
        }
        throw TestFailure("no \(name) in the status of \(process.processID)")
    }

    /// Resident memory in KiB without the loops' buffers, each a mapping of 192 MiB or more: how
    /// much of those has been touched depends on how much was ever in flight at once.
    package func residentKibibytesWithoutBuffers() throws -> Int {
        let text = try String(
            contentsOfFile: "/proc/\(process.processID)/smaps", encoding: .utf8)
        var total = 0
        var size = 0
        for line in text.split(separator: "\n") {
            let words = line.split(separator: " ")
            guard words.count == 3, let count = Int(words[1]) else { continue }
            switch words[0] {
            case "Size:": size = count
            case "Rss:": total += size >= 192 << 10 ? 0 : count
            default: break
            }
        }
        return total
    }

    /// The path of a program built beside the tests.
    package static func built(_ name: String) -> String {
        let own = (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe"))
        return ((own ?? "") as NSString).deletingLastPathComponent + "/" + name
    }

    /// The program under test: STILLPOINT_BINARY, else what was built beside the tests.
    package static let binary =
        ProcessInfo.processInfo.environment["STILLPOINT_BINARY"] ?? built("stillpoint")

    /// Whether there is a program to test.
    package static let isBuilt = access(binary, X_OK) == 0

    /// The arguments of `serve` with everything kept in `directory`.
    package static func baseArguments(_ directory: TemporaryDirectory, port: UInt16) -> [String] {
        [
            "serve", "--control", directory.path("control.sock"),
            "--state-dir", directory.path("state"), "--runtime-dir", directory.path("run"),
            "--nbd", "unix:" + directory.path("nbd.sock"), "--nbd", "tcp:127.0.0.1:\(port)",
        ]
    }

    /// Runs `serve` where it must refuse, and returns how it ended.
    package static func refusal(
        attaching origins: [String: String], extraArguments: [String] = []
    ) throws -> Command.Outcome {
        let directory = try TemporaryDirectory()
        var arguments = baseArguments(directory, port: try freePort())
        for (name, path) in origins.sorted(by: { $0.key < $1.key }) {
            arguments += ["--attach", "\(name)=\(path)"]
        }
        return try refusal(arguments: arguments + extraArguments)
    }

    /// Runs the program with these arguments, where it must refuse.
    package static func refusal(arguments: [String]) throws -> Command.Outcome {
        let directory = try TemporaryDirectory()
        let log = directory.path("log")
        let child = try ChildProcess(binary, arguments, diagnostics: log)
        // Generous: a refused lock is waited for up to 30 s, in case a dying service holds it.
        let line = try child.readLine(deadline: 300)
        guard line == nil else {
            throw TestFailure("the service started where it should refuse, and said \(line ?? "")")
        }
        let status: Int32
        switch try child.wait(deadline: 60) {
        case .exited(let code): status = code
        case .killed(let signal): status = 128 + signal
        }
        let text = try String(contentsOfFile: log, encoding: .utf8)
        return Command.Outcome(status: status, output: "", diagnostics: text)
    }

    /// A TCP port of the loopback address that nobody listens on, and no other test will: not even
    /// while the service that uses it is down.
    package static func freePort() throws -> UInt16 {
        try ports.withLock { ports in
            while true {
                while let port = ports.popLast() {
                    if canBind(port) { return port }
                }
                ports = try reserveBlock()
            }
        }
    }

    private static let ports = Mutex<[UInt16]>([])

    /// A hundred ports below those that the kernel gives to clients. A name in the abstract
    /// namespace, bound for as long as this process lives, keeps other test runs away.
    private static func reserveBlock() throws -> [UInt16] {
        for first in stride(from: UInt16(12_000), to: 32_000, by: 100).shuffled() {
            let descriptor = socket(
                AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
            guard descriptor >= 0 else { throw TestFailure("socket: errno \(errno)") }
            var name = sockaddr_un()
            name.sun_family = sa_family_t(AF_UNIX)
            withUnsafeMutableBytes(of: &name.sun_path) {
                $0.dropFirst().copyBytes(from: "stillpoint-test-ports-\(first)".utf8)
            }
            let isOurs = withUnsafeBytes(of: &name) {
                let address = $0.baseAddress!.assumingMemoryBound(to: sockaddr.self)
                return bind(descriptor, address, socklen_t($0.count)) == 0
            }
            if isOurs { return Array(first..<first + 100) }
            close(descriptor)
        }
        throw TestFailure("no free TCP ports")
    }

    private static func canBind(_ port: UInt16) -> Bool {
        let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        guard descriptor >= 0 else { return false }
        defer { close(descriptor) }
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        return withUnsafeBytes(of: &address) {
            let name = $0.baseAddress!.assumingMemoryBound(to: sockaddr.self)
            return bind(descriptor, name, socklen_t($0.count)) == 0
        }
    }
}
