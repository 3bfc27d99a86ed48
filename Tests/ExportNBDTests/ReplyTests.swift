import BlockModel
import Testing

@testable import ExportNBD

@Suite struct `Replies` {
    private let cookie: UInt64 = 0x0102_0304_0506_0708
    private let cookieBytes: [UInt8] = [1, 2, 3, 4, 5, 6, 7, 8]

    private func bytes(_ body: (UnsafeMutableRawPointer) -> Int) -> [UInt8] {
        withUnsafeTemporaryAllocation(
            byteCount: NBDReplyEncoder.headerByteCountMax, alignment: 16
        ) { room in
            guard let base = room.baseAddress else { return [] }
            let count = body(base)
            #expect(count <= room.count)
            return Array(room[0..<count])
        }
    }

    @Test func `simple replies are a magic, an error and the cookie`() {
        let encoder = NBDReplyEncoder(style: .simple)
        let head: [UInt8] = [0x67, 0x44, 0x66, 0x98]
        #expect(
            bytes { encoder.success(cookie: cookie, offset: 9, into: $0) }
                == head + [0, 0, 0, 0] + cookieBytes)
        #expect(
            bytes { encoder.data(cookie: cookie, offset: 9, byteCount: 512, into: $0) }
                == head + [0, 0, 0, 0] + cookieBytes)
        #expect(
            bytes { encoder.failure(.noSpace, cookie: cookie, offset: 9, into: $0) }
                == head + [0, 0, 0, 28] + cookieBytes)
    }

    @Test func `structured replies carry type, length and offset`() {
        let encoder = NBDReplyEncoder(style: .structured)
        let head: [UInt8] = [0x66, 0x8E, 0x33, 0xEF]
        #expect(
            bytes { encoder.success(cookie: cookie, offset: 9, into: $0) }
                == head + [0, 1, 0, 0] + cookieBytes + [0, 0, 0, 0])
        #expect(
            bytes { encoder.data(cookie: cookie, offset: 0x1000, byteCount: 512, into: $0) }
                == head + [0, 1, 0, 1] + cookieBytes + [0, 0, 2, 8]
                + [0, 0, 0, 0, 0, 0, 0x10, 0])
        #expect(
            bytes {
                encoder.status(
                    cookie: cookie, offset: 0, contextID: 7, extentCount: 2, isLast: false,
                    into: $0)
            } == head + [0, 0, 0, 5] + cookieBytes + [0, 0, 0, 20] + [0, 0, 0, 7])
    }

    @Test func `extended replies repeat the offset and have 64-bit lengths`() {
        let encoder = NBDReplyEncoder(style: .extended)
        let head: [UInt8] = [0x6E, 0x8A, 0x27, 0x8C]
        let offset: [UInt8] = [0, 0, 0, 0, 0, 0, 0x10, 0]
        #expect(
            bytes { encoder.success(cookie: cookie, offset: 0x1000, into: $0) }
                == head + [0, 1, 0, 0] + cookieBytes + offset + [0, 0, 0, 0, 0, 0, 0, 0])
        #expect(
            bytes { encoder.data(cookie: cookie, offset: 0x1000, byteCount: 512, into: $0) }
                == head + [0, 1, 0, 1] + cookieBytes + offset + [0, 0, 0, 0, 0, 0, 2, 8] + offset)
        #expect(
            bytes {
                encoder.status(
                    cookie: cookie, offset: 0x1000, contextID: 7, extentCount: 3, isLast: true,
                    into: $0)
            }
                == head + [0, 1, 0, 6] + cookieBytes + offset + [0, 0, 0, 0, 0, 0, 0, 56]
                + [0, 0, 0, 7, 0, 0, 0, 3])
    }

    @Test(
        arguments: [
            NBDErrorCode.notPermitted, .inputOutput, .noMemory, .invalid, .noSpace, .overflow,
            .notSupported, .shutdown,
        ], [NBDReplyStyle.structured, .extended])
    func `errors carry their message`(code: NBDErrorCode, style: NBDReplyStyle) {
        let encoder = NBDReplyEncoder(style: style)
        let reply = bytes { encoder.failure(code, cookie: cookie, offset: 0, into: $0) }
        let head = style == .extended ? 32 : 20
        let text = Array(code.message.description.utf8)
        #expect(Array(reply[4..<8]) == [0, 1, 0x80, 0x01])
        #expect(reply[head - 1] == UInt8(6 + text.count))
        #expect(
            Array(reply[head...]) == [0, 0, 0, UInt8(code.rawValue), 0, UInt8(text.count)] + text)
    }

    @Test func `faults become the errors the protocol knows`() {
        func code(_ fault: Fault) -> NBDErrorCode { NBDErrorCode(fault, isFastZero: false) }
        #expect(code(.notPermitted) == .notPermitted)
        #expect(code(.inputOutput) == .inputOutput)
        #expect(code(.deviceGone) == .inputOutput)
        #expect(code(.noMemory) == .noMemory)
        #expect(code(.noSpace) == .noSpace)
        #expect(code(.shutdown) == .shutdown)
        #expect(code(.notSupported) == .invalid)
        #expect(NBDErrorCode(.notSupported, isFastZero: true) == .notSupported)
        #expect(code(Fault(errnoValue: 122)) == .noSpace)
        #expect(code(Fault(errnoValue: 30)) == .notPermitted)
        #expect(code(Fault(errnoValue: 4095)) == .inputOutput)
    }

    private func extents(
        _ style: NBDReplyStyle, _ records: [StatusExtent], onlyOneUpTo limit: UInt64? = nil
    ) -> [UInt8] {
        var records = records
        let encoder = NBDReplyEncoder(style: style)
        let byteCount = records.count * 16
        return records.withUnsafeMutableBytes { memory in
            guard let base = memory.baseAddress else { return [] }
            let count = encoder.extents(
                in: base, recordByteCount: byteCount, onlyOneUpTo: limit)
            return Array(memory[0..<count * encoder.extentByteCount])
        }
    }

    private func compact(_ length: UInt32, _ flags: UInt32) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.appendWire(length)
        bytes.appendWire(flags)
        return bytes
    }

    @Test func `extents are encoded in both widths`() {
        let records = [
            StatusExtent(length: 4096, flags: 0), StatusExtent(length: 8192, flags: 3),
            StatusExtent(length: 512, flags: 1),
        ]
        #expect(
            extents(.structured, records) == compact(4096, 0) + compact(8192, 3) + compact(512, 1))
        var wide: [UInt8] = []
        for record in records {
            wide.appendWire(record.length)
            wide.appendWire(record.flags)
        }
        #expect(extents(.extended, records) == wide)
    }

    @Test(arguments: [
        (UInt64(0xFFFF_F000), UInt32(0xFFFF_F000)), (0xFFFF_FFFF, 0xFFFF_FFFF),
        (0x1_0000_0000, 0xFFFF_F000), (0x1_0000_0001, 0xFFFF_F000), (.max, 0xFFFF_F000),
    ])
    func `a compact extent is cut below 4 GiB and ends the list`(length: UInt64, wire: UInt32) {
        let records = [
            StatusExtent(length: 4096, flags: 1), StatusExtent(length: length, flags: 3),
            StatusExtent(length: 4096, flags: 0),
        ]
        let tail = UInt64(wire) == length ? compact(4096, 0) : []
        #expect(extents(.structured, records) == compact(4096, 1) + compact(wire, 3) + tail)
        #expect(extents(.extended, records).count == 48)
    }

    @Test func `one extent means one, and not beyond what was asked for`() {
        let records = [
            StatusExtent(length: 1 << 40, flags: 3), StatusExtent(length: 4096, flags: 0),
        ]
        #expect(extents(.structured, records, onlyOneUpTo: 65536) == compact(65536, 3))
        #expect(
            extents(.structured, records, onlyOneUpTo: 0xFFFF_FFFF) == compact(0xFFFF_FFFF, 3))
        var wide: [UInt8] = []
        wide.appendWire(UInt64(1) << 40)
        wide.appendWire(UInt64(3))
        #expect(extents(.extended, records, onlyOneUpTo: .max) == wide)
    }
}
