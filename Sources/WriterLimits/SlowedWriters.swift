internal import ClientSupport
package import ControlDocuments
internal import FoundationEssentials
internal import Glibc
internal import Host

/// Writers that are slowed down as long as this object says so, and lives.
package final class SlowedWriters: Sendable {
    private let line: HelperSocket
    private let process: Int32

    /// Starts the helper. Nothing is limited yet.
    package init(disks: [String], bytesPerSecond: UInt64) throws {
        // Refused here, where the user learns of it.
        _ = try WriterLimits(disks: disks, bytesPerSecond: bytesPerSecond)
        var ends: [Int32] = [-1, -1]
        let kind = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
        guard socketpair(AF_UNIX, kind, 0, &ends) == 0 else {
            throw ControlError(.failed, "socketpair: \(SystemFile.errorText(errno))")
        }
        defer { close(ends[1]) }
        line = HelperSocket(owning: ends[0])
        do throws(HostError) {
            process = try ProgramStart.ownProgram(["writer-limit"], socket: ends[1]).run()
        } catch {
            throw ControlError(
                .failed,
                "the helper that slows writers down cannot be started: "
                    + SystemFile.errorText(error.errnoValue))
        }
        let order = LimitOrder(disks: disks, bytesPerSecond: bytesPerSecond)
        line.send(Array(try JSONEncoder().encode(order)) + [UInt8(ascii: "\n")])
    }

    deinit {
        // The limit is lifted before the copy says that it has ended.
        line.endSending()
        var status: Int32 = 0
        while waitpid(process, &status, 0) < 0, errno == EINTR {}
    }

    /// Limits the writers.
    package func set() throws(ControlError) { try ask("set") }

    /// Lifts the limit.
    package func lift() throws(ControlError) { try ask("lift") }

    private func ask(_ word: String) throws(ControlError) {
        line.send(Array("\(word)\n".utf8))
        guard let answer = line.receive(byteCountMax: 1 << 16) else {
            throw ControlError(
                .failed,
                "the helper that slows writers down was killed; limits may be left in the io.max files of "
                    + "cgroups")
        }
        guard answer.isEmpty else {
            throw ControlError(.failed, String(decoding: answer, as: UTF8.self))
        }
    }
}
