import ControlDocuments
import Glibc
import YAMLReading

// The configuration file of `serve`: YAML, one key for each option of the command line, named as
// the option without its dashes. What is wrong is collected and reported together, each problem
// with the file and the line.

/// A configuration file that has been read; see the head of this file.
final class ConfigurationFile {
    /// Known keys: the options of `serve` that make sense in a file.
    static let keys = [
        "allow-plaintext", "attach", "block", "control", "http", "http-hide-paths", "http-host",
        "http-token-file", "log-level", "loops", "nbd", "restart-limit", "runtime-dir", "state-dir",
        "tls", "tls-anyone", "tls-ca", "tls-cert",
        "tls-key", "tls-psk", "user",
    ]
    /// Largest file that is read.
    static let byteCountMax = 1 << 20
    /// Most aliases (`*name`). Each may stand for everything before it, so the number of values
    /// that a text stands for grows exponentially with their number.
    static let aliasCountMax = 8

    private let path: String
    private(set) var values: [String: YAMLNode] = [:]
    private var problems: [String] = []

    /// Reads the file.
    convenience init(reading path: String) throws(ControlError) {
        try self.init(parsing: try Self.text(of: path), of: path)
    }

    /// Reads the text of a file called `path`.
    init(parsing text: String, of path: String) throws(ControlError) {
        self.path = path
        if let line = Self.lineOfTooManyAliases(text) {
            throw Self.refusal(
                path,
                ["\(path):\(line): more than \(Self.aliasCountMax) aliases; write values out"])
        }
        let root: YAMLNode?
        do throws(YAMLError) {
            root = try YAMLComposer.compose(text)
        } catch {
            throw Self.refusal(path, ["\(path):\(error.line): \(error.problem)"])
        }
        guard let root, !root.isNull else { return }
        guard let mapping = root.mapping else {
            throw Self.refusal(
                path, ["\(path):\(root.line): give keys and values, like loops: 2"])
        }
        for entry in mapping {
            guard let name = entry.key.text, Self.keys.contains(name) else {
                problem(
                    entry.key,
                    "unknown option \"\(entry.key.text ?? "?")\"; known options are "
                        + Self.keys.joined(separator: ", "))
                continue
            }
            values[name] = entry.value
        }
    }

    /// Throws what was found wrong, if anything was. Said when all has been asked for.
    func finish() throws(ControlError) {
        guard problems.isEmpty else { throw Self.refusal(path, problems) }
    }

    // -- values, by key; nil when it is not there, or wrong

    /// A text.
    func text(_ key: String) -> String? { values[key].flatMap { text($0, of: key) } }

    /// An absolute path: a service manager's working directory is arbitrary.
    func path(_ key: String) -> String? { values[key].flatMap { path($0, of: key) } }

    /// A number of a range.
    func number(_ key: String, _ range: ClosedRange<Int>) -> Int? {
        values[key].flatMap { number($0, of: key, range) }
    }

    /// A number that is not negative.
    func whole(_ key: String, _ range: ClosedRange<Int>) -> UInt64? {
        number(key, range).map(UInt64.init)
    }

    /// Yes or no.
    func flag(_ key: String) -> Bool? { values[key].flatMap { flag($0, of: key) } }

    /// One text or a list of them.
    func texts(_ key: String) -> [String]? {
        guard let node = values[key] else { return nil }
        guard let list = node.sequence else { return text(node, of: key).map { [$0] } }
        return list.compactMap { text($0, of: key) }
    }

    /// One of a few choices.
    func choice<Choice>(_ key: String, _ choices: [Choice]) -> Choice?
    where Choice: RawRepresentable<String> {
        guard let node = values[key], let text = text(node, of: key) else { return nil }
        if let choice = Choice(rawValue: text) { return choice }
        problem(
            node,
            "\(key): \"\(text)\" is not one of \(choices.map(\.rawValue).joined(separator: ", "))")
        return nil
    }

    /// Checks a value that was read by `body`, and says where it stands when it does not fit.
    func checked<Value>(_ key: String, _ body: () throws(ControlError) -> Value?) -> Value? {
        do throws(ControlError) {
            return try body()
        } catch {
            if let node = values[key] { problem(node, "\(key): \(error.message)") }
            return nil
        }
    }

    /// The devices: `NAME: PATH`, or `NAME:` with `path` and options of `device attach`; or a
    /// list of `NAME=PATH`.
    func attachRequests(_ key: String) -> [AttachRequest]? {
        guard let node = values[key] else { return nil }
        if let list = node.sequence {
            return list.compactMap { item in
                guard let text = text(item, of: key) else { return nil }
                guard let equals = text.firstIndex(of: "=") else {
                    problem(item, "\(key): \"\(text)\": give NAME=PATH")
                    return nil
                }
                return request(
                    item, name: String(text[..<equals]),
                    path: String(text[text.index(after: equals)...]))
            }
        }
        guard let devices = node.mapping else {
            problem(node, "\(key): give devices as NAME: PATH")
            return nil
        }
        return devices.compactMap { entry in
            let value = entry.value
            guard let name = text(entry.key, of: key) else { return nil }
            guard let options = value.mapping else {
                return path(value, of: name).flatMap { request(value, name: name, path: $0) }
            }
            return device(options, name: name, at: value)
        }
    }

