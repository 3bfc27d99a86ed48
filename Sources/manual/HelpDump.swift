/// What a program says about itself with `--experimental-dump-help`.
struct HelpDump: Decodable {
    let command: Command

    /// A command with its arguments and the commands under it.
    struct Command: Decodable {
        let commandName: String
        let abstract: String?
        let discussion: String?
        let arguments: [Argument]?
        let subcommands: [Command]?
        let shouldDisplay: Bool?
    }

    /// An argument, option or flag.
    struct Argument: Decodable {
        let kind: String
        let names: [Name]?
        let abstract: String?
        let valueName: String?
        let defaultValue: String?
        let isOptional: Bool
        let isRepeating: Bool
        let shouldDisplay: Bool
    }

    /// A name of an option.
    struct Name: Decodable {
        let kind: String
        let name: String

        /// As it is typed.
        var text: String { (kind == "long" ? "--" : "-") + name }
    }
}
