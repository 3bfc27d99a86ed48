/// A line of a cgroup's `io.max` file: the limits of one disk (Linux, Documentation/admin-guide/cgroup-v2.rst).
///
///   8:16 rbps=2097152 wbps=max riops=max wiops=120
package enum WriteLimitLine {
    /// Bytes a second that may be written to a disk, by the text of a file; nil when there is no limit.
    package static func limit(ofDisk disk: String, in text: String) -> UInt64? {
        for line in text.split(separator: "\n") {
            let words = line.split(separator: " ")
            guard words.first.map(String.init) == disk else { continue }
            for word in words.dropFirst() where word.hasPrefix("wbps=") {
                return UInt64(word.dropFirst(5))
            }
        }
        return nil
    }

    /// What is written to the file to set a limit, or to lift it with nil.
    package static func setting(_ bytesPerSecond: UInt64?, ofDisk disk: String) -> String {
        "\(disk) wbps=\(bytesPerSecond.map { "\($0)" } ?? "max")"
    }
}
