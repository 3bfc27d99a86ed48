import Foundation

/// Python packages of others that the tests check us with, in a virtual environment of their own
/// (`Scripts/ensure-python`).
package enum PythonTools {
    /// Where the repository lies.
    package static let repository = URL(filePath: #filePath).deletingLastPathComponent()
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent().path

    /// The interpreter; nil, and a printed reason, when the packages are not available.
    package static let interpreter: String? = {
        do {
            let outcome = try Command.run(repository + "/Scripts/ensure-python", [])
            let path = outcome.output.trimmingCharacters(in: .whitespacesAndNewlines)
            if outcome.status == 0 { return path }
            print("skipped: what needs Python packages: \(outcome.diagnostics)")
        } catch { print("skipped: what needs Python packages: \(error)") }
        return nil
    }()

    /// The packages are there.
    package static var areThere: Bool { interpreter != nil }

    /// Runs a script of `Tests/Tools` with `input` as its standard input.
    package static func run(
        _ script: String, _ arguments: [String] = [], input: Data? = nil, deadline: Double = 600
    ) throws -> Command.Outcome {
        guard let interpreter else { throw TestFailure("there are no Python packages") }
        let path = repository + "/Tests/Tools/" + script
        guard let input else {
            return try Command.run(interpreter, [path] + arguments, deadline: deadline)
        }
        let directory = try TemporaryDirectory()
        try input.write(to: URL(filePath: directory.path("input")))
        return try Command.run(
            "sh",
            ["-c", "exec \"$0\" \"$@\" <\(directory.path("input"))", interpreter, path]
                + arguments, deadline: deadline)
    }

    /// A document that is to be of a schema of the description.
    package struct Case {
        let label: String
        let schema: String
        let isList: Bool
        let document: Any

        package init(_ label: String, _ schema: String, isList: Bool = false, _ document: Any) {
            self.label = label
            self.schema = schema
            self.isList = isList
            self.document = document
        }
    }

    /// What does not fit the schemas of `docs/openapi.yaml`, one line each.
    package static func misfits(_ cases: [Case]) throws -> String {
        var lines = Data()
        for one in cases {
            let object: [String: Any] = [
                "label": one.label, "document": one.document,
                "schema": one.isList ? [one.schema] as Any : one.schema,
            ]
            lines += try JSONSerialization.data(withJSONObject: object)
            lines.append(10)
        }
        let outcome = try run(
            "validate.py", [repository + "/docs/openapi.yaml"], input: lines)
        guard outcome.status == 0 || !outcome.output.isEmpty else {
            throw TestFailure(outcome.diagnostics)
        }
        return outcome.output
    }
}
