import Foundation

/// The whole of a file whose size the kernel does not report it, as under /proc;
/// `String(contentsOfFile:)` gets the first 4 KiB of one. Throws when it cannot be read.
package func kernelText(_ path: String) throws -> String {
    let file = try FileHandle(forReadingFrom: URL(fileURLWithPath: path))
    defer { try? file.close() }
    return String(decoding: try file.readToEnd() ?? Data(), as: UTF8.self)
}
