import Foundation
import Glibc
import TestSupport

/// Makes, overwrites, renames, truncates and deletes files in a directory, and knows what must be
/// in each of them.
struct FileLoad: Sendable {
    /// What a file holds: `byteCount` bytes that grow from `seed`.
    struct Content: Sendable, Equatable {
        var seed: UInt64
        var byteCount: Int

        var bytes: [UInt8] {
            var generator = SeededGenerator(seed: seed)
            return generator.bytes(byteCount)
        }
    }

    /// Operations done.
    private(set) var operationCount = 0
    /// Every file, and what it holds.
    private(set) var files: [String: Content] = [:]
    /// Those whose content was synced.
    private(set) var synced: [String: Content] = [:]
    private let root: String
    private var generator: SeededGenerator
    private var nextName = 0

    private static let fileCountMax = 120
    private static let byteCountMax = 512 << 10

    init(in root: String, seed: UInt64) {
        self.root = root
        generator = SeededGenerator(seed: seed)
    }

    /// Goes on for `seconds`, or until an operation fails.
    mutating func run(seconds: Double) throws {
        let end = monotonicSeconds() + seconds
        while monotonicSeconds() < end { try step() }
    }

    /// Writes `count` files and syncs each.
    mutating func writeFiles(_ count: Int) throws {
        for _ in 0..<count { try write(newName(), syncs: true) }
    }

    /// Deletes every file.
    mutating func deleteAll() throws {
        for name in files.keys.sorted() { try delete(name) }
    }

    private mutating func step() throws {
        operationCount += 1
        let known = files.keys.sorted()
        guard let some = known.randomElement(using: &generator) else {
            return try write(newName(), syncs: true)
        }
        switch Int.random(in: 0..<10, using: &generator) {
        case 0...3 where known.count < Self.fileCountMax: try write(newName(), syncs: false)
        case 0...4: try write(some, syncs: Bool.random(using: &generator))
        case 5...6: try rename(some)
        case 7: try delete(some)
        default: try check(some)
        }
    }

    private mutating func newName() -> String {
        nextName += 1
        return "file-\(nextName)"
    }

    private mutating func write(_ name: String, syncs: Bool) throws {
        let content = Content(
            seed: generator.next(),
            byteCount: Int.random(in: 1...Self.byteCountMax, using: &generator))
        // What a file held before is not promised any more once it is opened for writing.
        synced[name] = nil
        files[name] = content
        let file = open(root + "/" + name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard file >= 0 else { throw Self.failure("open", name) }
        defer { close(file) }
        let bytes = content.bytes
        guard Glibc.write(file, bytes, bytes.count) == bytes.count else {
            throw Self.failure("write", name)
        }
        guard syncs else { return }
        guard fsync(file) == 0 else { throw Self.failure("fsync", name) }
        synced[name] = content
    }

    private mutating func rename(_ name: String) throws {
        let other = newName()
        // Neither name is promised to be there after a crash.
        synced[name] = nil
        guard Glibc.rename(root + "/" + name, root + "/" + other) == 0 else {
            throw Self.failure("rename", name)
        }
        files[other] = files.removeValue(forKey: name)
    }

    private mutating func delete(_ name: String) throws {
        synced[name] = nil
        guard unlink(root + "/" + name) == 0 else { throw Self.failure("unlink", name) }
        files[name] = nil
    }

    private func check(_ name: String) throws {
        try Self.check(name, files[name]?.bytes ?? [], in: root)
    }

    /// Throws unless every file in `root` is there with what it must hold, and no other one.
    func checkAll(in root: String) throws {
        let found = try FileManager.default.contentsOfDirectory(atPath: root)
            .filter { $0.hasPrefix("file-") }.sorted()
        guard found == files.keys.sorted() else {
            throw TestFailure("files \(found.count) instead of \(files.count) in \(root)")
        }
        for (name, content) in files { try Self.check(name, content.bytes, in: root) }
    }

    /// Throws unless what was synced is there.
    func checkSynced(in root: String) throws {
        for (name, content) in synced { try Self.check(name, content.bytes, in: root) }
    }

    private static func check(_ name: String, _ bytes: [UInt8], in root: String) throws {
        let path = root + "/" + name
        guard let found = FileManager.default.contents(atPath: path) else {
            throw TestFailure("\(path) cannot be read")
        }
        guard Array(found) == bytes else {
            throw TestFailure("\(path) has \(found.count) bytes that are not those written")
        }
    }

    private static func failure(_ call: String, _ name: String) -> TestFailure {
        TestFailure("\(call) \(name): errno \(errno)")
    }
}
