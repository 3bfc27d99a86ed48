import Glibc

// Comparing and changing parts of byte arrays; the tests themselves are built without the
// optimiser.

extension [UInt8] {
    /// The first index at which `other`, laid over this array from `offset` on, differs; nil when
    /// it does not.
    package func firstDifference(from other: [UInt8], at offset: Int = 0) -> Int? {
        precondition(offset + other.count <= count, "what is compared lies inside")
        return withUnsafeBytes { mine in
            other.withUnsafeBytes { theirs in
                guard !theirs.isEmpty,
                    memcmp(mine.baseAddress! + offset, theirs.baseAddress!, theirs.count) != 0
                else { return nil }
                for index in 0..<theirs.count where mine[offset + index] != theirs[index] {
                    return index
                }
                return nil
            }
        }
    }

    /// Whether the bytes of `range` are all zero.
    package func isZero(in range: Range<Int>) -> Bool {
        withUnsafeBytes { bytes in
            for index in range where bytes[index] != 0 { return false }
            return true
        }
    }

    /// A copy of the bytes of `range`.
    package func part(_ range: Range<Int>) -> [UInt8] { Array(self[range]) }

    /// Replaces the bytes from `offset` on.
    package mutating func overwrite(at offset: Int, with bytes: [UInt8]) {
        precondition(offset + bytes.count <= count, "what is overwritten lies inside")
        withUnsafeMutableBytes { mine in
            bytes.withUnsafeBytes { theirs in
                guard !theirs.isEmpty else { return }
                memcpy(mine.baseAddress! + offset, theirs.baseAddress!, theirs.count)
            }
        }
    }

    /// Zeroes the bytes of `range`.
    package mutating func zero(in range: Range<Int>) {
        withUnsafeMutableBytes { _ = memset($0.baseAddress! + range.lowerBound, 0, range.count) }
    }
}
