/// A secret that admits the clients that know it.
package struct AccessToken: Sendable {
    private let bytes: [UInt8]

    /// Fewest and most bytes: shorter ones are guessed.
    package static let byteCounts = 16...256

    /// Reads the first line of a file that nobody but its owner may read.
    package init(contentsOf path: String) throws(EncryptionError) {
        let line = try SecretFile.read(path, for: .owner).prefix { $0 != UInt8(ascii: "\n") }
        bytes = line.last == UInt8(ascii: "\r") ? Array(line.dropLast()) : Array(line)
        guard Self.byteCounts.contains(bytes.count), bytes.allSatisfy({ $0 > 0x20 && $0 < 0x7F })
        else {
            throw EncryptionError(
                kind: .invalid,
                message:
                    "\(path) holds no token: its first line must have \(Self.byteCounts.lowerBound) "
                    + "to \(Self.byteCounts.upperBound) letters and digits without spaces; make one "
                    + "with `openssl rand -hex 32`")
        }
    }

    /// Whether `text` is the token. Takes as long whatever it is, so that nobody finds out byte by
    /// byte.
    package func matches(_ text: some StringProtocol) -> Bool {
        var difference: UInt8 = text.utf8.count == bytes.count ? 0 : 1
        var index = 0
        for byte in text.utf8.prefix(Self.byteCounts.upperBound) {
            difference |= byte ^ bytes[index % bytes.count]
            index += 1
        }
        return difference == 0
    }
}
