// Sizes as people write them: 4096, 64K, 10g, 10GB, 10GiB, 1.5G.

/// How a size with a fraction becomes whole bytes.
package enum SizeRounding: Sendable {
    /// Down: for limits.
    case down
    /// It does not: the text must stand for whole bytes, as where it names a place on a device.
    case none
}

/// Reads a size in bytes. `K`, `M`, `G` and `T`, in either case and with or without `B` or `iB`
/// behind them, stand for powers of 1024; nil when `text` is not a size, or beyond 2^63.
package func parseSize(_ text: String, rounding: SizeRounding = .down) -> UInt64? {
    var digits = text[...]
    let suffix = digits.reversed().prefix { !$0.isASCII || !$0.isNumber }
    digits.removeLast(suffix.count)
    guard let shift = shift(of: String(suffix.reversed()).lowercased()) else { return nil }
    let parts = digits.split(separator: ".", maxSplits: 1, omittingEmptySubsequences: false)
    guard let whole = parts.first.flatMap({ number($0) }),
        whole <= UInt64(Int64.max) >> shift
    else { return nil }
    guard parts.count > 1 else { return whole << shift }
    // Nine digits are finer than a byte of 1 GiB, and their product with 2^40 fits in 71 bits.
    guard shift > 0, parts[1].utf8.count <= 9, let fraction = number(parts[1]) else { return nil }
    let scale = (0..<parts[1].utf8.count).reduce(UInt64(1)) { product, _ in product * 10 }
    let (high, low) = fraction.multipliedFullWidth(by: UInt64(1) << shift)
    let (bytes, rest) = scale.dividingFullWidth((high, low))
    guard rest == 0 || rounding == .down else { return nil }
    let (sum, isTooLarge) = (whole << shift).addingReportingOverflow(bytes)
    return isTooLarge || sum > UInt64(Int64.max) ? nil : sum
}

/// A size for people, in powers of 1024.
package func sizeText(_ bytes: UInt64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    var unit = 0
    var value = Double(bytes)
    while value >= 1024, unit < units.count - 1 {
        value /= 1024
        unit += 1
    }
    if unit == 0 || value >= 100 || value == value.rounded() {
        return "\(UInt64(value.rounded())) \(units[unit])"
    }
    let tenths = UInt64((value * 10).rounded())
    return "\(tenths / 10).\(tenths % 10) \(units[unit])"
}

private func shift(of suffix: String) -> UInt64? {
    if suffix.isEmpty || suffix == "b" { return 0 }
    guard ["", "b", "ib"].contains(suffix.dropFirst()) else { return nil }
    switch suffix.first {
    case "k": return 10
    case "m": return 20
    case "g": return 30
    case "t": return 40
    default: return nil
    }
}

private func number(_ digits: Substring) -> UInt64? {
    guard !digits.isEmpty, digits.utf8.allSatisfy({ (48...57).contains($0) }) else { return nil }
    return UInt64(digits)
}
