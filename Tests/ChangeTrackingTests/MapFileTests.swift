import BlockModel
import ChangeTracking
import Testing

/// Values that the golden pages hold.
enum Samples {
    static let size: UInt64 = 5 << 30 | 512
    static let boot = UniqueID(high: 0xB1, low: 0xB2)
    static let instance = UniqueID(high: 0xA1, low: 0xA2)
    static let generation = Generation(id: UniqueID(high: 0x0102_0304, low: 0x0506))
    static let name = ObjectName("vm1")!
    static let file = OriginRecord(
        identity: .file(
            filesystem: 0x0801, inode: 4711, birth: FileTime(seconds: 1_700_000_000, nanoseconds: 5)
        ),
        state: .file(
            size: size, modified: FileTime(seconds: 1_700_000_001, nanoseconds: 6),
            changed: FileTime(seconds: 1_700_000_002, nanoseconds: 7)))
    static let disk = OriginRecord(
        identity: .blockDevice(stableID: "wwid naa.5000", sequence: 42),
        state: .blockDevice(
            size: size,
            own: WriteCounters(writtenSectors: 1, discardedSectors: 2),
            disk: WriteCounters(writtenSectors: 3, discardedSectors: 4)))

    static func header(_ origin: OriginRecord) -> MapFileHeader {
        var header = MapFileHeader(
            beginning: generation, of: name, state: .clean, size: size, bootID: boot,
            instance: instance, origin: origin)
        header.firstSize = 5 << 30
        header.epoch = Epoch(9)
        header.newestBase = 7
        header.sequence = 3
        header.lastCutSeconds = 1_700_000_003
        return header
    }

    static func encoded(_ body: (inout MutableRawSpan) -> Void) -> [UInt8] {
        var bytes = [UInt8](repeating: 0xAA, count: 4096)
        var span = bytes.mutableSpan
        var raw = span.mutableBytes
        body(&raw)
        return bytes
    }
}

@Suite struct `The map file` {
    private func decode(_ bytes: [UInt8]) -> Result<MapFileHeader, MapFileHeader.Damage> {
        Result { () throws(MapFileHeader.Damage) in
            try MapFileHeader(decoding: bytes.span.bytes)
        }
    }

    private func decodeRecord(_ bytes: [UInt8]) -> Result<DeathRecord?, MapFileHeader.Damage> {
        Result { () throws(MapFileHeader.Damage) in try DeathRecord.decode(bytes.span.bytes) }
    }

    @Test func `a header is the page that the first release wrote`() {
        for (origin, golden) in [
            (Samples.file, GoldenPages.fileHeader), (Samples.disk, GoldenPages.blockDeviceHeader),
        ] {
            let header = Samples.header(origin)
            let bytes = Samples.encoded { header.encode(into: &$0) }
            #expect(bytes == GoldenPages.page(golden))
            #expect(decode(GoldenPages.page(golden)) == .success(header))
        }
    }

    /// Every bit of the fields and of the checksum, and some of the zeroes between.
    private let flips: [Int] =
        Array(0..<1024 * 8) + Array(stride(from: 8192, to: 32768, by: 61))
        + Array(4092 * 8..<4096 * 8)

    @Test func `every flipped bit of a header is noticed`() {
        for lines in [GoldenPages.fileHeader, GoldenPages.blockDeviceHeader] {
            let good = GoldenPages.page(lines)
            for bit in flips {
                var bytes = good
                bytes[bit / 8] ^= 1 << UInt8(bit % 8)
                if case .success = decode(bytes) { Issue.record("bit \(bit) passed") }
            }
        }
    }

    @Test(arguments: [0, 1, 8, 4095]) func `a short header is truncated`(count: Int) {
        let bytes = GoldenPages.page(GoldenPages.fileHeader)
        #expect(decode(Array(bytes.prefix(count))) == .failure(.truncated))
    }

    /// Fields by offset, with values that a correct checksum does not excuse.
    @Test(arguments: [
        (12, 3), (40, 1), (48, 0), (48, 0xFFFF_FFFF), (52, 9), (112, 0), (112, 65), (112, 2),
        (116, 1), (576, 1), (4088, 1), (184, 0), (184, 3), (188, 1), (216, 1_000_000_000),
        (220, 2), (256, 1), (320, 1),
    ])
    func `a field that cannot be is refused in spite of its checksum`(offset: Int, value: UInt32) {
        var bytes = GoldenPages.page(GoldenPages.fileHeader)
        for position in 0..<4 {
            bytes[offset + position] = UInt8(truncatingIfNeeded: value >> UInt32(8 * position))
        }
        seal(&bytes)
        #expect(decode(bytes) == .failure(.impossible))
    }

    private func seal(_ bytes: inout [UInt8]) {
        let checksum = bytes.withUnsafeBytes {
            Checksum.crc32c(UnsafeRawBufferPointer(rebasing: $0[..<4092]))
        }
        for position in 0..<4 {
            bytes[4092 + position] = UInt8(truncatingIfNeeded: checksum >> UInt32(8 * position))
        }
    }

    @Test func `a header of a later version is named as such`() {
        var bytes = GoldenPages.page(GoldenPages.fileHeader)
        bytes[8] = 2
        #expect(decode(bytes) == .failure(.unknownVersion(2)))
        bytes[0] = 0
        #expect(decode(bytes) == .failure(.foreign))
    }

    @Test func `a death record is the page that the first release wrote`() {
        let record = DeathRecord(
            instance: Samples.instance, bootID: Samples.boot, finding: .origin(Samples.file))
        let golden = GoldenPages.page(GoldenPages.deathRecord)
        #expect(Samples.encoded { record.encode(into: &$0) } == golden)
        #expect(decodeRecord(golden) == .success(record))
        #expect(decodeRecord([UInt8](repeating: 0, count: 4096)) == .success(nil))
        let failure = DeathRecord(
            instance: Samples.instance, bootID: Samples.boot,
            finding: .failed(String(repeating: "ü", count: 400)))
        #expect(decodeRecord(Samples.encoded { failure.encode(into: &$0) }) == .success(failure))
        #expect(failure.finding == .failed(String(repeating: "ü", count: 256)))
    }

    @Test func `every flipped bit of a death record is noticed`() {
        let good = GoldenPages.page(GoldenPages.deathRecord)
        for bit in flips {
            var bytes = good
            bytes[bit / 8] ^= 1 << UInt8(bit % 8)
            if case .success = decodeRecord(bytes) { Issue.record("bit \(bit) passed") }
        }
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
