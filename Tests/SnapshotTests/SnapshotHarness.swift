import Foundation
import Glibc
import TestSupport

let mebibyte = 1 << 20

/// Sizes of a test: the full one in `make soak`, else a small one; says which.
func sized(_ what: String, soak full: Int, otherwise small: Int) -> Int {
    print(
        isSoak
            ? "\(what): full size, \(full)"
            : "\(what): at a twentieth or so, \(small) of \(full); STILLPOINT_SOAK=1 runs all")
    return isSoak ? full : small
}

/// A service of one test, driven over its control socket without starting a process per command.
final class SnapshotHarness: Sendable {
    let service: TestService

    init(loops: Int? = nil) throws {
        service = try TestService(attaching: [:], loops: loops)
    }

    // MARK: Control

    /// Sends a request and returns the status and the answer's document.
    func http(
        _ method: String, _ target: String, _ body: [String: Any] = [:]
    ) throws -> (status: Int, document: Any) {
        let content = try JSONSerialization.data(withJSONObject: body)
        let text = String(decoding: content, as: UTF8.self)
        let connection = try NBDClient(.unix(path: service.controlPath))
        try connection.send(
            Array(
                ("\(method) \(target) HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                    + "Content-Type: application/json\r\n"
                    + "Content-Length: \(text.utf8.count)\r\n\r\n\(text)").utf8))
        var answer: [UInt8] = []
        var part = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = recv(connection.descriptor, &part, part.count, 0)
            if count < 0 && errno == EINTR { continue }
            guard count >= 0 else { throw TestFailure("\(method) \(target): errno \(errno)") }
            if count == 0 { break }
            answer += part[..<count]
        }
        let parts = String(decoding: answer, as: UTF8.self)
            .split(separator: "\r\n\r\n", maxSplits: 1)
        guard parts.count == 2,
            let status = parts[0].split(separator: " ").dropFirst().first.flatMap({ Int($0) })
        else { throw TestFailure("\(method) \(target): no HTTP") }
        return (status, try JSONSerialization.jsonObject(with: Data(parts[1].utf8)))
    }

    /// Sends a request that must succeed and returns the object it answers with.
    @discardableResult
    func ask(
        _ method: String, _ target: String, _ body: [String: Any] = [:]
    ) throws -> [String: Any] {
        let (status, document) = try http(method, target, body)
        guard (200..<300).contains(status) else {
            throw TestFailure("\(method) \(target): \(status) \(document)")
        }
        return document as? [String: Any] ?? [:]
    }

    /// Attaches a path under a name.
    func attach(_ name: String, _ path: String, sectorSize: Int? = nil) throws {
        var body: [String: Any] = ["name": name, "path": path]
        if let sectorSize { body["sector_size"] = sectorSize }
        try ask("POST", "/v1/devices", body)
    }

    /// Takes a snapshot.
    @discardableResult
    func take(
        _ name: String, of devices: [String], storage: [String] = ["memory:64M"],
        limit: Int? = nil, onOverflow: String = "break", force: Bool = false
    ) throws -> [String: Any] {
        var body: [String: Any] = [
            "name": name, "devices": devices, "storage": storage, "on_overflow": onOverflow,
        ]
        if let limit { body["limit"] = limit }
        if force { body["force"] = true }
        return try ask("POST", "/v1/snapshots", body)
    }

    func show(_ name: String) throws -> [String: Any] {
        try ask("GET", "/v1/snapshots/\(name)")
    }

    /// Destroys a snapshot and deletes the checkpoint it leaves, so that its name is free.
    func destroy(_ name: String) throws {
        try ask("DELETE", "/v1/snapshots/\(name)")
        try ask("DELETE", "/v1/checkpoints/\(name)")
    }

    /// The state of a snapshot.
    func state(of name: String) throws -> String {
        try show(name)["state"] as? String ?? "none"
    }

    /// The storage of a snapshot.
    func storage(of name: String) throws -> [String: Any] {
        try show(name)["storage"] as? [String: Any] ?? [:]
    }

    /// Waits until nothing that the snapshot preserved is in memory only.
    func awaitStored(_ name: String) throws {
        let deadline = monotonicSeconds() + 60
        while try unstoredByteCount(name) > 0 {
            guard monotonicSeconds() < deadline else { throw TestFailure("\(name) is not stored") }
        }
    }

    private func unstoredByteCount(_ name: String) throws -> Int {
        let parts = try show(name)["devices"] as? [[String: Any]] ?? []
        return parts.reduce(0) { $0 + ($1["unstored_bytes"] as? Int ?? 1) }
    }

    /// The events of a snapshot that happened until now, as the command line tells them.
    func events(of snapshot: String) throws -> [[String: Any]] {
        let text = try command("events", "--snapshot", snapshot, "--timeout", "60", "--json")
        let document = try JSONSerialization.jsonObject(with: Data(text.utf8))
        return document as? [[String: Any]] ?? []
    }

    /// Waits until a snapshot has an event of `type`; the deadline only detects hangs.
    func awaitEvent(_ type: String, of snapshot: String) throws {
        let follower = try ChildProcess(
            TestService.binary,
            [
                "events", "--follow", "--snapshot", snapshot, "--json", "--control",
                service.controlPath,
            ])
        while let line = try follower.readLine(deadline: 120) {
            if line.contains("\"\(type)\"") { return try follower.killAndWait() }
        }
        throw TestFailure("the events ended without \(type)")
    }

    /// Runs a client command that must succeed and returns its output.
    @discardableResult
    func command(_ arguments: String...) throws -> String {
        try Command.check(
            TestService.binary, arguments + ["--control", service.controlPath], deadline: 300)
    }

    // MARK: Data

    /// A connection of the tests' own client.
    func client(_ export: String) throws -> NBDClient {
        try NBDClient(service.address(), export: export, headers: .structured)
    }

    /// All bytes of an export, read in pieces of `step` bytes.
    func contents(of export: String, step: Int = mebibyte) throws -> [UInt8] {
        let client = try client(export)
        let byteCount = Int(client.byteCount)
        var bytes: [UInt8] = []
        bytes.reserveCapacity(byteCount)
        while bytes.count < byteCount {
            bytes += try client.read(UInt64(bytes.count), min(step, byteCount - bytes.count))
        }
        return bytes
    }

    /// Writes `byteCount` bytes of one value from `offset` on.
    func fill(_ export: String, _ value: UInt8, offset: Int = 0, byteCount: Int) throws {
        let client = try client(export)
        let ones = [UInt8](repeating: value, count: mebibyte)
        var done = 0
        while done < byteCount {
            let count = min(mebibyte, byteCount - done)
            try client.write(
                UInt64(offset + done), count == mebibyte ? ones : Array(ones[..<count]))
            done += count
        }
    }

    // MARK: The process

    /// What unnamed files of the service `stat` says, by descriptor.
    func unnamedFiles() throws -> [stat] {
        let folder = "/proc/\(service.process.processID)/fd"
        return try FileManager.default.contentsOfDirectory(atPath: folder).compactMap { name in
            // A descriptor that was closed meanwhile is none.
            let target = try? FileManager.default.destinationOfSymbolicLink(
                atPath: folder + "/" + name)
            guard let target, target.hasSuffix("(deleted)") else { return nil }
            var status = stat()
            return stat(folder + "/" + name, &status) == 0 ? status : nil
        }
    }

    /// Memory of the service in KiB, shared memory included.
    func memoryKibibytes() throws -> Int {
        try service.statusKibibytes("VmRSS")
    }

    /// Resident memory of the loops for blocks that are not stored yet, in KiB: what is left out
    /// of core dumps and locked once touched, while no snapshot has memory for storage.
    func unstoredMemoryKibibytes() throws -> Int {
        let text = try kernelText("/proc/\(service.process.processID)/smaps")
        var resident = 0
        var sum = 0
        for line in text.split(separator: "\n") {
            let words = line.split(separator: " ")
            switch words[0] {
            case "Rss:": resident = Int(words[1]) ?? 0
            case "VmFlags:" where words.contains("dd") && words.contains("lf"): sum += resident
            default: break
            }
        }
        return sum
    }
}

/// Nanoseconds of the monotonic clock.
func monotonicNanoseconds() -> UInt64 {
    var now = timespec()
    clock_gettime(CLOCK_MONOTONIC, &now)
    return UInt64(now.tv_sec) * 1_000_000_000 + UInt64(now.tv_nsec)
}
