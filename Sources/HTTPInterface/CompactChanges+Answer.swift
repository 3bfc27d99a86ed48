internal import ControlDocuments
internal import FoundationEssentials
internal import NIOCore
internal import SnapshotManagement

extension CompactChanges {
    /// Writes an answer in the compact form.
    static func encoded(_ answer: ChangesAnswer) throws -> ByteBuffer {
        var body = ByteBuffer(bytes: try DocumentCoding.encoder().encode(answer.document))
        body.reserveCapacity(minimumWritableBytes: answer.ranges.count * 16 + 1)
        body.writeString("\n")
        for range in answer.ranges {
            body.writeInteger(range.offset, endianness: .little)
            body.writeInteger(range.length, endianness: .little)
        }
        return body
    }
}
