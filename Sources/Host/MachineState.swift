internal import CLinux
internal import Glibc

/// Whether the machine is coming up, runs, or is going down, as its service manager (systemd) says.
package enum MachineState: Equatable, Sendable {
    /// Before services are started that need filesystems: systemd calls it `initializing`.
    case comingUp
    case goingDown
    case other

    /// Where systemd says that it manages the machine.
    private static let managed = "/run/systemd/system"
    private static let answerMilliseconds: Int32 = 10_000

    /// Asks the service manager, or takes what a test says. Blocks for 10 s at most; `other` when nothing
    /// answers.
    package static func current() -> MachineState {
        if let value = getenv("STILLPOINT_MACHINE_STATE") { return of(String(cString: value)) }
        guard SystemFile.exists(managed) else { return .other }
        return of(answer() ?? "")
    }

    private static func of(_ word: String) -> MachineState {
        switch word {
        case "initializing": .comingUp
        case "stopping": .goingDown
        default: .other
        }
    }

    private static func answer() -> String? {
        var ends: [Int32] = [0, 0]
        guard cl_pipe(&ends) == 0 else { return nil }
        defer { close(ends[0]) }
        var start = ProgramStart("systemctl", ["systemctl", "is-system-running"])
        start.output = .descriptor(ends[1])
        start.closesOthers = true
        let child = try? start.run()
        close(ends[1])
        // Without systemctl nothing is known.
        guard let child else { return nil }
        var watched = pollfd(fd: ends[0], events: Int16(POLLIN), revents: 0)
        var bytes = [UInt8](repeating: 0, count: 64)
        let hasAnswer = poll(&watched, 1, answerMilliseconds) == 1
        let count = hasAnswer ? read(ends[0], &bytes, bytes.count) : 0
        kill(child, SIGKILL)
        _ = ProgramStart.wait(for: child)
        guard count > 0 else { return nil }
        return String(decoding: bytes.prefix(count), as: UTF8.self)
            .split(separator: "\n").first.map(String.init)
    }
}
