import Foundation
import TestSupport

/// A directory with some files of others, as clients want them.
struct ClientDirectory {
    let directory = try! TemporaryDirectory()

    init(_ files: [String: String]) throws {
        for (name, source) in files {
            try FileManager.default.copyItem(atPath: source, toPath: directory.path(name))
        }
    }
}

/// A file of pre-shared keys.
struct TestKeys {
    static let key = String(repeating: "0123456789abcdef", count: 4)

    let directory: TemporaryDirectory

    init(_ text: String = "alice:\(TestKeys.key)\n", mode: Int = 0o600) throws {
        directory = try TemporaryDirectory()
        try text.write(toFile: path, atomically: true, encoding: .utf8)
        try FileManager.default.setAttributes([.posixPermissions: mode], ofItemAtPath: path)
    }

    /// The name that QEMU looks for.
    var path: String { directory.path("keys.psk") }
}
