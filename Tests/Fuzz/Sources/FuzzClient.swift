import BlockModel
import Glibc
import NBDWire

@testable import CopyPlanning
@testable import CopyTargets
@testable import ImageCopy
@testable import NBDAccess

/// A server that says anything to our own client, which copies an image of 1 MiB from it. The copy
/// ends; one that succeeded holds nothing but what the server said of each place, each said once.
func fuzzClient(_ input: inout FuzzInput) {
    let kind = input.byte()
    var bytes: [UInt8]
    if kind & 1 != 0 {
        bytes = greeting() + input.rest()
    } else {
        let isExtended = kind & 2 != 0
        bytes = greeting() + handshake(isExtended, hasAllocation: kind & 4 != 0)
        while !input.isEmpty, bytes.count < 2 << 20 { bytes += reply(&input, isExtended) }
    }
    if kind & 0xF0 == 0xF0 { bytes.removeLast(Int(input.byte()) % bytes.count) }
    copy(bytes, isFresh: kind & 8 != 0)
}

private let imageByteCount: UInt64 = 1 << 20

// MARK: The server

private func big<Value: FixedWidthInteger>(_ value: Value) -> [UInt8] {
    withUnsafeBytes(of: value.bigEndian) { Array($0) }
}

private func greeting() -> [UInt8] {
    big(NBD.greetingMagic) + big(NBD.optionMagic) + big(UInt16(3))
}

private func answer(_ option: UInt32, _ type: UInt32, _ data: [UInt8] = []) -> [UInt8] {
    big(NBD.optionReplyMagic) + big(option) + big(type) + big(UInt32(data.count)) + data
}

private func handshake(_ isExtended: Bool, hasAllocation: Bool) -> [UInt8] {
    let acknowledge = NBD.OptionReply.acknowledge.rawValue
    var bytes = answer(
        NBD.Option.extendedHeaders.rawValue,
        isExtended ? acknowledge : NBD.OptionReply.unsupported.rawValue)
    if !isExtended { bytes += answer(NBD.Option.structuredReply.rawValue, acknowledge) }
    if hasAllocation {
        bytes += answer(
            NBD.Option.setMetaContext.rawValue, NBD.OptionReply.metaContext.rawValue,
            big(UInt32(1)) + "base:allocation".utf8)
    }
    bytes += answer(NBD.Option.setMetaContext.rawValue, acknowledge)
    bytes += answer(
        NBD.Option.go.rawValue, NBD.OptionReply.info.rawValue,
        big(UInt16(0)) + big(imageByteCount) + big(UInt16(1)))
    return bytes + answer(NBD.Option.go.rawValue, acknowledge)
}

/// What the image holds at an offset; never zero, so that data and zeroes differ.
private func content(_ offset: UInt64) -> UInt8 {
    UInt8(truncatingIfNeeded: (offset >> 9) &* 0x9E37_79B9_7F4A_7C15 >> 56) | 1
}

private func contents(_ offset: UInt64, _ byteCount: Int) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(byteCount)
    while bytes.count < byteCount {
        let place = offset &+ UInt64(bytes.count)
        let count = min(512 - Int(place % 512), byteCount - bytes.count)
        bytes.append(contentsOf: repeatElement(content(place), count: count))
    }
    return bytes
}

/// A reply: mostly one that fits a request which the client has surely made by then.
private func reply(_ input: inout FuzzInput, _ isExtended: Bool) -> [UInt8] {
    let kind = input.byte()
    let flags: UInt16 = kind & 1 == 0 ? NBD.chunkDone : 0
    if kind == 255 { return input.take(Int(input.byte())) }
    let place = input.byte()
    // The client takes its slots from the last to the first, and needs four.
    let cookie: UInt64 =
        switch place {
        case 0..<192: 15 - UInt64(place % 4)
        case 192..<224: UInt64(place % 32)
        default: .max
        }
    let odd = input.byte()
    let slotOffset = (15 - min(15, cookie)) << 18
    let offset: UInt64
    let byteCount: UInt64
    switch odd {
    case 0..<128: (offset, byteCount) = (slotOffset, 1 << 18)
    case 128..<192: (offset, byteCount) = (slotOffset + UInt64(odd % 2) << 17, 1 << 17)
    case 192..<250:
        offset = slotOffset &+ UInt64(input.integer() as UInt32)
        byteCount = UInt64(input.integer() as UInt16)
    default: (offset, byteCount) = (input.integer(), UInt64(odd))
    }
    switch kind >> 4 {
    case 0..<6:
        let data = contents(offset, Int(min(byteCount, 1 << 18)))
        return chunk(
            isExtended, flags, NBD.Chunk.offsetData.rawValue, cookie, big(offset) + data)
    case 6..<9:
        return chunk(
            isExtended, flags, NBD.Chunk.offsetHole.rawValue, cookie,
            big(offset) + big(UInt32(truncatingIfNeeded: byteCount)))
    case 9: return chunk(isExtended, flags, NBD.Chunk.none.rawValue, cookie, [])
    case 10:
        return chunk(
            isExtended, flags, NBD.chunkErrorBit | UInt16(odd), cookie,
            big(UInt32(5)) + big(UInt16(0)))
    case 11: return chunk(isExtended, flags, UInt16(odd), cookie, input.take(Int(place)))
    default: return status(&input, isExtended, flags, count: Int(odd % 8))
    }
}

