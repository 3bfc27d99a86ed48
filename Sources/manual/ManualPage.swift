/// A manual page of section 1, in the man macros of roff.
struct ManualPage {
    /// The page's name, `stillpoint-snapshot-create`.
    let name: String
    private(set) var text = ""

    /// The pages of a command and all under it.
    static func pages(of command: HelpDump.Command, under path: [String] = []) -> [ManualPage] {
        guard command.shouldDisplay ?? true, command.commandName != "help" else { return [] }
        let own = ManualPage(of: command, path: path + [command.commandName])
        let below = (command.subcommands ?? []).flatMap {
            pages(of: $0, under: path + [command.commandName])
        }
        return [own] + below
    }

    private init(of command: HelpDump.Command, path: [String]) {
        name = path.joined(separator: "-")
        let arguments = (command.arguments ?? []).filter(\.shouldDisplay)
        let (description, examples) = Self.split(command.discussion ?? "")
        let notes = ManualNotes.of(name)
        let subcommands = (command.subcommands ?? []).filter {
            $0.commandName != "help" && $0.shouldDisplay ?? true
        }
        text = ".TH \(name.uppercased()) 1 \"\" \"Stillpoint\" \"Stillpoint\"\n"
        section("NAME")
        line("\(Self.escaped(name)) \\- \(Self.escaped(Self.phrase(command.abstract ?? "")))")
        section("SYNOPSIS")
        line(Self.synopsis(path, arguments, hasSubcommands: !subcommands.isEmpty))
        section("DESCRIPTION")
        line(Self.escaped(command.abstract ?? ""))
        for paragraph in description.split(separator: "\n\n") + notes.description.map({ $0[...] }) {
            line(".PP\n" + Self.escaped(String(paragraph)))
        }
        if !subcommands.isEmpty {
            section("COMMANDS")
            for subcommand in subcommands {
                line(".TP\n.BR \(Self.escaped(name))\\-\(subcommand.commandName) (1)")
                line(Self.escaped(subcommand.abstract ?? ""))
            }
        }
        options(arguments)
        for own in notes.sections { section(own) }
        if !examples.isEmpty {
            section("EXAMPLES")
            line(".nf")
            for example in examples { line(Self.escaped(example)) }
            line(".fi")
        }
        exitStatus(notes)
        environment(notes)
        files(notes)
        seeAlso((1..<path.count).map { path[..<$0].joined(separator: "-") } + notes.seeAlso)
    }

    // -- sections

    private mutating func options(_ arguments: [HelpDump.Argument]) {
        guard !arguments.isEmpty else { return }
        section("OPTIONS")
        for argument in arguments {
            let value = argument.valueName ?? ""
            let names = (argument.names ?? []).map { "\\fB\(Self.escaped($0.text))\\fR" }
                .joined(separator: ", ")
            let tag =
                switch argument.kind {
                case "positional": "\\fI\(Self.escaped(value.uppercased()))\\fR"
                case "flag": names
                default: "\(names) \\fI\(Self.escaped(value))\\fR"
                }
            line(".TP\n\(tag)")
            var help = argument.abstract ?? ""
            if let preset = argument.defaultValue { help += " Default: \(preset)." }
            line(Self.escaped(help))
        }
    }

    private mutating func section(_ own: ManualNotes.Section) {
        section(own.title)
        for paragraph in own.paragraphs {
            guard paragraph.contains("\t") else {
                line(".PP\n" + Self.escaped(paragraph))
                continue
            }
            for entry in paragraph.split(separator: "\n") {
                let parts = entry.split(separator: "\t", maxSplits: 1).map {
                    Self.escaped(String($0))
                }
                line(".TP\n.B \(parts[0])\n\(parts[1])")
            }
        }
    }

    private mutating func exitStatus(_ notes: ManualNotes) {
        section("EXIT STATUS")
        let codes = [
            "Done.", "Failed.", "Wrong usage.", "Not found.", "Busy or conflicting state.",
            "Refused because what changed is not known: make a full backup.",
            "The snapshot is corrupted.", "The service cannot be reached.",
        ]
        for (code, meaning) in codes.enumerated() {
            line(".TP\n.B \(code)\n\(Self.escaped(notes.exitStatus[code] ?? meaning))")
        }
    }

