import Foundation
import Glibc
import TestSupport
import Testing

let mebibyte = 1 << 20

/// A service with one device, `disk`, and a place for copies of it.
final class CopyHarness {
    let service: TestService
    let files: TemporaryDirectory
    let byteCount: Int
    /// What the device holds, as a plain array; kept by `write` and `zero`. Empty when not wanted.
    private(set) var contents: [UInt8] = []
    private var writer: NBDClient?

    init(
        byteCount: Int, keepsContents: Bool = true, environment: [String: String] = [:]
    ) throws {
        files = try TemporaryDirectory()
        self.byteCount = byteCount
        try makeSparseFile(files.path("disk"), byteCount: byteCount)
        if keepsContents { contents = [UInt8](repeating: 0, count: byteCount) }
        service = try TestService(
            attaching: ["disk": files.path("disk")], environment: environment)
        writer = try NBDClient(service.address(), export: "disk", headers: .structured)
    }

    var copyPath: String { files.path("copy") }

    // MARK: Commands

    /// Runs a client command.
    func run(_ arguments: [String]) throws -> Command.Outcome {
        try Command.run(
            TestService.binary, arguments + ["--control", service.controlPath], deadline: 300)
    }

    /// Runs a client command that must succeed and returns its output.
    @discardableResult
    func command(_ arguments: String...) throws -> String {
        try Command.check(
            TestService.binary, arguments + ["--control", service.controlPath], deadline: 300)
    }

    /// Runs a client command that must succeed and print one JSON object.
    func json(_ arguments: [String]) throws -> [String: Any] {
        let text = try Command.check(
            TestService.binary, arguments + ["--json", "--control", service.controlPath],
            deadline: 300)
        let document = try JSONSerialization.jsonObject(with: Data(text.utf8))
        return document as? [String: Any] ?? [:]
    }

    func take(_ name: String, storage: String = "memory:64M") throws {
        try command(
            "snapshot", "create", "--device", "disk", "--name", name, "--storage", storage)
    }

    func destroy(_ name: String) throws { try command("snapshot", "destroy", name) }

    /// Copies the image of a snapshot; returns what `copy --json` says.
    @discardableResult
    func copy(
        _ snapshot: String, since: String? = nil, isForced: Bool = false
    ) throws -> [String: Any] {
        try json(copyArguments(snapshot, since: since) + (isForced ? ["--force"] : []))
    }

    func copyArguments(_ snapshot: String, since: String? = nil) -> [String] {
        ["copy", "disk@\(snapshot)", copyPath] + (since.map { ["--since", $0] } ?? [])
    }

    /// Copies and expects an exit status and a message that holds `words`.
    func expectRefusal(
        _ status: Int32, _ words: String, _ arguments: [String],
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let outcome = try run(arguments)
        #expect(outcome.status == status, sourceLocation: sourceLocation)
        #expect(outcome.hasNoAnswer, sourceLocation: sourceLocation)
        #expect(
            outcome.diagnostics.contains(words), "\(outcome.diagnostics)",
            sourceLocation: sourceLocation)
    }

    // MARK: Data

    /// Connects again after the service was started again.
    func reconnect() throws {
        writer = try NBDClient(service.address(), export: "disk", headers: .structured)
    }

    /// Starts the service again after it has ended; what the device holds then is what its origin
    /// holds, for a write under way at the end may be there or not.
    func restart(environment: [String: String] = [:]) throws {
        try service.restart(environment: environment)
        try reconnect()
        contents = try readFile(files.path("disk"), 0..<byteCount)
    }

    private func connection() throws -> NBDClient {
        guard let writer else { throw TestFailure("the harness is not connected") }
        return writer
    }

    /// Ends the connection to the device, so that nobody uses it.
    func disconnect() { writer = nil }

    /// What the device holds is what its origin holds now.
    func takeContents() throws {
        contents = try readFile(files.path("disk"), 0..<byteCount)
    }

    func write(_ bytes: [UInt8], at offset: Int) throws {
        for start in stride(from: 0, to: bytes.count, by: mebibyte) {
            let end = min(start + mebibyte, bytes.count)
            try connection().write(UInt64(offset + start), Array(bytes[start..<end]))
        }
        if !contents.isEmpty {
            contents.replaceSubrange(offset..<offset + bytes.count, with: bytes)
        }
    }

    func zero(_ range: Range<Int>) throws {
        try connection().succeed(
            NBDRequest(
                .writeZeroes, offset: UInt64(range.lowerBound), length: UInt64(range.count)))
        if !contents.isEmpty {
            contents.replaceSubrange(range, with: repeatElement(0, count: range.count))
        }
    }

    /// A few writes and zeroes of any size at random places.
    func change(_ count: Int, _ generator: inout SeededGenerator) throws {
        for _ in 0..<count {
            let length =
                Int.random(in: 0..<4, using: &generator) == 0
                ? Int.random(in: 1...min(byteCount, 3 * mebibyte) / 512, using: &generator) * 512
                : Int.random(in: 1...16, using: &generator) * 512
            let offset = Int.random(in: 0...(byteCount - length) / 512, using: &generator) * 512
            if Int.random(in: 0..<5, using: &generator) == 0 {
                try zero(offset..<offset + length)
            } else {
                try write(generator.bytes(length), at: offset)
            }
        }
    }

    /// The copy's bytes equal what the device holds now, the copy is as long as it, and its
    /// record says that it is complete.
    func expectCopyIsRight(
        _ what: String, sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        var found = stat()
        #expect(stat(copyPath, &found) == 0 && Int(found.st_size) == byteCount)
        let copy = try readFile(copyPath, 0..<byteCount)
        if copy != contents {
            let place = zip(copy, contents).enumerated().first { $1.0 != $1.1 }?.offset ?? -1
            Issue.record("\(what): the copy differs at \(place)", sourceLocation: sourceLocation)
            throw TestFailure("the copy is wrong")
        }
        #expect(try record()["state"] as? String == "complete", sourceLocation: sourceLocation)
    }

    /// The record beside the copy.
    func record() throws -> [String: Any] {
        let bytes = try Data(contentsOf: URL(filePath: copyPath + ".stillpoint"))
        return try JSONSerialization.jsonObject(with: bytes) as? [String: Any] ?? [:]
    }

    /// The records of block devices.
    func diskRecords() throws -> [String] {
        let directory = service.directory.path("state/copies")
        return try FileManager.default.contentsOfDirectory(atPath: directory).map {
            "\(directory)/\($0)"
        }
    }

    /// Runs a line of bash in which `$stillpoint` is the program and `$control` its socket.
    func bash(_ line: String) throws -> Command.Outcome {
        try Command.run(
            "bash", ["-c", line],
            environment: [
                "stillpoint": TestService.binary, "STILLPOINT_CONTROL": service.controlPath,
                "files": files.root, "PATH": ProcessInfo.processInfo.environment["PATH"] ?? "",
            ], deadline: 300)
    }

    /// Bytes of disk space that a file uses.
    func allocatedByteCount(_ path: String) -> Int {
        var found = stat()
        return stat(path, &found) == 0 ? Int(found.st_blocks) * 512 : -1
    }
}

/// The size of a test in `make soak`, and otherwise; says which.
func sized(_ what: String, soak full: Int, otherwise small: Int) -> Int {
    print(
        "\(what): \(isSoak ? full : small)\(isSoak ? "" : " of \(full); STILLPOINT_SOAK=1 runs all")"
    )
    return isSoak ? full : small
}
