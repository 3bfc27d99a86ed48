// Reads YAML text into values that know their lines, with libyaml as the parser. Only what a
// configuration file needs: scalars, sequences, mappings with scalar keys, anchors and aliases.

/// A value of a YAML text, with the line at which it begins.
package struct YAMLNode: Sendable {
    /// What the value is.
    package enum Content: Sendable {
        /// A text. `isPlain` says that it stands without quotes, so that words like `true` and
        /// `null` have a meaning.
        case scalar(String, isPlain: Bool)
        case sequence([YAMLNode])
        case mapping([YAMLEntry])
    }

    package let content: Content
    /// Line of its first character, from 1.
    package let line: Int

    package init(_ content: Content, line: Int) {
        self.content = content
        self.line = line
    }

    /// The text of a scalar.
    package var text: String? {
        guard case .scalar(let text, _) = content else { return nil }
        return text
    }

    /// The elements of a sequence, in their order.
    package var sequence: [YAMLNode]? {
        guard case .sequence(let elements) = content else { return nil }
        return elements
    }

    /// The entries of a mapping, in their order.
    package var mapping: [YAMLEntry]? {
        guard case .mapping(let entries) = content else { return nil }
        return entries
    }

    /// Whether it is an empty value: `null`, `~` or nothing at all.
    package var isNull: Bool {
        guard case .scalar(let text, true) = content else { return false }
        return ["", "~", "null", "Null", "NULL"].contains(text)
    }

    /// The value of `true`, `yes`, `on` and their opposites, in YAML 1.1's three spellings.
    package var flag: Bool? {
        guard case .scalar(let text, true) = content else { return nil }
        let lowered = text.lowercased()
        guard text == lowered || text == text.uppercased() || text == lowered.capitalizedText else {
            return nil
        }
        switch lowered {
        case "true", "yes", "on": return true
        case "false", "no", "off": return false
        default: return nil
        }
    }
}

/// A key of a mapping and its value.
package struct YAMLEntry: Sendable {
    package let key: YAMLNode
    package let value: YAMLNode

    package init(key: YAMLNode, value: YAMLNode) {
        self.key = key
        self.value = value
    }
}

extension String {
    fileprivate var capitalizedText: String {
        guard let first else { return self }
        return first.uppercased() + dropFirst()
    }
}
