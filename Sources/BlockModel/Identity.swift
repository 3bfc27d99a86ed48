/// Number of a device's cut period: 1 at first attach, one more at every cut.
@usableFromInline package struct Epoch: Hashable, Comparable, Sendable {
    @usableFromInline package let rawValue: UInt32

    package init(_ rawValue: UInt32) { self.rawValue = rawValue }

    /// The epoch in which tracking of a generation begins.
    package static let first = Epoch(1)

    /// The last epoch of a generation; the cut that ends it starts a new one.
    package static let last = Epoch(UInt32.max - 1)

    @usableFromInline package static func < (left: Epoch, right: Epoch) -> Bool {
        left.rawValue < right.rawValue
    }
}

/// 128 random bits in UUID form: names generations and snapshots.
package struct UniqueID: Hashable, Sendable, CustomStringConvertible {
    package let high: UInt64
    package let low: UInt64

    package init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }

    /// A fresh random UUID (version 4, RFC 9562 section 5.4).
    package static func random<Source: RandomNumberGenerator>(
        using source: inout Source
    ) -> UniqueID {
        UniqueID(
            high: source.next() & ~0xF000 | 0x4000,
            low: source.next() & ~(0xC000 << 48) | 0x8000 << 48)
    }

    /// A fresh random UUID from the system's generator.
    package static func random() -> UniqueID {
        var source = SystemRandomNumberGenerator()
        return random(using: &source)
    }

    /// Reads the 36 character text form; nil for anything else.
    package init?(_ text: some StringProtocol) {
        let bytes = Array(text.utf8)
        guard bytes.count == 36 else { return nil }
        var digits: [UInt64] = []
        digits.reserveCapacity(32)
        for (position, byte) in bytes.enumerated() {
            if [8, 13, 18, 23].contains(position) {
                guard byte == UInt8(ascii: "-") else { return nil }
                continue
            }
            guard let digit = Character(UnicodeScalar(byte)).hexDigitValue else { return nil }
            digits.append(UInt64(digit))
        }
        high = digits[0..<16].reduce(0) { $0 << 4 | $1 }
        low = digits[16..<32].reduce(0) { $0 << 4 | $1 }
    }

    package var description: String {
        func hex(_ value: UInt64) -> String {
            let digits = String(value, radix: 16)
            return String(repeating: "0", count: 16 - digits.count) + digits
        }
        let text = Array(hex(high) + hex(low))
        let cuts = [0, 8, 12, 16, 20, 32]
        return zip(cuts, cuts.dropFirst()).map { String(text[$0..<$1]) }.joined(separator: "-")
    }
}

/// A device's unbroken tracking history; a new one says "what changed before is unknown".
package struct Generation: Hashable, Sendable, CustomStringConvertible {
    package let id: UniqueID

    package init(id: UniqueID) { self.id = id }

    package var description: String { id.description }
}

/// Name of a device, snapshot or checkpoint: `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`.
package struct ObjectName: Hashable, Comparable, Sendable, CustomStringConvertible {
    package let text: String

    /// Longest name in bytes.
    package static let byteCountMax = 64

    /// Nil when `text` breaks the rule above.
    package init?(_ text: String) {
        let bytes = text.utf8
        guard let first = bytes.first, bytes.count <= Self.byteCountMax else { return nil }
        func isAlphanumeric(_ byte: UInt8) -> Bool {
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                UInt8(ascii: "0")...UInt8(ascii: "9"):
                true
            default: false
            }
        }
        guard isAlphanumeric(first),
            bytes.allSatisfy({
                isAlphanumeric($0) || $0 == UInt8(ascii: ".") || $0 == UInt8(ascii: "_")
                    || $0 == UInt8(ascii: "-")
            })
        else { return nil }
        self.text = text
    }

    package var description: String { text }

    package static func < (left: ObjectName, right: ObjectName) -> Bool { left.text < right.text }
}
