package import BlockModel
package import ControlDocuments
internal import Glibc
internal import Host
internal import Logging
package import RingIO
package import ServiceState

// Programs around a take: `pre` before anything is frozen and with all gates open, `post` after
// everything is thawed, whatever became of the take. They run as the service's user.

/// Runs hooks.
package struct HookRunner: Sendable {
    /// When a hook runs: before anything is frozen, or after everything is thawed.
    package enum Phase: String, Sendable { case pre, post }

    /// Held while a program is being started: none is while filesystems are frozen.
    let freezeLock: AsyncReadWriteLock
    let blocking: BlockingPool
    let control: String

    package init(freezeLock: AsyncReadWriteLock, blocking: BlockingPool, control: String) {
        self.freezeLock = freezeLock
        self.blocking = blocking
        self.control = control
    }

    /// Refuses what is not a program, before anything depends on it.
    package func check(_ options: HookOptions) async throws {
        for path in [options.pre, options.post].compactMap(\.self) {
            let failure = try await blocking.runOnNamedPath(.surveys, "hook \(path)") {
                () -> Int32 in
                var facts = stat()
                guard stat(path, &facts) == 0 else { return errno }
                guard facts.st_mode & S_IFMT == S_IFREG else { return EACCES }
                return access(path, X_OK) == 0 ? 0 : errno
            }
            if failure == ENOENT {
                throw ControlError(.noSuchFile, "hook \(path) does not exist; name a program")
            }
            if failure != 0 {
                throw ControlError(
                    .unsuitable,
                    "hook \(path) cannot be run (\(errnoText(failure))); name an executable file")
            }
        }
    }

    /// Runs a hook; returns why it failed, nil when it did not. `failure`: why the take failed.
    package func run(
        _ path: String, _ phase: Phase, limitSeconds: UInt64, snapshot: SnapshotLabel,
        devices: [ObjectName], failure: (any Error)? = nil
    ) async -> String? {
        var environment = Self.inherited()
        environment["STILLPOINT_PHASE"] = phase.rawValue
        environment["STILLPOINT_SNAPSHOT_ID"] = snapshot.id.description
        environment["STILLPOINT_SNAPSHOT_NAME"] = snapshot.name?.text ?? ""
        environment["STILLPOINT_DEVICES"] = devices.map(\.text).joined(separator: " ")
        environment["STILLPOINT_CONTROL"] = control
        if phase == .post {
            environment["STILLPOINT_RESULT"] = failure == nil ? "taken" : "failed"
            environment["STILLPOINT_ERROR"] = failure.map { "\($0)" } ?? ""
        }
        let process = HookProcess(path, environment: environment, limitSeconds: limitSeconds)
        await freezeLock.lockShared()
        await process.start()
        freezeLock.unlock()
        return Self.error(
            of: await process.outcome(), "\(phase.rawValue) hook \(path)", limitSeconds)
    }

    private static func error(
        of outcome: HookProcess.Outcome, _ hook: String, _ limitSeconds: UInt64
    ) -> String? {
        let text =
            switch outcome.ending {
            case .exited(0): String?.none
            case .exited(let status): "\(hook) ended with status \(status)"
            case .killed(let signal): "\(hook) was killed by signal \(signal)"
            case .tooSlow: "\(hook) took longer than \(limitSeconds) s and was killed"
            case .notStarted(let reason): "\(hook) could not be started (\(errnoText(reason)))"
            }
        return text.map { outcome.output.isEmpty ? $0 : "\($0): \(outcome.output)" }
    }

    /// The service's own environment without what its manager meant for it alone.
    private static func inherited() -> [String: String] {
        var variables: [String: String] = [:]
        var entry = environ
        while let text = entry.pointee {
            let pair = String(cString: text)
            if let equals = pair.firstIndex(of: "=") {
                variables[String(pair[..<equals])] = String(pair[pair.index(after: equals)...])
            }
            entry += 1
        }
        // What names its sockets was removed when they were taken.
        for name in ["WATCHDOG_USEC", "WATCHDOG_PID"] { variables[name] = nil }
        return variables
    }
}
