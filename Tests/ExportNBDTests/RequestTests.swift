import BlockModel
import Testing

@testable import ExportNBD

@Suite struct `Requests` {
    private let compact: [UInt8] = [
        0x25, 0x60, 0x95, 0x13, 0x00, 0x01, 0x00, 0x06, 1, 2, 3, 4, 5, 6, 7, 8,
        0, 0, 0, 0, 0, 0, 0x10, 0, 0xFF, 0xFF, 0xFF, 0xFF,
    ]
    private let extended: [UInt8] = [
        0x21, 0xE4, 0x1C, 0x71, 0x00, 0x20, 0x00, 0x01, 1, 2, 3, 4, 5, 6, 7, 8,
        0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 1, 0, 0, 0, 0,
    ]

    private func decode(_ bytes: [UInt8], _ style: NBDReplyStyle) -> NBDRequestHeader? {
        bytes.withUnsafeBytes { bytes in
            bytes.baseAddress.flatMap { NBDRequestHeader(decoding: $0, style: style) }
        }
    }

    @Test func `compact headers are read byte for byte`() {
        let expected = NBDRequestHeader(
            flags: 1, command: 6, cookie: 0x0102_0304_0506_0708, offset: 4096,
            length: 0xFFFF_FFFF)
        #expect(decode(compact, .simple) == expected)
        #expect(decode(compact, .structured) == expected)
        #expect(NBDReplyStyle.simple.requestHeaderByteCount == compact.count)
    }

    @Test func `extended headers are read byte for byte`() {
        #expect(
            decode(extended, .extended)
                == NBDRequestHeader(
                    flags: 0x20, command: 1, cookie: 0x0102_0304_0506_0708, offset: 4096,
                    length: 1 << 32))
        #expect(NBDReplyStyle.extended.requestHeaderByteCount == extended.count)
    }

    @Test func `the magic of another form is refused`() {
        #expect(decode(compact + [0, 0, 0, 0], .extended) == nil)
        #expect(decode(extended, .structured) == nil)
    }

    private func judge(
        _ command: UInt16, flags: NBDCommandFlags = [], offset: UInt64 = 0, length: UInt64 = 512,
        style: NBDReplyStyle = .structured, isReadOnly: Bool = false, hasContexts: Bool = true
    ) -> NBDJudgement {
        NBDRequestRules(style: style, isReadOnly: isReadOnly, hasContexts: hasContexts).judge(
            NBDRequestHeader(
                flags: flags.rawValue, command: command, cookie: 0, offset: offset,
                length: length), size: 65536)
    }

    @Test func `every command within the export is served`() {
        #expect(judge(0) == NBDJudgement(.serve(.read, [])))
        #expect(judge(1) == NBDJudgement(.serve(.write, []), payloadByteCount: 512))
        #expect(judge(2) == NBDJudgement(.disconnect))
        #expect(judge(3, length: 0) == NBDJudgement(.serve(.flush, [])))
        #expect(judge(4) == NBDJudgement(.serve(.discard, [])))
        #expect(judge(5) == NBDJudgement(.serve(.prefetch, [])))
        #expect(judge(6) == NBDJudgement(.serve(.writeZeroes, [])))
        #expect(judge(7) == NBDJudgement(.serve(.blockStatus, [])))
    }

    @Test func `flags reach the device`() {
        #expect(judge(1, flags: .forceUnitAccess).action == .serve(.write, .forceUnitAccess))
        #expect(judge(4, flags: .forceUnitAccess).action == .serve(.discard, .forceUnitAccess))
        #expect(
            judge(6, flags: [.noHole, .fastZero, .forceUnitAccess]).action
                == .serve(.writeZeroes, [.keepAllocated, .onlyFast, .forceUnitAccess]))
        #expect(judge(7, flags: .requestOne).action == .serve(.blockStatus, .oneExtent))
    }

    @Test(arguments: [UInt16(0), 1, 3, 4, 5, 6, 7])
    func `FUA is taken with every command`(command: UInt16) {
        let action = judge(command, flags: .forceUnitAccess).action
        guard case .serve = action else {
            Issue.record("\(action)")
            return
        }
    }

    @Test(arguments: [(UInt64(65536), UInt64(1)), (65535, 2), (.max, 1), (1, .max), (.max, .max)])
    func `beyond the end each command has its own error`(offset: UInt64, length: UInt64) {
        for (command, code) in [
            (UInt16(0), NBDErrorCode.invalid), (4, .invalid), (5, .invalid), (6, .noSpace),
            (7, .invalid),
        ] {
            #expect(
                judge(command, offset: offset, length: length, style: .extended).action
                    == .refuse(code))
        }
        let payload = min(length, 1 << 20)
        #expect(
            judge(
                1, flags: .payloadLength, offset: max(offset, 65536), length: payload,
                style: .extended)
                == NBDJudgement(.refuse(.noSpace), payloadByteCount: payload))
    }

    @Test func `what changes a read-only export is not permitted`() {
        for command in [UInt16(1), 4, 6] {
            #expect(judge(command, isReadOnly: true).action == .refuse(.notPermitted))
        }
        #expect(judge(3, isReadOnly: true).action == .succeed)
    }

    @Test func `unknown commands and flags are invalid and the payload is skipped`() {
        #expect(judge(8) == NBDJudgement(.refuse(.invalid)))
        #expect(judge(0xFFFF) == NBDJudgement(.refuse(.invalid)))
        #expect(
            judge(1, flags: NBDCommandFlags(rawValue: 1 << 9))
                == NBDJudgement(.refuse(.invalid), payloadByteCount: 512))
        #expect(
            judge(0, flags: .payloadLength, style: .extended)
                == NBDJudgement(.refuse(.invalid), payloadByteCount: 512))
        #expect(judge(0, flags: .dontFragment, style: .simple).action == .refuse(.invalid))
        #expect(judge(0, flags: .dontFragment).action == .serve(.read, []))
    }

    @Test func `payloads beyond the limit are skipped, and far beyond it end the connection`() {
        let limit = NBDLimits.payloadByteCountMax
        #expect(
            judge(1, length: limit + 1)
                == NBDJudgement(.refuse(.invalid), payloadByteCount: limit + 1))
        #expect(judge(1, length: 0xFFFF_FFFF).action == .violation)
        #expect(judge(0, length: limit + 1).action == .refuse(.invalid))
        #expect(judge(0, flags: .dontFragment, length: limit + 1).action == .refuse(.overflow))
        #expect(judge(1, style: .extended).action == .violation)
        #expect(
            judge(5, flags: .payloadLength, length: .max, style: .extended).action == .violation)
    }

    @Test func `nothing is a request that succeeds, except block status`() {
        for command in [UInt16(0), 1, 4, 5, 6] {
            #expect(judge(command, length: 0) == NBDJudgement(.succeed))
        }
        #expect(judge(7, length: 0).action == .refuse(.invalid))
        #expect(judge(7, hasContexts: false).action == .refuse(.invalid))
    }

    @Test func `a list of contexts has a length that fits`() {
        func subset(_ length: UInt64) -> NBDJudgement {
            judge(7, flags: .payloadLength, length: length, style: .extended)
        }
        #expect(subset(12) == NBDJudgement(.serveStatusSubset, payloadByteCount: 12))
        #expect(subset(8 + 64 * 4).action == .serveStatusSubset)
        for length: UInt64 in [0, 4, 7, 9, 11, 268] {
            #expect(subset(length) == NBDJudgement(.refuse(.invalid), payloadByteCount: length))
        }
    }
}
