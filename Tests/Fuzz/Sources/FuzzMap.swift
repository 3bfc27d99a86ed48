import BlockModel
import ChangeTracking

/// Pages of a map file with anything in them; now and then with checksums that fit, so that what
/// lies behind them is reached. What is read is possible, and written again it is the same bytes.
func fuzzMap(_ input: inout FuzzInput) {
    let kind = input.byte()
    var page = [UInt8](repeating: 0, count: 4096)
    let isShort = kind & 0x80 != 0
    if kind & 4 != 0 { fillHeader(&page, &input) }
    for (index, byte) in input.take(4096).enumerated() {
        page[(index + (kind & 4 != 0 ? 56 : 0)) % 4096] ^= byte
    }
    if isShort { page.removeLast(1 + Int(kind) * 31 % 4000) }
    switch kind & 3 {
    case 0: decodeHeader(&page, sealed: kind & 8 != 0)
    case 1: decodeGroup(&page, sealed: kind & 8 != 0)
    default: decodePage(page, epoch: UInt32(kind >> 4) * 1000 + 1, sealed: kind & 8 != 0)
    }
}

/// Fields that may well be.
private func fillHeader(_ page: inout [UInt8], _ input: inout FuzzInput) {
    let magic = Array("STILLMAP".utf8)
    page.replaceSubrange(0..<8, with: magic)
    page[8] = 1
    page[12] = input.byte() & 1
    let size = UInt64(input.integer() as UInt32)
    let chunkCount = (size + 65535) / 65536
    for index in 0..<8 {
        page[32 + index] = UInt8(truncatingIfNeeded: size >> (8 * UInt64(index)))
        page[40 + index] = UInt8(truncatingIfNeeded: chunkCount >> (8 * UInt64(index)))
    }
    page[48] = input.byte()
    page[52] = input.byte()
}

private func seal(_ page: inout [UInt8]) {
    guard page.count == 4096 else { return }
    let sum = page.withUnsafeBytes {
        Checksum.crc32c(UnsafeRawBufferPointer(rebasing: $0[0..<4092]))
    }
    for index in 0..<4 {
        page[4092 + index] = UInt8(truncatingIfNeeded: sum >> (8 * UInt32(index)))
    }
}

private func decodeHeader(_ page: inout [UInt8], sealed: Bool) {
    if sealed { seal(&page) }
    guard let header = try? MapFileHeader(decoding: page.span.bytes) else { return }
    precondition(header.epoch >= .first && header.newestBase < header.epoch.rawValue)
    var copy = [UInt8](repeating: 0xEE, count: 4096)
    var span = copy.mutableSpan
    var bytes = span.mutableBytes
    header.encode(into: &bytes)
    precondition(copy == page, "a header that was read is written as it was")
}

private func decodeGroup(_ page: inout [UInt8], sealed: Bool) {
    if sealed { seal(&page) }
    var sums: [UInt32] = []
    for index in [0, 1, 511, 1022] {
        guard let sum = try? MapFileBody.checksum(at: index, ofGroup: page.span.bytes) else {
            return precondition(sums.isEmpty, "a group is damaged as a whole")
        }
        sums.append(sum)
    }
}

private func decodePage(_ page: [UInt8], epoch: UInt32, sealed: Bool) {
    let sum = sealed && page.count == 4096 ? MapFileBody.checksum(ofPage: page.span.bytes) : 7
    for count in [512, 100, 0] {
        let entries = UnsafeMutableBufferPointer<UInt64>.allocate(capacity: count)
        defer { entries.deallocate() }
        entries.initialize(repeating: 0x5555)
        do {
            try MapFileBody.decodePage(
                page.span.bytes, checksum: sum, epoch: epoch, into: entries)
            for entry in entries {
                precondition(ChangeEntry(rawValue: entry).isPossible(atEpoch: epoch))
            }
            var copy = [UInt8](repeating: 0xEE, count: 4096)
            var span = copy.mutableSpan
            var bytes = span.mutableBytes
            MapFileBody.encodePage(UnsafeBufferPointer(entries), into: &bytes)
            precondition(copy == page, "a page that was read is written as it was")
        } catch {
            precondition(entries.allSatisfy { $0 == 0x5555 }, "damage leaves the map alone")
        }
    }
}
