import Foundation
import Glibc
import TestSupport

/// Files of one directory that are edited in every way there is, and what each must hold.
struct EditedFiles: Sendable {
    private enum Edit: CaseIterable {
        case create, overwrite, append, truncate, extend, rename, replace, delete
    }

    /// What every file holds.
    private(set) var contents: [String: [UInt8]] = [:]
    private let root: String
    private var generator: SeededGenerator
    private var nextName = 0

    private static let fileCountMax = 60
    private static let byteCountMax = 256 << 10

    /// Makes the directory.
    init(in root: String, seed: UInt64) throws {
        self.root = root
        generator = SeededGenerator(seed: seed)
        try FileManager.default.createDirectory(atPath: root, withIntermediateDirectories: false)
    }

    /// Makes `count` edits, one after the other.
    mutating func edit(_ count: Int) throws {
        for _ in 0..<count {
            let edit = Edit.allCases.randomElement(using: &generator) ?? .create
            guard let some = contents.keys.sorted().randomElement(using: &generator),
                edit != .create || contents.count >= Self.fileCountMax
            else {
                try create()
                continue
            }
            switch edit {
            case .create, .delete: try delete(some)
            case .overwrite: try overwrite(some)
            case .append: try write(randomBytes(), to: some, at: contents[some]?.count ?? 0)
            case .truncate:
                try resize(
                    some, Int.random(in: 0...(contents[some]?.count ?? 0), using: &generator))
            case .extend: try resize(some, (contents[some]?.count ?? 0) + randomCount())
            case .rename: try rename(some, newName())
            case .replace:
                try rename(some, contents.keys.sorted().randomElement(using: &generator) ?? some)
            }
        }
    }

    private mutating func newName() -> String {
        nextName += 1
        return "file-\(nextName)"
    }

    private mutating func randomCount() -> Int {
        // Few are large.
        Int.random(
            in: 1...(Self.byteCountMax >> Int.random(in: 0...8, using: &generator)),
            using: &generator)
    }

    private mutating func randomBytes() -> [UInt8] { generator.bytes(randomCount()) }

    private mutating func create() throws {
        let name = newName()
        contents[name] = []
        try write(randomBytes(), to: name, at: 0)
    }

    private mutating func overwrite(_ name: String) throws {
        let place = Int.random(in: 0...(contents[name]?.count ?? 0), using: &generator)
        try write(randomBytes(), to: name, at: place)
    }

    private mutating func write(_ bytes: [UInt8], to name: String, at place: Int) throws {
        let file = open(root + "/" + name, O_WRONLY | O_CREAT | O_CLOEXEC, 0o600)
        guard file >= 0 else { throw Self.failure("open", name) }
        defer { close(file) }
        guard pwrite(file, bytes, bytes.count, off_t(place)) == bytes.count else {
            throw Self.failure("write", name)
        }
        var whole = contents[name] ?? []
        let end = min(place + bytes.count, whole.count)
        whole.replaceSubrange(place..<end, with: bytes)
        contents[name] = whole
    }

    private mutating func resize(_ name: String, _ byteCount: Int) throws {
        guard Glibc.truncate(root + "/" + name, off_t(byteCount)) == 0 else {
            throw Self.failure("truncate", name)
        }
        var whole = contents[name] ?? []
        whole.removeLast(max(0, whole.count - byteCount))
        whole += [UInt8](repeating: 0, count: byteCount - whole.count)
        contents[name] = whole
    }

    /// A file that has the new name already is replaced.
    private mutating func rename(_ name: String, _ other: String) throws {
        guard Glibc.rename(root + "/" + name, root + "/" + other) == 0 else {
            throw Self.failure("rename", name)
        }
        contents[other] = contents.removeValue(forKey: name)
    }

    private mutating func delete(_ name: String) throws {
        guard unlink(root + "/" + name) == 0 else { throw Self.failure("unlink", name) }
        contents[name] = nil
    }

    /// Throws unless every file is in `root` with what it must hold, and no other one.
    func check(in root: String) throws {
        let found = try FileManager.default.contentsOfDirectory(atPath: root).sorted()
        guard found == contents.keys.sorted() else {
            throw TestFailure("\(root) has \(found), not \(contents.keys.sorted())")
        }
        for (name, bytes) in contents {
            guard let data = FileManager.default.contents(atPath: root + "/" + name),
                data == Data(bytes)
            else { throw TestFailure("\(root)/\(name) does not hold its \(bytes.count) bytes") }
        }
    }

    private static func failure(_ call: String, _ name: String) -> TestFailure {
        TestFailure("\(call) \(name): errno \(errno)")
    }
}
