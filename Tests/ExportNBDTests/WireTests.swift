import BlockModel
import NBDWire
import Testing

@testable import ExportNBD

@Suite struct `On the wire` {
    private let cookie: UInt64 = 0x0102_0304_0506_0708
    private let cookieBytes: [UInt8] = [1, 2, 3, 4, 5, 6, 7, 8]
    private let compact: [UInt8] = [
        0x25, 0x60, 0x95, 0x13, 0x00, 0x01, 0x00, 0x06, 1, 2, 3, 4, 5, 6, 7, 8,
        0, 0, 0, 0, 0, 0, 0x10, 0, 0xFF, 0xFF, 0xFF, 0xFF,
    ]
    private let extended: [UInt8] = [
        0x21, 0xE4, 0x1C, 0x71, 0x00, 0x20, 0x00, 0x01, 1, 2, 3, 4, 5, 6, 7, 8,
        0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 1, 0, 0, 0, 0,
    ]

    private func decode(_ bytes: [UInt8], _ mode: NBDReplyMode) -> NBDRequestHeader? {
        bytes.withUnsafeBytes { bytes in
            bytes.baseAddress.flatMap { NBDRequestHeader(decoding: $0, mode: mode) }
        }
    }

    @Test func `compact request headers are read byte for byte`() throws {
        for mode in [NBDReplyMode.simple, .structured] {
            let header = try #require(decode(compact, mode))
            #expect(header.flags == 1 && header.type == 6 && header.cookie == cookie)
            #expect(header.offset == 4096 && header.length == 0xFFFF_FFFF)
            #expect(NBDRequestHeader.byteCount(in: mode) == compact.count)
        }
    }

    @Test func `extended request headers are read byte for byte`() throws {
        let header = try #require(decode(extended, .extended))
        #expect(header.flags == 0x20 && header.type == 1 && header.cookie == cookie)
        #expect(header.offset == 4096 && header.length == 1 << 32)
        #expect(NBDRequestHeader.byteCount(in: .extended) == extended.count)
    }

    @Test func `the magic of another form is refused`() {
        #expect(decode(compact + [0, 0, 0, 0], .extended) == nil)
        #expect(decode(extended, .structured) == nil)
    }

    private func bytes(_ count: Int, _ body: (UnsafeMutableRawPointer) -> Void) -> [UInt8] {
        var bytes = [UInt8](repeating: 0xEE, count: count)
        bytes.withUnsafeMutableBytes { room in if let base = room.baseAddress { body(base) } }
        return bytes
    }

    @Test func `reply headers are written byte for byte`() {
        #expect(
            bytes(16) { NBDReplyHeader.writeSimple($0, error: 28, cookie: cookie) }
                == [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28] + cookieBytes)
        #expect(
            bytes(20) {
                NBDReplyHeader.writeStructured(
                    $0, flags: 1, type: .offsetData, cookie: cookie, length: 520)
            } == [0x66, 0x8E, 0x33, 0xEF, 0, 1, 0, 1] + cookieBytes + [0, 0, 2, 8])
        #expect(
            bytes(32) {
                NBDReplyHeader.writeExtended(
                    $0, flags: 0, type: .blockStatusExtended, cookie: cookie, offset: 4096,
                    length: 1 << 32)
            }
                == [0x6E, 0x8A, 0x27, 0x8C, 0, 0, 0, 6] + cookieBytes
                + [0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 1, 0, 0, 0, 0])
    }

    @Test(arguments: [
        (Int32(1), UInt32(1)), (5, 5), (6, 5), (11, 5), (12, 12), (13, 1), (22, 22), (27, 28),
        (28, 28), (30, 1), (75, 75), (95, 95), (108, 108), (122, 28), (4095, 5),
    ])
    func `faults become errors the protocol knows`(errnoValue: Int32, number: UInt32) {
        #expect(
            NBDErrorReply.number(for: Fault(errnoValue: errnoValue)).rawValue == number)
    }
}
