import Foundation
import ServiceState
import TestSupport
import Testing

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Manual pages and completions` {
    private let share: TemporaryDirectory

    init() throws { share = try TemporaryDirectory() }

    /// Every command there is, from the program's own description of itself.
    private static func commands() throws -> [[String]] {
        let dump = try Command.check(TestService.binary, ["--experimental-dump-help"])
        let tree = try JSONSerialization.jsonObject(with: Data(dump.utf8)) as? [String: Any]
        func walk(_ command: [String: Any], _ path: [String]) -> [[String]] {
            let name = command["commandName"] as? String ?? ""
            guard name != "help", command["shouldDisplay"] as? Bool ?? true else { return [] }
            let below = command["subcommands"] as? [[String: Any]] ?? []
            return [path + [name]] + below.flatMap { walk($0, path + [name]) }
        }
        return walk(tree?["command"] as? [String: Any] ?? [:], [])
    }

    @Test(.enabled(if: Command.exists("man"), "man is not installed"))
    func `there is a page for every command, that man can show`() throws {
        try Command.check(
            TestService.built("manual"), [TestService.binary, share.path("man/man1")])
        let commands = try Self.commands()
        #expect(commands.count > 15)
        for path in commands {
            let name = path.joined(separator: "-")
            let outcome = try Command.run(
                "man", ["--warnings=w", "-P", "cat", name],
                environment: ["MANPATH": share.path("man"), "MANWIDTH": "80", "LC_ALL": "C.UTF-8"])
            #expect(outcome.status == 0, "\(name): \(outcome.diagnostics)")
            #expect(outcome.diagnostics == "", "\(name)")
            let sections = [
                "NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "FILES",
                "SEE ALSO",
            ]
            for section in sections {
                #expect(outcome.output.contains("\n\(section)\n"), "\(name) has no \(section)")
            }
            // Groups of commands need no example; each command has one that begins with itself.
            let isGroup = commands.contains { $0.count > path.count && $0.starts(with: path) }
            if !isGroup {
                let command = path.joined(separator: " ")
                #expect(outcome.output.contains("\nEXAMPLES\n"), "\(name) has no example")
                #expect(outcome.output.contains("       \(command)"), "\(name)")
            }
        }
    }

    @Test func `the web page follows every kind of event`() throws {
        let script = try String(
            contentsOfFile: PythonTools.repository + "/Sources/PageFiles/files/service.js",
            encoding: .utf8)
        let list = try #require(script.firstMatch(of: /static kinds = \[([^\]]*)\]/)).1
        let kinds = list.matches(of: /"([^"]+)"/).map { String($0.1) }
        #expect(Set(kinds) == Set(EventKind.allCases.map(\.rawValue)))
        #expect(kinds.count == Set(kinds).count)
    }

    @Test(.enabled(if: Command.exists("man"), "man is not installed"))
    func `the page of events names every event, and other pages are there`() throws {
        try Command.check(
            TestService.built("manual"), [TestService.binary, share.path("man/man1")])
        func page(_ name: String) throws -> String {
            try String(contentsOfFile: share.path("man/man1/\(name).1"), encoding: .utf8)
        }
        let events = try page("stillpoint-events")
        for kind in EventKind.allCases {
            let name = kind.rawValue.replacingOccurrences(of: "-", with: "\\-")
            #expect(events.contains(name), "\(kind.rawValue)")
        }
        let pages = try Set(
            Self.commands().map { $0.joined(separator: "-") })
        for name in pages {
            for match in try page(name).matches(of: /\.BR (stillpoint\S*) \(1\)/) {
                let other = match.1.replacingOccurrences(of: "\\-", with: "-")
                #expect(pages.contains(other), "\(name) names \(other)")
            }
        }
    }

    @Test func `every command's help fits a terminal and has an example`() throws {
        for path in try Self.commands() {
            let outcome = try Command.run(
                TestService.binary, Array(path.dropFirst()) + ["--help"],
                environment: ["COLUMNS": "80"])
            #expect(outcome.status == 0)
            #expect(outcome.output.contains("USAGE: " + path.prefix(2).joined(separator: " ")))
            let widest = outcome.output.split(separator: "\n").map(\.count).max() ?? 0
            #expect(widest <= 80, "\(path): \(widest) columns")
        }
    }

    @Test func `bash completes commands and options`() throws {
        try Command.check(
            PythonTools.repository + "/Scripts/install-completions",
            [TestService.binary, share.root])
        let script = share.path("bash-completion/completions/stillpoint")
        func complete(_ words: String...) throws -> [String] {
            let line = words.map { "'\($0)'" }.joined(separator: " ")
            let text = """
                source \(script)
                COMP_WORDS=(\(line)); COMP_CWORD=\(words.count - 1)
                COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}
                _stillpoint stillpoint "${COMP_WORDS[COMP_CWORD]}" ''
                printf '%s\\n' "${COMPREPLY[@]}"
                """
            return try Command.check("bash", ["-c", text]).split(separator: "\n").map(String.init)
        }
        #expect(try complete("stillpoint", "sna").contains("snapshot"))
        let below = try complete("stillpoint", "snapshot", "")
        for word in ["create", "take", "destroy", "append-storage"] {
            #expect(below.contains(word), "\(below)")
        }
        #expect(try complete("stillpoint", "snapshot", "create", "--on").contains("--on-overflow"))
        for file in ["zsh/site-functions/_stillpoint", "fish/vendor_completions.d/stillpoint.fish"]
        {
            let text = try String(contentsOfFile: share.path(file), encoding: .utf8)
            #expect(text.contains("append-storage"))
        }
    }
}
