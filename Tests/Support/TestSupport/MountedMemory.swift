import Foundation
import Glibc

/// A small tmpfs of a test, unmounted when the object goes.
package final class MountedMemory: Sendable {
    package let path: String
    package let byteCount: Int
    private let directory: TemporaryDirectory
    private let ticket: Int

    package init(byteCount: Int) throws {
        self.byteCount = byteCount
        directory = try TemporaryDirectory()
        path = directory.path("mount")
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: false)
        ticket = ExitCleanup.shared.register("umount --lazy \(path)")
        guard mount("tmpfs", path, "tmpfs", 0, "size=\(byteCount)") == 0 else {
            throw TestFailure("cannot mount a tmpfs: \(errno)")
        }
    }

    deinit {
        umount2(path, Int32(MNT_DETACH))
        ExitCleanup.shared.withdraw(ticket)
    }

    /// What `statvfs` says is free.
    package func freeByteCount() throws -> Int {
        var status = statvfs()
        guard statvfs(path, &status) == 0 else { throw TestFailure("statvfs: \(errno)") }
        return Int(status.f_bfree) * Int(status.f_frsize)
    }

    /// Names in it.
    package func names() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: path)
    }
}
