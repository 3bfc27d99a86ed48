import ControlDocuments
import RingIO

/// A configuration file with anything in it. It is read, or refused with a sentence for each
/// problem that names the file and the line; all values are asked for as `serve` does.
func fuzzConfiguration(_ input: inout FuzzInput) {
    guard let text = String(validating: input.rest(), as: UTF8.self) else { return }
    do throws(ControlError) {
        let file = try ConfigurationFile(parsing: text, of: "/fuzz.yaml")
        ask(file)
        try file.finish()
    } catch {
        precondition(error.message.hasPrefix("/fuzz.yaml:"), "a refusal names the file")
        precondition(error.message.utf8.count < 64 << 20, "a refusal has its bound")
    }
}

private enum Word: String, CaseIterable {
    case debug, info, error
}

private func ask(_ file: ConfigurationFile) {
    for key in ["control", "state-dir", "runtime-dir", "tls-cert", "tls-key", "tls-ca", "tls-psk"] {
        if let path = file.path(key) { precondition(path.hasPrefix("/"), "a path is absolute") }
    }
    _ = file.text("tls")
    _ = file.text("user")
    _ = file.number("loops", 1...64)
    _ = file.flag("allow-plaintext")
    _ = file.choice("log-level", Word.allCases)
    _ = file.checked("nbd") { () throws(ControlError) in
        try file.texts("nbd")?.map { text throws(ControlError) in
            try ListenAddress(parsing: text)
        }
    }
    for request in file.attachRequests("attach") ?? [] {
        precondition(request.path.hasPrefix("/") && !request.path.utf8.contains(0))
        precondition([nil, 512, 4096].contains(request.sectorBytes))
    }
}
