internal import Glibc

/// Text on its way to standard output, written in large pieces: for millions of lines.
package struct OutputBuffer {
    private static let byteCountMax = 256 << 10
    private var bytes: [UInt8] = []

    package init() { bytes.reserveCapacity(Self.byteCountMax + 64) }

    /// Adds text, and writes what has gathered when it is much.
    package mutating func add(_ text: some StringProtocol) {
        bytes += text.utf8
        if bytes.count >= Self.byteCountMax { flush() }
    }

    /// A number in decimal.
    package mutating func add(_ number: UInt64) {
        let start = bytes.count
        var rest = number
        repeat {
            bytes.append(UInt8(ascii: "0") + UInt8(rest % 10))
            rest /= 10
        } while rest > 0
        bytes[start...].reverse()
    }

    /// Writes what waits.
    package mutating func flush() {
        FileHandles.output.write(bytes)
        bytes.removeAll(keepingCapacity: true)
    }
}
