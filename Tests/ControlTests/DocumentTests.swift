import Foundation
import TestSupport
import Testing

/// What README and guides show is run by tests: no command line can be added that none runs.
@Suite struct `The documents` {
    /// Where commands run: in the tests of this repository, or somewhere else.
    private enum Place {
        case tests
        /// What runs them, and what this machine lacks.
        case elsewhere(String)
    }

    /// The blocks of commands by document and label.
    private static let places: [String: [String: Place]] = [
        "README.md": [
            "": .tests, "protect": .tests, "live": .tests,
            "build": .elsewhere("a build of everything: .ci/run and whoever follows the README"),
            "package": .elsewhere("a fresh Debian: make test-package"),
            "systemd": .elsewhere("systemd: make test-systemd"),
        ],
        "docs/benchmarks.md": ["bench": .elsewhere("an idle machine and half an hour")],
        "docs/client.md": ["": .tests, "nbdinfo": .tests],
        "docs/copies.md": [
            "": .tests, "restic": .tests, "borg": .tests, "ceph": .tests, "nbdkit": .tests,
            "qcow2": .tests,
        ],
        "docs/databases.md": ["backup": .tests, "restore": .tests],
        "docs/filesystems.md": [
            "": .tests, "xfs": .tests,
            "lvm": .elsewhere("the device mapper: make test-systemd"),
            "lvmdevices": .elsewhere("LVM with a devices file, as RHEL has it"),
        ],
        "docs/interface.md": ["nbdinfo": .tests],
        "docs/live.md": [
            "": .tests, "copies": .tests,
            "systemd early": .elsewhere("systemd and a reboot: make test-systemd"),
        ],
        "docs/migrating.md": ["": .tests],
        "docs/monitoring.md": ["": .tests],
        "docs/releasing.md": ["release": .elsewhere("a release: the checklist itself")],
        "docs/remote.md": ["certificates": .tests, "keys": .tests, "ssh": .tests],
        "docs/snapshots.md": ["": .tests],
        "docs/virtual-machines.md": [
            "": .tests, "qemu": .tests, "socket": .tests, "backup": .tests,
            "/etc/stillpoint/freeze-vm1": .tests,
            "systemd vm-socket": .elsewhere("systemd: make test-systemd"),
            "nbd": .elsewhere("the kernel's NBD client: make test-systemd"),
        ],
    ]

    @Test func `have no commands that no test runs`() throws {
        for guide in try Guide.all() {
            let known = Self.places[guide.path] ?? [:]
            for block in guide.blocks where block.language == "sh" {
                switch known[block.label] {
                case .tests: break
                case .elsewhere(let reason):
                    print("skipped here: \(guide.path), line \(block.line): needs \(reason)")
                case nil:
                    Issue.record("\(guide.path), line \(block.line): no test runs this block")
                }
            }
        }
    }

    /// Commands stand in blocks that say so, where the test above finds them.
    @Test func `show commands as such`() throws {
        let commands = /^ *(stillpoint|make|apt|systemctl|u?mount|curl|qemu-\S+) +-{0,2}[\w"'$.\/]/
        for guide in try Guide.all() {
            for block in guide.blocks where block.language != "sh" {
                for line in block.text.split(separator: "\n") {
                    #expect(
                        line.firstMatch(of: commands) == nil,
                        "\(guide.path), line \(block.line): `\(line)` is not in a block of `sh`")
                }
            }
            for line in guide.prose where line.text.hasPrefix("    ") {
                let text = line.text.dropFirst(4)
                #expect(
                    text.firstMatch(of: commands) == nil,
                    "\(guide.path), line \(line.number): `\(text)` is not in a block of `sh`")
            }
        }
    }

    /// `stillpoint COMMAND --option` in a sentence or a table names what there is.
    @Test(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
    func `name commands and options that the program has`() throws {
        let dump = try Command.check(TestService.binary, ["--experimental-dump-help"])
        let tree = try JSONSerialization.jsonObject(with: Data(dump.utf8)) as? [String: Any]
        let root = try #require(tree?["command"] as? [String: Any])
        var count = 0
        for guide in try Guide.all() {
            for line in guide.prose {
                for match in line.text.matches(of: /`stillpoint ([^`]*)`/) {
                    count += 1
                    let words = match.1.split(separator: " ").map(String.init)
                    let fault = Self.fault(words, in: root)
                    #expect(fault == nil, "\(guide.path), line \(line.number): \(fault ?? "")")
                }
            }
        }
        #expect(count > 30)
    }

    /// The file that the package installs explains every key.
    @Test(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
    func `list every option of the service in the packaged configuration`() throws {
        let text = try String(
            contentsOfFile: PythonTools.repository + "/packaging/stillpoint.yaml", encoding: .utf8)
        let keys = Set(text.matches(of: /(?m)^#([a-z-]+):/).map { String($0.1) })
        let help = try Command.check(TestService.binary, ["serve", "--help"])
        let options = Set(help.matches(of: /(?m)^ +--([a-z-]+)/).map { String($0.1) })
        #expect(options.subtracting(keys) == ["config", "check", "version"])
        #expect(keys.subtracting(options) == ["block"])
    }

    /// What a command line names that a command does not have; nil when it has all.
    private static func fault(_ words: [String], in command: [String: Any]) -> String? {
        var words = words[...]
        var command = command
        while let word = words.first, !word.hasPrefix("-") {
            guard let next = subcommand(word, of: command) else {
                // The only one that can be left out.
                if let show = subcommand("show", of: command), name(of: command) == "changes" {
                    command = show
                } else if command["subcommands"] != nil {
                    return "there is no command `\(word)`"
                }
                break
            }
            command = next
            words = words.dropFirst()
        }
        let arguments = command["arguments"] as? [[String: Any]] ?? []
        let names = arguments.flatMap { $0["names"] as? [[String: Any]] ?? [] }
            .compactMap { $0["name"] as? String }
        for word in words where word.contains("--") {
            let name = word.drop { $0 != "-" }.dropFirst(2).prefix { $0.isLetter || $0 == "-" }
            guard names.contains(String(name)) || name.isEmpty else {
                return "`\(Self.name(of: command))` has no option --\(name)"
            }
        }
        return nil
    }

    private static func name(of command: [String: Any]) -> String {
        command["commandName"] as? String ?? ""
    }

    private static func subcommand(_ name: String, of command: [String: Any]) -> [String: Any]? {
        (command["subcommands"] as? [[String: Any]])?.first { Self.name(of: $0) == name }
    }
}