private func status(
    _ input: inout FuzzInput, _ isExtended: Bool, _ flags: UInt16, count: Int
) -> [UInt8] {
    var body = big(UInt32(1))
    if isExtended { body += big(UInt32(count)) }
    for _ in 0..<count {
        let kind = input.byte()
        let length: UInt64 =
            switch kind >> 2 {
            case 0..<32: UInt64(kind >> 2) << 18
            case 33: imageByteCount
            case 34: .max
            case 35: 0
            default: input.integer()
            }
        body += isExtended ? big(length) : big(UInt32(truncatingIfNeeded: length))
        body += isExtended ? big(UInt64(kind & 3)) : big(UInt32(kind & 3))
    }
    let type = isExtended ? NBD.Chunk.blockStatusExtended.rawValue : NBD.Chunk.blockStatus.rawValue
    return chunk(isExtended, flags, type, .max, body)
}

private func chunk(
    _ isExtended: Bool, _ flags: UInt16, _ type: UInt16, _ cookie: UInt64, _ body: [UInt8]
) -> [UInt8] {
    var bytes = big(
        isExtended ? NBD.extendedReplyMagic : NBD.structuredReplyMagic)
    bytes += big(flags) + big(type) + big(cookie)
    bytes += isExtended ? big(UInt64(0)) + big(UInt64(body.count)) : big(UInt32(body.count))
    return bytes + body
}

// MARK: The copy

private let targetPath: String = fuzzPath("copy")

private func copy(_ bytes: [UInt8], isFresh: Bool) {
    var ends: [Int32] = [0, 0]
    precondition(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0)
    let server = ends[1]
    let said = Said(bytes, server)
    defer { said.finish() }
    unlink(targetPath)
    do {
        let worker = CopyWorker(try NBDExport(NBDStream(adopting: ends[0]), export: "disk"))
        let target = try CopyTarget(opening: targetPath, creates: true)
        try target.resize(to: imageByteCount)
        let work = CopyWork(wholeImage: imageByteCount)
        worker.work(work, into: target, isFresh: isFresh)
        try work.check()
        precondition(worker.imageSize <= UInt64(Int64.max))
        compare()
    } catch let error as NBDAccessError {
        precondition(error.description.utf8.count < 32768, "a message has its bound")
        precondition(!error.description.utf8.contains { $0 < 32 }, "a message is one line")
    } catch {}
}

/// Sends what the server says from a thread of its own, and takes what the client says.
private final class Said: @unchecked Sendable {
    // Written before the thread begins, read by it alone.
    private let bytes: [UInt8]
    private let descriptor: Int32
    private var thread = pthread_t()

    init(_ bytes: [UInt8], _ descriptor: Int32) {
        self.bytes = bytes
        self.descriptor = descriptor
        let context = Unmanaged.passUnretained(self).toOpaque()
        let result = pthread_create(
            &thread, nil,
            { context in
                Unmanaged<Said>.fromOpaque(context!).takeUnretainedValue().run()
                return nil
            }, context)
        precondition(result == 0)
    }

    private func run() {
        var sent = 0
        while sent < bytes.count {
            let count = bytes.withUnsafeBytes {
                send(descriptor, $0.baseAddress! + sent, $0.count - sent, Int32(MSG_NOSIGNAL))
            }
            guard count > 0 else { break }
            sent += count
        }
        shutdown(descriptor, Int32(SHUT_WR))
    }

    /// The client is gone, so the thread ends.
    func finish() {
        pthread_join(thread, nil)
        close(descriptor)
    }
}

/// Each byte of the target is that of its place, or zero where the server said so.
private func compare() {
    let descriptor = open(targetPath, O_RDONLY)
    defer { close(descriptor) }
    var piece = [UInt8](repeating: 0, count: 1 << 20)
    var offset: UInt64 = 0
    while offset < imageByteCount {
        precondition(pread(descriptor, &piece, piece.count, off_t(offset)) == piece.count)
        for sector in stride(from: 0, to: piece.count, by: 512) {
            let expected = contents(offset + UInt64(sector), 512)
            let found = piece[sector..<sector + 512]
            if found.elementsEqual(expected) { continue }
            precondition(
                zip(found, expected).allSatisfy { $0 == 0 || $0 == $1 }, "a byte of another place")
        }
        offset += UInt64(piece.count)
    }
}