    private func device(
        _ options: [YAMLEntry], name: String, at place: YAMLNode
    ) -> AttachRequest? {
        var origin: String?
        var isReadOnly = false
        var sectorBytes: UInt32?
        var isExclusive = false
        for entry in options {
            let value = entry.value
            switch entry.key.text {
            case "path": origin = path(value, of: "path")
            case "exclusive": isExclusive = flag(value, of: "exclusive") ?? false
            case "read-only": isReadOnly = flag(value, of: "read-only") ?? false
            case "sector-size":
                sectorBytes = sectorSize(value)
            default:
                problem(
                    entry.key,
                    "device \(name): unknown option \"\(entry.key.text ?? "?")\"; known options are "
                        + "exclusive, path, read-only, sector-size")
            }
        }
        guard let origin else {
            problem(place, "device \(name): its path is missing")
            return nil
        }
        return request(
            place, name: name, path: origin, isReadOnly: isReadOnly, sectorBytes: sectorBytes,
            isExclusive: isExclusive)
    }

    private func request(
        _ place: YAMLNode, name: String, path: String, isReadOnly: Bool = false,
        sectorBytes: UInt32? = nil, isExclusive: Bool = false
    ) -> AttachRequest? {
        do throws(ControlError) {
            return try AttachRequest(
                name: name, path: path, isReadOnly: isReadOnly, sectorBytes: sectorBytes,
                isExclusive: isExclusive)
        } catch {
            problem(place, error.message)
            return nil
        }
    }

    // -- helpers

    func text(_ node: YAMLNode, of key: String) -> String? {
        guard let text = node.text, !node.isNull else {
            problem(node, "\(key): give one value")
            return nil
        }
        return text
    }

    private func path(_ node: YAMLNode, of key: String) -> String? {
        guard let text = text(node, of: key) else { return nil }
        guard text.hasPrefix("/") else {
            problem(node, "\(key): \"\(text)\" is not an absolute path")
            return nil
        }
        return text
    }

    /// In decimal digits: YAML's other forms (`1_0`, `0x10`, `9:59`) mean nothing for an option.
    private func number(
        _ node: YAMLNode, of key: String, _ range: ClosedRange<Int>
    ) -> Int? {
        guard let number = node.text.flatMap({ Int($0) }), range.contains(number) else {
            problem(
                node, "\(key): give a whole number from \(range.lowerBound) to \(range.upperBound)")
            return nil
        }
        return number
    }

    private func sectorSize(_ node: YAMLNode) -> UInt32? {
        guard let size = node.text.flatMap({ UInt32($0) }), [512, 4096].contains(size) else {
            problem(node, "sector-size: give 512 or 4096")
            return nil
        }
        return size
    }

    func flag(_ node: YAMLNode, of key: String) -> Bool? {
        guard let flag = node.flag else {
            problem(node, "\(key): give true or false")
            return nil
        }
        return flag
    }

    func problem(_ node: YAMLNode, _ message: String) {
        problems.append("\(path):\(node.line): \(message)")
    }

    private static func refusal(_ path: String, _ problems: [String]) -> ControlError {
        ControlError(.invalid, problems.joined(separator: "\n"))
    }

    /// The line with one alias too many; what only looks like one, in a comment or a quoted text,
    /// counts too.
    private static func lineOfTooManyAliases(_ text: String) -> Int? {
        var line = 1
        var count = 0
        var isAfterStar = false
        for byte in text.utf8 {
            switch byte {
            case UInt8(ascii: "\n"): line += 1
            case UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "_"), UInt8(ascii: "-"):
                if isAfterStar { count += 1 }
            default: break
            }
            if count > aliasCountMax { return line }
            isAfterStar = byte == UInt8(ascii: "*")
        }
        return nil
    }

    private static func text(of path: String) throws(ControlError) -> String {
        let file = fopen(path, "re")
        let reason = errno
        guard let file else {
            throw ControlError(
                .invalid,
                "configuration file \(path): \(String(cString: strerror(reason)))")
        }
        defer { fclose(file) }
        var bytes = [UInt8](repeating: 0, count: byteCountMax + 1)
        let count = fread(&bytes, 1, bytes.count, file)
        guard ferror(file) == 0, count <= byteCountMax,
            let text = String(validating: bytes[..<count], as: UTF8.self)
        else {
            throw ControlError(
                .invalid,
                "configuration file \(path) is not a UTF-8 text of at most \(byteCountMax) bytes")
        }
        return text
    }
}
