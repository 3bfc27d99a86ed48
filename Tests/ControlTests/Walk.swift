import Foundation
import TestSupport
import Testing

/// A walk through commands with one service: what each does, says and prints is checked in text
/// and with `--json`, and the JSON is kept for its schema to be held against it.
final class Walk {
    let harness: ControlHarness
    private(set) var cases: [PythonTools.Case] = []
    /// Commands that have succeeded, and commands that have failed.
    private(set) var done: Set<String> = []
    private(set) var refused: Set<String> = []

    init(_ harness: ControlHarness) { self.harness = harness }

    /// A command that must succeed, and then once more with `--json` unless it can be done only
    /// once (`jsonArguments` are what the second time takes).
    func does(
        _ arguments: [String], json jsonArguments: [String]? = nil, schema: String,
        isList: Bool = false, says words: String = "",
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let text = try run(arguments)
        #expect(
            text.status == 0, "\(arguments): \(text.diagnostics)", sourceLocation: sourceLocation)
        #expect(text.diagnostics == "", "\(arguments)", sourceLocation: sourceLocation)
        #expect(
            words.isEmpty || text.output.contains(words), "\(arguments): \(text.output)",
            sourceLocation: sourceLocation)
        let second = jsonArguments ?? arguments
        let json = try run(second + ["--json"])
        #expect(json.status == 0, "\(second): \(json.diagnostics)", sourceLocation: sourceLocation)
        let document = try JSONSerialization.jsonObject(with: Data(json.output.utf8))
        cases.append(
            PythonTools.Case(
                second.joined(separator: " "), schema, isList: isList, document))
        done.insert(Self.command(of: arguments))
    }

    /// A command that must fail with `status`, in text and with `--json`, say `words`, print
    /// nothing on standard output, or an error document, and speak to people.
    func fails(
        _ arguments: [String], _ status: Int32, says words: String,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        for extra in [[], ["--json"]] {
            let outcome = try run(arguments + extra)
            #expect(
                outcome.status == status, "\(arguments + extra): \(outcome.diagnostics)",
                sourceLocation: sourceLocation)
            if extra.isEmpty {
                #expect(outcome.output == "", "\(arguments)", sourceLocation: sourceLocation)
            } else {
                #expect(
                    outcome.errorCode != nil, "\(arguments): \(outcome.output)",
                    sourceLocation: sourceLocation)
                cases.append(
                    PythonTools.Case(
                        arguments.joined(separator: " "), "Error",
                        try JSONSerialization.jsonObject(with: Data(outcome.output.utf8))))
            }
            #expect(
                outcome.diagnostics.contains(words),
                "\(arguments): \(outcome.diagnostics) does not say \(words)",
                sourceLocation: sourceLocation)
            Self.expectForPeople(outcome.diagnostics, sourceLocation)
        }
        refused.insert(Self.command(of: arguments))
    }

    /// No stack trace, no bare number, no name of a type.
    private static func expectForPeople(_ text: String, _ sourceLocation: SourceLocation) {
        for trace in [
            "Fatal error", "Optional(", "Error Domain", "DecodingError", "NIO", ".swift:",
        ] {
            #expect(!text.contains(trace), "\(text)", sourceLocation: sourceLocation)
        }
        #expect(text.hasSuffix("\n"), "\(text)", sourceLocation: sourceLocation)
        let message = text.dropFirst(text.hasPrefix("stillpoint: ") ? 12 : 0)
        #expect(message.split(separator: " ").count >= 4, "\(text)", sourceLocation: sourceLocation)
        #expect(
            text.firstMatch(of: /^stillpoint: errno \d+$/) == nil, "\(text)",
            sourceLocation: sourceLocation)
    }

    private func run(_ arguments: [String]) throws -> Command.Outcome {
        try Command.run(
            TestService.binary, arguments + ["--control", harness.service.controlPath],
            deadline: 300)
    }

    /// The words of `arguments` that name the command.
    static func command(of arguments: [String]) -> String {
        let groups = ["device", "snapshot", "checkpoint", "block"]
        guard let first = arguments.first else { return "" }
        if groups.contains(first) { return arguments.prefix(2).joined(separator: " ") }
        return arguments.prefix(2) == ["changes", "mark"] ? "changes mark" : first
    }

    /// Every command of the program, from its own description of itself.
    static func commands() throws -> Set<String> {
        let dump = try Command.check(TestService.binary, ["--experimental-dump-help"])
        let tree = try JSONSerialization.jsonObject(with: Data(dump.utf8)) as? [String: Any]
        func walk(_ command: [String: Any], _ path: [String]) -> [String] {
            guard command["shouldDisplay"] as? Bool ?? true else { return [] }
            let below = (command["subcommands"] as? [[String: Any]] ?? []).filter {
                $0["commandName"] as? String != "help"
            }
            guard below.isEmpty else {
                return below.flatMap {
                    walk($0, path + [$0["commandName"] as? String ?? ""])
                }
            }
            return [Walk.command(of: path)]
        }
        return Set(walk(tree?["command"] as? [String: Any] ?? [:], []))
    }
}
