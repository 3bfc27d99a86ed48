import Foundation
import Glibc

/// A mounted file system whose one file loses what was not synced when the power is cut.
///
/// Unmounted when the object goes, and by `ExitCleanup` when the test process dies.
package final class PowerCutFilesystem: Sendable {
    /// The path of the file.
    package let diskPath: String
    private let directory: TemporaryDirectory
    private let process: ChildProcess
    private let ticket: Int

    /// Mounts one with a file of `byteCount` bytes.
    package init(byteCount: Int) throws {
        directory = try TemporaryDirectory()
        let mountPoint = directory.path("mount")
        try FileManager.default.createDirectory(
            atPath: mountPoint, withIntermediateDirectories: false)
        ticket = ExitCleanup.shared.register("umount --lazy \(mountPoint)")
        process = try ChildProcess(
            TestService.built("powercut-fs"), [mountPoint, "\(byteCount)"],
            diagnostics: directory.path("log"), withInput: true)
        diskPath = mountPoint + "/disk"
        guard try process.readLine(deadline: 60) == "mounted" else {
            let log = try String(contentsOfFile: directory.path("log"), encoding: .utf8)
            throw TestFailure("powercut-fs did not start: \(log)")
        }
    }

    deinit {
        // One that hangs would not see the end of its input, which makes it unmount lazily and
        // exit, whatever is still open.
        goOn()
        process.closeInput()
        if (try? process.wait(deadline: 60)) == nil { try? process.killAndWait() }
        umount2(directory.path("mount"), Int32(MNT_DETACH))
        ExitCleanup.shared.withdraw(ticket)
    }

    /// Cuts the power: requests fail until `restorePower`. Without a seed all that was not synced
    /// is lost, with one a random part of it. Returns the number of changes that were not synced.
    @discardableResult
    package func cutPower(seed: UInt64? = nil) throws -> Int {
        let answer = try command("cut \(seed.map { "\($0)" } ?? "all")")
        guard let count = answer.split(separator: " ").dropFirst().first.flatMap({ Int($0) }) else {
            throw TestFailure("powercut-fs answered: \(answer)")
        }
        return count
    }

    package func restorePower() throws {
        try command("on")
    }

    /// Makes the `count`-th operation (read, write, fsync) from now fail, or all from it on.
    package func fail(
        _ operation: String, at count: Int, with error: Int32, lasting: Bool = false
    ) throws {
        try command("fail \(operation) \(count) \(error)" + (lasting ? " all" : ""))
    }

    /// Lets every such operation take at least this long.
    package func delay(_ operation: String, milliseconds: Int) throws {
        try command("delay \(operation) \(milliseconds)")
    }

    /// No more failures and delays.
    package func clearFaults() throws {
        try command("clear")
    }

    /// How many operations of this kind have been served.
    package func count(of operation: String) throws -> Int {
        let words = try command("counts").split(separator: " ")
        guard let index = words.firstIndex(where: { $0 == operation }), index + 1 < words.count,
            let count = Int(words[index + 1])
        else { throw TestFailure("no count of \(operation)") }
        return count
    }

    /// Answers no request from now on.
    package func hang() throws { try process.suspend() }

    /// Answers again.
    package func goOn() { process.resume() }

    @discardableResult
    private func command(_ line: String) throws -> String {
        try process.writeLine(line)
        guard let answer = try process.readLine(deadline: 120), !answer.hasPrefix("?") else {
            throw TestFailure("powercut-fs does not understand: \(line)")
        }
        return answer
    }
}
