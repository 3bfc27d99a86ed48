import Foundation
import Glibc

/// Programs of others that the tests run to their end.
package enum Command {
    /// What a finished program left.
    package struct Outcome: Sendable {
        package let status: Int32
        package let output: String
        package let diagnostics: String

        /// The code of the error document that a command with `--json` printed; nil when its
        /// output is anything else.
        package var errorCode: String? {
            // Output that is not JSON is not an error document.
            let document = try? JSONSerialization.jsonObject(with: Data(output.utf8))
            let error = (document as? [String: Any])?["error"] as? [String: Any]
            guard error?["message"] is String, error?["details"] is [String: String] else {
                return nil
            }
            return error?["code"] as? String
        }

        /// Standard output holds no part of an answer: it is empty, or an error document.
        package var hasNoAnswer: Bool { output.isEmpty || errorCode != nil }
    }

    /// Runs `program` and returns how it ended; the deadline only detects hangs.
    package static func run(
        _ program: String, _ arguments: [String], environment: [String: String] = [:],
        deadline: Double = 600
    ) throws -> Outcome {
        let directory = try TemporaryDirectory()
        let diagnosticsPath = directory.path("stderr")
        let child = try ChildProcess(
            program, arguments, environment: environment, diagnostics: diagnosticsPath)
        let output: String
        do {
            output = try child.readToEnd(deadline: deadline)
        } catch {
            throw TestFailure("\(program) \(arguments): \(error)")
        }
        let ending = try child.wait(deadline: 60)
        let diagnostics = try String(
            decoding: Data(contentsOf: URL(filePath: diagnosticsPath)), as: UTF8.self)
        let status: Int32
        switch ending {
        case .exited(let code): status = code
        case .killed(let signal): status = 128 + signal
        }
        return Outcome(status: status, output: output, diagnostics: diagnostics)
    }

    /// Runs `program`, which must succeed, and returns its standard output.
    @discardableResult
    package static func check(
        _ program: String, _ arguments: [String], environment: [String: String] = [:],
        deadline: Double = 600
    ) throws -> String {
        let outcome = try run(program, arguments, environment: environment, deadline: deadline)
        guard outcome.status == 0 else {
            throw TestFailure(
                "\(program) \(arguments.joined(separator: " ")) ended with \(outcome.status):\n"
                    + outcome.output + outcome.diagnostics)
        }
        return outcome.output
    }

    /// Whether `program` is found in PATH.
    package static func exists(_ program: String) -> Bool {
        let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
        return path.split(separator: ":").contains { access("\($0)/\(program)", X_OK) == 0 }
    }
}

/// The full sizes of issue 2 instead of a twentieth, asked for by `make soak`.
package let isSoak = ProcessInfo.processInfo.environment["STILLPOINT_SOAK"] == "1"

/// The tests run as root, which loop devices and mounts need.
package let isRoot = geteuid() == 0

/// Loop devices can be made here.
package let canUseLoopDevices = isRoot && access("/dev/loop-control", R_OK | W_OK) == 0

/// File systems of our own can be mounted here.
package let canUseFUSE = isRoot && access("/dev/fuse", R_OK | W_OK) == 0
