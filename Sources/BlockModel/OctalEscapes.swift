/// The kernel's escapes of bytes that would break a line of a table, such as `\040` for a space.
package enum OctalEscapes {
    /// Replaces each `\ooo` by its byte; any other backslash stands for itself.
    package static func removed(from field: ArraySlice<UInt8>) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(field.count)
        var index = field.startIndex
        while index < field.endIndex {
            if field[index] == UInt8(ascii: "\\"), field.endIndex - index > 3,
                let byte = value(of: field[(index + 1)...(index + 3)])
            {
                bytes.append(byte)
                index += 4
            } else {
                bytes.append(field[index])
                index += 1
            }
        }
        return bytes
    }

    /// The same of text.
    package static func removed(from text: some StringProtocol) -> String {
        String(decoding: removed(from: Array(text.utf8)[...]), as: UTF8.self)
    }

    /// Escapes newlines and backslashes, so that `bytes` fit in a line and can be restored.
    package static func added(to bytes: [UInt8]) -> [UInt8] {
        bytes.flatMap { byte -> [UInt8] in
            switch byte {
            case 10: Array("\\012".utf8)
            case UInt8(ascii: "\\"): Array("\\134".utf8)
            default: [byte]
            }
        }
    }

    private static func value(of digits: ArraySlice<UInt8>) -> UInt8? {
        var value = 0
        for digit in digits {
            guard (48...55).contains(digit) else { return nil }
            value = value * 8 + Int(digit - 48)
        }
        return UInt8(exactly: value)
    }
}
