package import BlockModel

// What the guardian leaves in the running map when the service has died: the origin as it was
// when the last request of the dead service had left the kernel.
//
//     offset  bytes  field
//          0      8  magic "STILLEND"
//          8      4  version, 1
//         12      4  bytes of the failure's text; 0: the origin was recorded
//         16     16  instance of the running map
//         32     16  boot id of the machine
//         48    392  origin, see `OriginRecord`; zero with a failure
//        440    512  why it could not be recorded, UTF-8
//        952   3140  reserved, zero
//       4092      4  CRC32C of the bytes before

/// What the guardian recorded of an origin; see the head of this file.
package struct DeathRecord: Equatable, Sendable {
    /// What the guardian found.
    package enum Finding: Equatable, Sendable {
        case origin(OriginRecord)
        /// Why it could not be recorded, for people.
        case failed(String)
    }

    private static let magic: UInt64 = 0x444E_454C_4C49_5453
    private static let version: UInt32 = 1
    private static let failureByteCountMax = 512

    package let instance: UniqueID
    package let bootID: UniqueID
    package let finding: Finding

    /// A failure's text is cut to its bound.
    package init(instance: UniqueID, bootID: UniqueID, finding: Finding) {
        self.instance = instance
        self.bootID = bootID
        switch finding {
        case .origin: self.finding = finding
        case .failed(var text):
            while text.utf8.count > Self.failureByteCountMax { text.removeLast() }
            self.finding = .failed(text.isEmpty ? "no reason was given" : text)
        }
    }

    /// Reads a record from `bytes`, which may be anything; nil when the page is empty: the
    /// guardian left none.
    package static func decode(
        _ bytes: RawSpan
    ) throws(MapFileHeader.Damage) -> DeathRecord? {
        guard bytes.byteCount >= MapFileHeader.byteCount else { throw .truncated }
        if bytes.isZero(from: 0, to: MapFileHeader.byteCount) { return nil }
        guard bytes.word(at: 0) == magic else { throw .foreign }
        let version = bytes.half(at: 8)
        guard version == Self.version else { throw .unknownVersion(version) }
        let end = MapFileHeader.byteCount - 4
        guard bytes.checksum(end) == bytes.half(at: end) else { throw .checksum }
        let textCount = Int(bytes.half(at: 12))
        guard textCount <= failureByteCountMax, bytes.isZero(from: 440 + textCount, to: end)
        else { throw .impossible }
        let finding: Finding
        if textCount == 0 {
            finding = .origin(try OriginRecord(decoding: bytes, at: 48))
        } else {
            guard bytes.isZero(from: 48, to: 440) else { throw .impossible }
            finding = .failed(try bytes.text(at: 440, byteCount: textCount))
        }
        return DeathRecord(
            instance: bytes.uniqueID(at: 16), bootID: bytes.uniqueID(at: 32), finding: finding)
    }

    /// Writes the record into the first 4096 bytes of `bytes`.
    package func encode(into bytes: inout MutableRawSpan) {
        precondition(bytes.byteCount >= MapFileHeader.byteCount, "a record needs its page")
        bytes.clearPage()
        bytes.setWord(Self.magic, at: 0)
        bytes.setHalf(Self.version, at: 8)
        bytes.setUniqueID(instance, at: 16)
        bytes.setUniqueID(bootID, at: 32)
        switch finding {
        case .origin(let record): record.encode(into: &bytes, at: 48)
        case .failed(let text):
            bytes.setHalf(UInt32(text.utf8.count), at: 12)
            bytes.setText(text, at: 440)
        }
        bytes.sealPage()
    }
}
