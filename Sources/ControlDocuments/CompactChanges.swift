package import BlockModel
package import FoundationEssentials

// The compact form of a page of changes, between the service and its own command line: the
// document as one line of JSON with empty `ranges`, then for each range offset and length in
// bytes, 8 bytes each, little-endian.

/// Writes and reads the compact form; see the head of this file.
package enum CompactChanges {
    /// Who asks for it accepts this.
    package static let mediaType = "application/x-stillpoint-changes"

    /// The document without its ranges, and the ranges; nil when the bytes are something else.
    package static func decoded(
        _ bytes: Data
    ) throws -> (document: ChangesDocument, ranges: [ByteRange])? {
        guard let newline = bytes.firstIndex(of: UInt8(ascii: "\n")) else { return nil }
        let document = try DocumentCoding.decoder().decode(
            ChangesDocument.self, from: bytes[..<newline])
        let body = bytes[(newline + 1)...]
        guard body.count % 16 == 0 else { return nil }
        var ranges: [ByteRange] = []
        ranges.reserveCapacity(body.count / 16)
        let isSound = body.withUnsafeBytes { raw -> Bool in
            for place in stride(from: 0, to: raw.count, by: 16) {
                // SAFETY: both words lie within the bytes, whose count is a multiple of 16.
                let offset = UInt64(
                    littleEndian: raw.loadUnaligned(fromByteOffset: place, as: UInt64.self))
                let length = UInt64(
                    littleEndian: raw.loadUnaligned(fromByteOffset: place + 8, as: UInt64.self))
                guard let range = ByteRange(checking: offset, length: length, within: .max) else {
                    return false
                }
                ranges.append(range)
            }
            return true
        }
        return isSound ? (document, ranges) : nil
    }
}
