import Foundation
import TestSupport

/// The keys of a JSON document, as `docs/interface.md` lists them: `a, b?, c[], d{e, f[{g}]}`.
struct KeyTree {
    struct Key {
        let name: String
        /// It may be null.
        let isOptional: Bool
        let isList: Bool
        let isObject: Bool
        let children: [Key]
    }

    let keys: [Key]

    /// Reads a list of keys.
    init(_ text: String) throws {
        var rest = text[...]
        keys = try Self.keys(&rest)
        guard rest.isEmpty else { throw TestFailure("\(text): \(rest) is left") }
    }

    /// The trees of the section `## JSON keys`, by what they describe.
    static func documented() throws -> [String: KeyTree] {
        let path = PythonTools.repository + "/docs/interface.md"
        let text = try String(contentsOfFile: path, encoding: .utf8)
        guard let start = text.range(of: "## JSON keys\n") else {
            throw TestFailure("\(path) has no section of JSON keys")
        }
        let section = text[start.upperBound...].prefix(upTo: "\n## ")
        var trees: [String: KeyTree] = [:]
        for line in section.split(separator: "\n") where line.hasPrefix("- ") {
            let parts = line.dropFirst(2).split(separator: ": `")
            guard parts.count == 2, parts[1].hasSuffix("`") else {
                throw TestFailure("\(line) names no keys")
            }
            trees[String(parts[0])] = try KeyTree(String(parts[1].dropLast()))
        }
        return trees
    }

    /// What `document` lacks, or has of another kind, as paths.
    func missing(in document: [String: Any]) -> [String] {
        Self.missing(keys, in: document, at: "")
    }

    private static func missing(
        _ keys: [Key], in document: [String: Any], at place: String
    ) -> [String] {
        keys.flatMap { key -> [String] in
            let path = place + key.name
            switch document[key.name] {
            case nil: return [path]
            case is NSNull: return key.isOptional ? [] : ["\(path) is null"]
            case let list as [Any]:
                guard key.isList else { return ["\(path) is a list"] }
                guard key.isObject, !key.children.isEmpty else { return [] }
                return list.flatMap { item in
                    (item as? [String: Any]).map { missing(key.children, in: $0, at: path + ".") }
                        ?? ["\(path) holds no objects"]
                }
            case let object as [String: Any]:
                guard key.isObject, !key.isList else { return ["\(path) is an object"] }
                return missing(key.children, in: object, at: path + ".")
            case .some:
                return key.isList || (key.isObject && !key.isOptional) ? ["\(path) is a value"] : []
            }
        }
    }

    private static func keys(_ rest: inout Substring) throws -> [Key] {
        var keys: [Key] = []
        while let first = rest.first, first != "}", first != "]" {
            let name = rest.prefix { $0.isLetter || $0 == "_" }
            guard !name.isEmpty else { throw TestFailure("a key at \(rest)") }
            rest.removeFirst(name.count)
            let isOptional = take("?", &rest)
            let isList = take("[", &rest)
            let isObject = take("{", &rest)
            let children = isObject ? try self.keys(&rest) : []
            if isObject, !take("}", &rest) { throw TestFailure("} is missing at \(rest)") }
            if isList, !take("]", &rest) { throw TestFailure("] is missing at \(rest)") }
            keys.append(
                Key(
                    name: String(name), isOptional: isOptional, isList: isList,
                    isObject: isObject, children: children))
            if take(",", &rest) { _ = take(" ", &rest) }
        }
        return keys
    }

    private static func take(_ letter: Character, _ rest: inout Substring) -> Bool {
        guard rest.first == letter else { return false }
        rest.removeFirst()
        return true
    }
}

extension Substring {
    /// Up to where `text` begins, or all.
    fileprivate func prefix(upTo text: String) -> Substring {
        range(of: text).map { self[..<$0.lowerBound] } ?? self
    }
}
