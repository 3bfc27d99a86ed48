// The file of pre-shared keys that libnbd, QEMU, nbdkit and GnuTLS's psktool use: one
// `NAME:HEXKEY` per line, blank lines between.

/// Keys by the names clients give.
package struct PreSharedKeys: Sendable {
    /// What TLS allows of a name and a key.
    static let nameByteCountMax = 128
    static let keyByteCountMax = 256
    /// Shorter keys can be guessed.
    static let keyByteCountMin = 16

    private var keys: [String: [UInt8]] = [:]

    /// Reads the file at `path`, which its owner alone may read.
    package init(contentsOf path: String) throws(EncryptionError) {
        let bytes = try SecretFile.read(path, for: .owner)
        try self.init(parsing: bytes, of: path)
    }

    /// Reads what a file holds; errors name `path` and the line, and never a key.
    package init(parsing bytes: [UInt8], of path: String) throws(EncryptionError) {
        let lines = bytes.split(separator: 10, omittingEmptySubsequences: false)
        for (index, line) in lines.enumerated() {
            let line = line.last == 13 ? line.dropLast() : line
            guard !line.isEmpty else { continue }
            func refused(_ reason: String) -> EncryptionError {
                EncryptionError(
                    kind: .invalid, message: "\(path), line \(index + 1): \(reason)")
            }
            guard line.first != UInt8(ascii: "#") else {
                throw refused("comments and names in hexadecimal are not supported; remove it")
            }
            guard let colon = line.firstIndex(of: UInt8(ascii: ":")),
                let name = String(validating: line[..<colon], as: UTF8.self)
            else { throw refused("give NAME:HEXKEY") }
            guard !name.isEmpty, name.utf8.count <= Self.nameByteCountMax, !name.utf8.contains(0)
            else { throw refused("a name has 1 to \(Self.nameByteCountMax) bytes") }
            guard let key = Self.key(line[(colon + 1)...]) else {
                throw refused("the key is not hexadecimal")
            }
            guard (Self.keyByteCountMin...Self.keyByteCountMax).contains(key.count) else {
                throw refused(
                    "a key has \(Self.keyByteCountMin) to \(Self.keyByteCountMax) bytes, twice as "
                        + "many digits")
            }
            guard keys.updateValue(key, forKey: name) == nil else {
                throw refused("this name has a key already")
            }
        }
        guard !keys.isEmpty else {
            throw EncryptionError(kind: .invalid, message: "\(path) holds no key")
        }
    }

    /// The key of a client; nil when there is none of that name.
    package func key(of name: String) -> [UInt8]? { keys[name] }

    private static func key(_ digits: ArraySlice<UInt8>) -> [UInt8]? {
        guard digits.count.isMultiple(of: 2) else { return nil }
        var bytes: [UInt8] = []
        var high: UInt8?
        for digit in digits {
            let value: UInt8
            switch digit {
            case UInt8(ascii: "0")...UInt8(ascii: "9"): value = digit - UInt8(ascii: "0")
            case UInt8(ascii: "a")...UInt8(ascii: "f"): value = digit - UInt8(ascii: "a") + 10
            case UInt8(ascii: "A")...UInt8(ascii: "F"): value = digit - UInt8(ascii: "A") + 10
            default: return nil
            }
            if let left = high {
                bytes.append(left << 4 | value)
                high = nil
            } else {
                high = value
            }
        }
        return bytes
    }
}
