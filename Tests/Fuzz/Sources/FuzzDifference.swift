import BlockModel
import Glibc

@testable import CopyPlanning
@testable import ImageCopy

/// A stream of `rbd export-diff` that may hold anything, or is made of records that mostly fit. It
/// is applied to a file of 1 MiB, or refused; what is applied equals what a plain reading of the
/// same bytes says, and nothing beyond the image's end is touched.
func fuzzDifference(_ input: inout FuzzInput) {
    let kind = input.byte()
    let bytes = kind & 1 != 0 ? Array("rbd diff v1\n".utf8) + input.rest() : stream(&input)
    let file = open(streamPath, O_RDWR | O_CREAT | O_TRUNC, 0o600)
    precondition(file >= 0)
    defer { close(file) }
    precondition(pwrite(file, bytes, bytes.count, 0) == bytes.count)
    let sink = ArraySink(Int(imageByteCount))
    do throws(CopyError) {
        let reader = DifferenceReader(file)
        let head = try reader.head()
        guard head.size <= imageByteCount else { return }
        _ = try reader.apply(head, to: sink, end: imageByteCount)
        let expected = plainReading(bytes, of: head)
        precondition(expected == sink.bytes, "what was applied is what the stream says")
    } catch {
        precondition(error.message.utf8.count < 4096, "a message has its bound")
    }
}

private let streamPath: String = fuzzPath("stream")
private let imageByteCount: UInt64 = 1 << 20

private func little<Value: FixedWidthInteger>(_ value: Value) -> [UInt8] {
    withUnsafeBytes(of: value.littleEndian) { Array($0) }
}

/// A stream of records that mostly lie in the image.
private func stream(_ input: inout FuzzInput) -> [UInt8] {
    var bytes = Array("rbd diff v1\n".utf8)
    if input.byte() & 1 != 0 { bytes += [UInt8(ascii: "f")] + little(UInt32(1)) + [65] }
    if input.byte() & 1 != 0 { bytes += [UInt8(ascii: "t")] + little(UInt32(1)) + [66] }
    bytes += [UInt8(ascii: "s")] + little(imageByteCount)
    while !input.isEmpty, bytes.count < 512 << 10 {
        let kind = input.byte()
        let offset = UInt64(input.byte()) * 4096 + UInt64(input.byte())
        let length = UInt64(input.byte()) * 17
        if kind & 1 == 0 {
            bytes += [UInt8(ascii: "w")] + little(offset) + little(length)
            bytes += [UInt8](repeating: kind | 1, count: Int(length))
        } else {
            bytes += [UInt8(ascii: "z")] + little(offset) + little(length)
        }
        if kind == 0xFE { return bytes }
    }
    return bytes + [UInt8(ascii: "e")]
}

/// What a stream says, read in the simplest way; only for streams that were accepted.
private func plainReading(_ bytes: [UInt8], of head: DifferenceReader.Head) -> [UInt8] {
    var image = [UInt8](
        repeating: head.from == nil ? 0 : ArraySink.former, count: Int(imageByteCount))
    var place = 12
    func number(_ count: Int) -> Int {
        defer { place += count }
        return (0..<count).reduce(0) { $0 | Int(bytes[place + $1]) << ($1 * 8) }
    }
    while true {
        let tag = bytes[place]
        place += 1
        switch tag {
        case UInt8(ascii: "f"), UInt8(ascii: "t"):
            let count = number(4)
            place += count
        case UInt8(ascii: "s"): place += 8
        case UInt8(ascii: "w"):
            let (offset, length) = (number(8), number(8))
            image.replaceSubrange(
                offset..<offset + length, with: bytes[place..<place + length])
            place += length
        case UInt8(ascii: "z"):
            let (offset, length) = (number(8), number(8))
            image.replaceSubrange(
                offset..<offset + length, with: repeatElement(0, count: length))
        default: return image
        }
    }
}

/// An image in memory that held something else before.
private final class ArraySink: CopySink, @unchecked Sendable {
    // Used by one thread.
    static let former: UInt8 = 0xAA
    private(set) var bytes: [UInt8]

    init(_ byteCount: Int) { bytes = [UInt8](repeating: Self.former, count: byteCount) }

    func write(
        _ start: UnsafeRawPointer, _ byteCount: Int, at offset: UInt64
    ) throws(CopyError) {
        precondition(Int(offset) + byteCount <= bytes.count, "within the image")
        let data = UnsafeRawBufferPointer(start: start, count: byteCount)
        bytes.replaceSubrange(Int(offset)..<Int(offset) + byteCount, with: data)
    }

    func zero(_ range: ByteRange) throws(CopyError) {
        precondition(range.end <= UInt64(bytes.count), "within the image")
        bytes.replaceSubrange(
            Int(range.offset)..<Int(range.end), with: repeatElement(0, count: Int(range.length)))
    }

    func drain() throws(CopyError) {}
}
