import Foundation
import Glibc

/// A loop device over a file, detached when the object goes.
package final class LoopDevice: Sendable {
    package let path: String
    private let hasPartitions: Bool
    private let ticket: Int

    /// Makes a block device with the given logical sector size out of `file`, with the partitions
    /// of its partition table if asked for. `isDirect`: past the page cache of the file.
    package init(
        over file: String, sectorSize: Int, withPartitions: Bool = false, isDirect: Bool = false
    ) throws {
        path = try Command.check(
            "losetup",
            ["--find", "--show", "--sector-size", "\(sectorSize)"]
                + (isDirect ? ["--direct-io=on"] : []) + [file]
        ).trimmingCharacters(in: .whitespacesAndNewlines)
        hasPartitions = withPartitions
        ticket = ExitCleanup.shared.register(
            (withPartitions ? "partx --delete \(path); " : "") + "losetup --detach \(path)")
        // By command, since not every kernel reads partition tables by itself.
        if withPartitions { try Command.check("partx", ["--update", path]) }
    }

    deinit {
        if hasPartitions { _ = try? Command.run("partx", ["--delete", path]) }
        if (try? Command.check("losetup", ["--detach", path])) != nil {
            ExitCleanup.shared.withdraw(ticket)
        }
    }
}
