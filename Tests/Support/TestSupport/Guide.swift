import Foundation

/// A document of the repository and the blocks of code in it.
///
/// The word after three backticks says what a block is. `sh` are commands that a reader types; the
/// words behind it, which no renderer shows, name the test that runs them.
package struct Guide {
    /// One block of code.
    package struct Block: Sendable {
        /// The word after the backticks; empty when there is none.
        package let language: String
        /// What stands behind it.
        package let label: String
        package let text: String
        /// The line of its first backtick, from 1.
        package let line: Int
    }

    /// The path from the root of the repository.
    package let path: String
    package let blocks: [Block]
    /// The text without its blocks: the number of each line, and the line.
    package let prose: [(number: Int, text: String)]

    /// Reads a document, `docs/snapshots.md` for example.
    package init(_ path: String) throws {
        self.path = path
        let text = try String(
            contentsOfFile: PythonTools.repository + "/" + path, encoding: .utf8)
        var blocks: [Block] = []
        var prose: [(number: Int, text: String)] = []
        var open: (line: Int, info: [Substring], lines: [Substring])?
        let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
        for (index, line) in lines.enumerated() {
            // A block in a list is indented.
            let bare = line.drop { $0 == " " }
            if bare.hasPrefix("```") {
                if let block = open {
                    blocks.append(
                        Block(
                            language: String(block.info.first ?? ""),
                            label: block.info.dropFirst().joined(separator: " "),
                            text: block.lines.map { $0 + "\n" }.joined(), line: block.line))
                    open = nil
                } else {
                    open = (index + 1, bare.dropFirst(3).split(separator: " "), [])
                }
            } else if open != nil {
                open?.lines.append(line)
            } else {
                prose.append((index + 1, String(line)))
            }
        }
        guard open == nil else { throw TestFailure("\(path): a block of code does not end") }
        self.blocks = blocks
        self.prose = prose
    }

    /// The README and everything under docs/.
    package static func all() throws -> [Guide] {
        let names = try FileManager.default.contentsOfDirectory(
            atPath: PythonTools.repository + "/docs")
        return try ["README.md"].map(Guide.init)
            + names.filter { $0.hasSuffix(".md") }.sorted().map { try Guide("docs/" + $0) }
    }

    /// The text of the blocks of a language with a label, in their order; throws if there is none.
    package func text(_ language: String, _ label: String = "") throws -> String {
        let found = blocks.filter { $0.language == language && $0.label == label }
        guard !found.isEmpty else {
            throw TestFailure("\(path) has no block `\(language) \(label)`")
        }
        return found.map(\.text).joined()
    }

    /// The commands with a label, in their order; throws if there are none.
    package func commands(_ label: String = "") throws -> String { try text("sh", label) }
}
