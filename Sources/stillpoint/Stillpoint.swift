import ArgumentParser
import ClientCommands
import ClientSupport
import Control
import ControlDocuments
import CopyCommands
import CopyPlanning
import Glibc
import HeldSnapshots
import WriterLimits

/// The program: client commands, and `serve`.
@main
struct Stillpoint: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "stillpoint",
        abstract: "Snapshots and changed-block tracking for any block device, in user space.",
        discussion: """
            Examples:
              stillpoint serve --attach vm1=/srv/vm1.img
              stillpoint status
              stillpoint device attach data /dev/sdb1
              stillpoint snapshot create --device data --name nightly
              stillpoint changes data --since nightly

            Exit status: 0 done; 1 failed; 2 wrong usage; 3 not found; 4 busy or conflicting \
            state; 5 refused because what changed is not known; 6 snapshot corrupted; 7 service not \
            reachable.
            """,
        version: stillpointVersion,
        subcommands: [
            Serve.self, Status.self, Probe.self, DeviceCommand.self, SnapshotCommand.self,
            CheckpointCommand.self, ChangesCommand.self, CopyCommand.self, CopiesCommand.self,
            VerifyCommand.self, RestoreCommand.self, RunCommand.self, BlockCommand.self,
            EventsCommand.self, TopCommand.self, Thaw.self, GuardianCommand.self,
            ErrandCommand.self,
            SnapshotHolderCommand.self, WriterLimitCommand.self,
        ])

    /// Parses and runs, and ends the process with the exit status that scripts rely on.
    static func main() async {
        do {
            try checkArguments()
            var command = try isOfService ? parseAsRoot() : await asyncParseAsRoot()
            if var command = command as? any AsyncParsableCommand {
                try await command.run()
            } else {
                try command.run()
            }
        } catch let error as CopyError {
            end(ControlError(error))
        } catch { end(error) }
    }

    private static func end(_ error: any Error) -> Never {
        Failure.end(error, Array(CommandLine.arguments.dropFirst()), of: Self.self)
    }

    /// Whether the service started this process for itself. Such a process stays on its first
    /// thread, which carries its name, and starts no other: after waiting for the parser another
    /// thread would continue.
    private static var isOfService: Bool {
        [GuardianCommand.self, ErrandCommand.self].contains { (command: any ParsableCommand.Type) in
            command.configuration.commandName == CommandLine.arguments.dropFirst().first
        }
    }

    /// Arguments are taken as text; bytes that are not UTF-8 would be replaced, and another file
    /// written than the one that was named.
    private static func checkArguments() throws(ControlError) {
        for index in 0..<Int(CommandLine.argc) {
            guard let argument = CommandLine.unsafeArgv[index] else { continue }
            let bytes = UnsafeBufferPointer(start: argument, count: strlen(argument))
            guard String(validating: bytes.lazy.map { UInt8(bitPattern: $0) }, as: UTF8.self) == nil
            else { continue }
            let shown = bytes.map { byte in
                byte >= 0x20 && byte < 0x7F
                    ? String(UnicodeScalar(UInt8(bitPattern: byte)))
                    : "\\x" + String(UInt8(bitPattern: byte), radix: 16)
            }
            throw ControlError(
                .invalid,
                "the argument \"\(shown.joined())\" is not UTF-8, which names have to be; rename the "
                    + "file, or name it through a symbolic link")
        }
    }
}
