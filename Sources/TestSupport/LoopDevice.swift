import Foundation
import Glibc

/// A loop device over a file, detached when the object goes.
package final class LoopDevice: Sendable {
    package let path: String
    private let ticket: Int

    /// Makes a block device with the given logical sector size out of `file`.
    package init(over file: String, sectorSize: Int, scanPartitions: Bool = false) throws {
        var arguments = ["--find", "--show", "--sector-size", "\(sectorSize)"]
        if scanPartitions { arguments.append("--partscan") }
        path = try Command.check("losetup", arguments + [file])
            .trimmingCharacters(in: .whitespacesAndNewlines)
        ticket = Undertaker.shared.register("losetup --detach \(path)")
    }

    deinit {
        if (try? Command.check("losetup", ["--detach", path])) != nil {
            Undertaker.shared.withdraw(ticket)
        }
    }
}