    private mutating func environment(_ notes: ManualNotes) {
        section("ENVIRONMENT")
        let common = [
            ("STILLPOINT_CONTROL", "The control socket of the service. --control overrides it."),
            ("NO_COLOR", "If set, nothing is coloured, not even on a terminal."),
        ]
        for (name, meaning) in notes.environment + common {
            line(".TP\n.B \(Self.escaped(name))\n\(Self.escaped(meaning))")
        }
    }

    private mutating func files(_ notes: ManualNotes) {
        section("FILES")
        let common = [
            ("/run/stillpoint/control.sock", "The control socket of a service that runs as root."),
            ("/run/stillpoint/nbd.sock", "Its NBD socket."),
            (
                "/var/lib/stillpoint",
                "Its state: attached devices, change histories, checkpoints, records of copies."
            ),
            (
                "/etc/stillpoint/stillpoint.yaml",
                "The configuration file that the packaged unit reads."
            ),
            ("/usr/share/doc/stillpoint", "The guides."),
        ]
        for (path, meaning) in notes.files + common {
            line(".TP\n.I \(Self.escaped(path))\n\(Self.escaped(meaning))")
        }
        line(".PP")
        line("A service of another user keeps its files under XDG_RUNTIME_DIR and XDG_STATE_HOME.")
    }

    private mutating func seeAlso(_ pages: [String]) {
        guard !pages.isEmpty else { return }
        section("SEE ALSO")
        let references = pages.map { page in
            let parts = page.dropLast(page.hasSuffix(")") ? 1 : 0).split(separator: "(")
            return ".BR \(Self.escaped(String(parts[0]))) (\(parts.count > 1 ? parts[1] : "1"))"
        }
        line(references.joined(separator: " ,\n"))
    }

    private mutating func section(_ title: String) { line(".SH \(title)") }

    private mutating func line(_ text: String) { self.text += text + "\n" }

    // -- pieces

    private static func synopsis(
        _ path: [String], _ arguments: [HelpDump.Argument], hasSubcommands: Bool
    ) -> String {
        var pieces = ["\\fB\(escaped(path.joined(separator: " ")))\\fR"]
        if hasSubcommands { pieces.append("\\fICOMMAND\\fR") }
        for argument in arguments {
            let value = "\\fI\(escaped((argument.valueName ?? "").uppercased()))\\fR"
            let name = argument.names?.first { $0.kind == "long" } ?? argument.names?.first
            let tag = "\\fB\(escaped(name?.text ?? ""))\\fR"
            var piece =
                switch argument.kind {
                case "positional": value
                case "flag": tag
                default: "\(tag) \(value)"
                }
            if argument.isOptional { piece = "[\(piece)]" }
            if argument.isRepeating { piece += "..." }
            pieces.append(piece)
        }
        return pieces.joined(separator: " ")
    }

    /// The prose of a discussion, and the lines of its examples.
    private static func split(_ discussion: String) -> (prose: String, examples: [String]) {
        var prose: [String] = []
        var examples: [String] = []
        var isExample = false
        for line in discussion.split(separator: "\n", omittingEmptySubsequences: false) {
            if line == "Examples:" || line == "Example:" {
                isExample = true
            } else if isExample, line.hasPrefix("  ") {
                examples.append(String(line.dropFirst(2)))
            } else {
                isExample = false
                prose.append(String(line))
            }
        }
        return (prose.joined(separator: "\n"), examples)
    }

    /// A sentence as the phrase that manual pages have in their NAME line.
    private static func phrase(_ sentence: String) -> String {
        guard let first = sentence.first else { return "" }
        let isAcronym = sentence.dropFirst().first?.isUppercase ?? false
        let start = isAcronym ? String(first) : first.lowercased()
        let rest = sentence.dropFirst()
        return start + (rest.hasSuffix(".") ? rest.dropLast() : rest)
    }

    /// Text in which roff sees no commands.
    private static func escaped(_ text: String) -> String {
        var result = ""
        for (place, line) in text.split(separator: "\n", omittingEmptySubsequences: false)
            .enumerated()
        {
            if place > 0 { result += "\n" }
            if line.hasPrefix(".") || line.hasPrefix("'") { result += "\\&" }
            for letter in line {
                switch letter {
                case "\\": result += "\\e"
                case "-": result += "\\-"
                case "'": result += "\\(aq"
                case "`": result += "\\(ga"
                default: result.append(letter)
                }
            }
        }
        return result
    }
}
