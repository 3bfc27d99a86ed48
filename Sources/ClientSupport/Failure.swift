package import ArgumentParser
internal import ControlDocuments
internal import Glibc

/// How a command that fails ends the program: with a message on standard error, with `--json` an
/// error document on standard output, and with an exit status.
package enum Failure {
    /// Ends the program. `arguments`: behind its name; `program`: its root command.
    package static func end(
        _ error: any Error, _ arguments: [String], of program: any ParsableCommand.Type
    ) -> Never {
        switch error {
        case let error as ControlError:
            end(
                ErrorDocument(error), "stillpoint: \(error.message)", error.code.exitStatus,
                arguments)
        case let error as Unreachable:
            end(
                ErrorDocument(code: "not_reachable", message: error.message),
                "stillpoint: \(error.message)", .notReachable, arguments)
        default: end(parsing: error, arguments, of: program)
        }
    }

    /// What the parser of the command line throws, and what no command expects.
    private static func end(
        parsing error: any Error, _ arguments: [String], of program: any ParsableCommand.Type
    ) -> Never {
        let code = program.exitCode(for: error)
        // Help and version did not fail, and belong on standard output.
        guard code != .success else { program.exit(withError: error) }
        let isUsage = code == .validationFailure
        let hint = isUsage ? CommandNames.hint(for: arguments, of: program) : nil
        var lines = program.fullMessage(for: error).split(
            separator: "\n", omittingEmptySubsequences: false
        ).map(String.init)
        if let hint { lines.insert("       \(hint)", at: min(1, lines.count)) }
        let message = program.message(for: error) + (hint.map { ". \($0)" } ?? "")
        end(
            ErrorDocument(
                code: (isUsage ? ControlError.Code.invalid : .failed).name, message: message),
            lines.joined(separator: "\n"), isUsage ? .wrongUsage : .failed, arguments)
    }

    private static func end(
        _ document: ErrorDocument, _ text: String, _ status: ExitStatus, _ arguments: [String]
    ) -> Never {
        FileHandles.error.write(text + "\n")
        if arguments.prefix(while: { $0 != "--" }).contains("--json") { print(document) }
        Glibc.exit(status.rawValue)
    }

    private static func print(_ document: ErrorDocument) {
        do {
            let bytes = try DocumentCoding.encoder().encode(document)
            FileHandles.output.write(String(decoding: bytes, as: UTF8.self) + "\n")
        } catch { preconditionFailure("texts are written as JSON: \(error)") }
    }
}

/// The names of the commands.
enum CommandNames {
    /// `Did you mean 'NAME'?` when a command's name is mistyped in `arguments`.
    static func hint(
        for arguments: [String], of program: any ParsableCommand.Type
    ) -> String? {
        var command: any ParsableCommand.Type = program.self
        for word in arguments {
            let subcommands = command.configuration.subcommands
            if let next = subcommands.first(where: { $0._commandName == word }) {
                command = next
                continue
            }
            // Where a command is assumed when none is named, the word is one of its arguments.
            guard !word.hasPrefix("-"), command.configuration.defaultSubcommand == nil else {
                return nil
            }
            let names = subcommands.filter { $0.configuration.shouldDisplay }.map {
                $0._commandName
            }
            return nearestName(to: word, among: names + ["help"]).map { "Did you mean '\($0)'?" }
        }
        return nil
    }
}
