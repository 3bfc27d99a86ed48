import BlockModel
import ChangeTracking
import Testing

@Suite struct `The map file` {
    private let header = MapFileHeader(
        isClean: true, generation: Generation(id: UniqueID(high: 0x0102_0304, low: 0x0506)),
        size: 5 << 30 | 512, epoch: Epoch(9), newestBase: 7)

    private func encoded() -> [UInt8] {
        var bytes = [UInt8](repeating: 0xAA, count: 4096)
        var span = bytes.mutableSpan
        var raw = span.mutableBytes
        header.encode(into: &raw)
        return bytes
    }

    private func decode(_ bytes: [UInt8]) -> Result<MapFileHeader, MapFileHeader.Damage> {
        Result { () throws(MapFileHeader.Damage) in
            try MapFileHeader(decoding: bytes.span.bytes)
        }
    }

    @Test func `a header comes back as it was written`() {
        #expect(decode(encoded()) == .success(header))
    }

    @Test func `every flipped bit of a header is noticed`() {
        let good = encoded()
        for bit in 0..<4096 * 8 {
            var bytes = good
            bytes[bit / 8] ^= 1 << UInt8(bit % 8)
            if case .success = decode(bytes) { Issue.record("bit \(bit) passed") }
        }
    }

    @Test(arguments: [0, 1, 8, 4095]) func `a short header is truncated`(count: Int) {
        #expect(decode(Array(encoded().prefix(count))) == .failure(.truncated))
    }

    @Test func `pages come back, damaged ones do not`() throws {
        var entries = [UInt64](repeating: 0, count: 512)
        entries[5] = ChangeEntry(epoch: 9, blocks: 3, reach: 2).rawValue
        var bytes = [UInt8](repeating: 0, count: 4096)
        do {
            var span = bytes.mutableSpan
            var raw = span.mutableBytes
            entries.withUnsafeBufferPointer { MapFileBody.encodePage($0, into: &raw) }
        }
        let checksum = MapFileBody.checksum(ofPage: bytes.span.bytes)
        #expect(read(bytes, checksum, epoch: 9, count: 512) == .success(entries))
        #expect(read(bytes, checksum, epoch: 8, count: 512) == .failure(.impossible))
        #expect(read(bytes, checksum, epoch: 9, count: 5) == .failure(.impossible))
        #expect(read(bytes, checksum ^ 1, epoch: 9, count: 512) == .failure(.checksum))
        bytes[4000] ^= 1
        #expect(read(bytes, checksum, epoch: 9, count: 512) == .failure(.checksum))
    }

    private func read(
        _ bytes: [UInt8], _ checksum: UInt32, epoch: UInt32, count: Int
    ) -> Result<[UInt64], MapFileHeader.Damage> {
        let target = UnsafeMutableBufferPointer<UInt64>.allocate(capacity: count)
        defer { target.deallocate() }
        target.initialize(repeating: 0)
        return Result { () throws(MapFileHeader.Damage) in
            try MapFileBody.decodePage(
                bytes.span.bytes, checksum: checksum, epoch: epoch, into: target)
            return Array(target)
        }
    }

    @Test func `groups of checksums come back, damaged ones do not`() throws {
        let checksums = (0..<1023).map { UInt32($0) }
        var bytes = [UInt8](repeating: 0, count: 4096)
        do {
            var span = bytes.mutableSpan
            var raw = span.mutableBytes
            MapFileBody.encodeGroup(checksums.span, into: &raw)
        }
        #expect(try MapFileBody.checksum(at: 1022, ofGroup: bytes.span.bytes) == 1022)
        bytes[17] ^= 4
        #expect(throws: MapFileHeader.Damage.checksum) {
            try MapFileBody.checksum(at: 0, ofGroup: bytes.span.bytes)
        }
    }

    @Test func `pages and checksum pages do not overlap`() {
        #expect(MapFileBody.byteOffset(ofGroup: 0) == 4096)
        #expect(MapFileBody.byteOffset(ofPage: 0) == 8192)
        #expect(MapFileBody.byteOffset(ofPage: 1022) == 4096 * 1024)
        #expect(MapFileBody.byteOffset(ofGroup: 1) == 4096 * 1025)
        #expect(MapFileBody.byteOffset(ofPage: 1023) == 4096 * 1026)
    }
}
