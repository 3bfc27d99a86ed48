import Foundation
import Glibc

/// A directory that is removed with everything in it when the object goes.
package final class TemporaryDirectory: Sendable {
    package let root: String
    private let ticket: Int

    /// Makes a directory on the disk, or in memory (`/dev/shm`).
    package init(inMemory: Bool = false) throws {
        // Short, for the paths of Unix sockets are limited to 107 bytes. /var/tmp is a disk where
        // /tmp may be memory.
        let template = (inMemory ? "/dev/shm" : "/var/tmp") + "/stillpoint-test-XXXXXX"
        var bytes = template.utf8CString.map { $0 }
        guard mkdtemp(&bytes) != nil else { throw TestFailure("mkdtemp \(template): \(errno)") }
        root = String(decoding: bytes.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        ticket = ExitCleanup.shared.register("rm -rf \(root)")
    }

    deinit {
        // Nothing sensible can be done when a file cannot be removed; the cleanup shell tries
        // again.
        if (try? FileManager.default.removeItem(atPath: root)) != nil {
            ExitCleanup.shared.withdraw(ticket)
        }
    }

    /// The path of `name` in it.
    package func path(_ name: String) -> String {
        root + "/" + name
    }
}
