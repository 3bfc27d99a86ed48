import Foundation
import TestSupport
import Testing

private let gibibyte: UInt64 = 1 << 30

/// Extended headers, which Debian's clients do not speak, byte for byte.
@Suite(
    .serialized, .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Extended headers` {
    private let served: ServedOrigin
    private let client: NBDClient

    init() throws {
        // Sparse: what is written takes room, what is zeroed does not.
        served = try ServedOrigin(
            Setting(kind: .sparseFile, transport: .unix), byteCount: Int(16 * gibibyte))
        client = try served.client(.extended, contexts: ["base:allocation"])
    }

    /// Sends raw bytes and expects exactly these back.
    private func exchange(
        _ request: String, _ reply: String, sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        try client.send(bytes(of: request))
        let expected = bytes(of: reply)
        let received = try client.receive(expected.count)
        #expect(hex(received) == hex(expected), sourceLocation: sourceLocation)
    }

    @Test func `a write, a read and a flush look as the specification says`() throws {
        try exchange(
            // magic, flags PAYLOAD_LEN, WRITE, cookie, offset, length, the data
            "21e41c71 0020 0001 1122334455667788 0000000140000000 0000000000000004 cafebabe",
            // magic, DONE, NONE, cookie, offset, no payload
            "6e8a278c 0001 0000 1122334455667788 0000000140000000 0000000000000000")
        try exchange(
            "21e41c71 0004 0000 0000000000000002 0000000140000000 0000000000000004",
            // magic, DONE, OFFSET_DATA, cookie, offset, 12 bytes of payload: offset and data
            "6e8a278c 0001 0001 0000000000000002 0000000140000000 000000000000000c"
                + "0000000140000000 cafebabe")
        try exchange(
            "21e41c71 0000 0003 ffffffffffffffff 0000000000000000 0000000000000000",
            "6e8a278c 0001 0000 ffffffffffffffff 0000000000000000 0000000000000000")
    }

    @Test func `zeroes and trims of more than 4 GiB are one request`() throws {
        let mark = [UInt8](repeating: 0xaa, count: 4096)
        let inside = [gibibyte, 5 * gibibyte, 6 * gibibyte + 4096]
        for offset in inside + [0, 7 * gibibyte] { try client.write(offset, mark) }
        try exchange(
            // WRITE_ZEROES, offset 1 GiB, length 6 GiB
            "21e41c71 0000 0006 0000000000000003 0000000040000000 0000000180000000",
            "6e8a278c 0001 0000 0000000000000003 0000000040000000 0000000000000000")
        for offset in inside { #expect(try client.read(offset, 4096).allSatisfy { $0 == 0 }) }
        #expect(try client.read(0, 4096) == mark)
        #expect(try client.read(7 * gibibyte, 4096) == mark)

        for offset in inside { try client.write(offset, mark) }
        try exchange(
            // TRIM, offset 1 GiB, length 6 GiB
            "21e41c71 0000 0004 0000000000000004 0000000040000000 0000000180000000",
            "6e8a278c 0001 0000 0000000000000004 0000000040000000 0000000000000000")
        #expect(try client.read(7 * gibibyte, 4096) == mark)
        let extents = try client.blockStatus(0, 16 * gibibyte)
        #expect(extents.reduce(0) { $0 + $1.length } == 16 * gibibyte)
    }

    @Test func `zeroes that keep their room are one request of more than 4 GiB`() throws {
        try client.write(4096, [UInt8](repeating: 1, count: 4096))
        try exchange(
            // NO_HOLE, WRITE_ZEROES, offset 0, length 4 GiB + 64 KiB
            "21e41c71 0002 0006 0000000000000005 0000000000000000 0000000100010000",
            "6e8a278c 0001 0000 0000000000000005 0000000000000000 0000000000000000")
        #expect(try client.read(4096, 4096).allSatisfy { $0 == 0 })
        // SEEK_DATA takes unwritten room for a hole, so only the file's block count tells.
        let attributes = try Command.check("stat", ["--format=%b %B", served.origin.path])
        let words = attributes.split(whereSeparator: \.isWhitespace).compactMap { UInt64($0) }
        #expect(words[0] * words[1] >= 4 * gibibyte)
    }

    @Test func `block status answers with lengths of more than 4 GiB`() throws {
        try client.write(12 * gibibyte, [UInt8](repeating: 1, count: 65536))
        let context = try #require(client.contexts["base:allocation"])
        let id = String(format: "%08x", context)
        try exchange(
            // BLOCK_STATUS, offset 0, length 16 GiB
            "21e41c71 0000 0007 0000000000000006 0000000000000000 0000000400000000",
            // DONE, BLOCK_STATUS_EXT, 8 + 3 * 16 bytes: context, count, {length, flags}
            "6e8a278c 0001 0006 0000000000000006 0000000000000000 0000000000000038"
                + "\(id) 00000003 0000000300000000 0000000000000003"
                + "0000000000010000 0000000000000000 00000000ffff0000 0000000000000003")
        try exchange(
            // REQ_ONE, BLOCK_STATUS, offset 1 GiB, length 8 GiB: one extent, not beyond the request
            "21e41c71 0008 0007 0000000000000007 0000000040000000 0000000200000000",
            "6e8a278c 0001 0006 0000000000000007 0000000040000000 0000000000000018"
                + "\(id) 00000001 0000000200000000 0000000000000003")
    }

    @Test func `a payload of block status names the contexts that are wanted`() throws {
        #expect(client.flags & NBD.TransmissionFlag.blockStatusPayload != 0)
        let context = try #require(client.contexts["base:allocation"])
        let id = String(format: "%08x", context)
        try exchange(
            // PAYLOAD_LEN, BLOCK_STATUS, offset 0, 12 bytes of payload: effect length, id
            "21e41c71 0020 0007 0000000000000008 0000000000000000 000000000000000c"
                + "0000000400000000 \(id)",
            "6e8a278c 0001 0006 0000000000000008 0000000000000000 0000000000000018"
                + "\(id) 00000001 0000000400000000 0000000000000003")
        // A context that was not negotiated is an error, and the connection lives on.
        let wrong = bytes(of: "0000000400000000 7fffffff")
        let reply = try client.perform(
            NBDRequest(
                .blockStatus, flags: NBD.CommandFlag.payloadLength, length: 12, payload: wrong))
        #expect(reply.error == NBD.ErrorNumber.invalid)
        #expect(try client.read(0, 512).count == 512)
    }

    @Test func `errors carry number and message in an extended chunk`() throws {
        let reply = try client.perform(NBDRequest(.read, offset: 16 * gibibyte, length: 512))
        let chunk = try #require(reply.chunks.last)
        #expect(chunk.type == NBD.ChunkType.error || chunk.type == NBD.ChunkType.errorOffset)
        #expect(reply.error == NBD.ErrorNumber.invalid)
        let messageLength: UInt16 = chunk.payload.big(at: 4)
        let fixed = chunk.type == NBD.ChunkType.error ? 6 : 14
        #expect(chunk.payload.count == fixed + Int(messageLength))
        #expect(messageLength > 0 && messageLength <= 4096)
        let zeroes = try client.perform(
            NBDRequest(.writeZeroes, offset: 10 * gibibyte, length: 7 * gibibyte))
        #expect(zeroes.error == NBD.ErrorNumber.noSpace)
        let overflow = try client.perform(
            NBDRequest(.trim, offset: UInt64.max - 511, length: 1024))
        #expect(overflow.error == NBD.ErrorNumber.invalid)
    }

    @Test func `extended headers forbid EXPORT_NAME and include structured replies`() throws {
        let other = try NBDClient(served.address)
        try other.greet()
        #expect(try other.negotiate(NBD.Option.extendedHeaders).last?.type == 1)
        // Agreed twice, or structured replies after it, is no error that ends the connection.
        _ = try other.negotiate(NBD.Option.structuredReply)
        try other.sendOption(NBD.Option.exportName, Array("disk".utf8))
        // The option has no error reply: the server may only answer with one it made up, or close.
        do {
            let reply = try other.receiveOptionReply()
            #expect(reply.type & 0x8000_0000 != 0)
        } catch is ConnectionEnded {}
    }

    @Test func `a write carries its data whether it says so or not`() throws {
        // QEMU's client leaves PAYLOAD_LEN out.
        try client.send(
            bytes(of: "21e41c71 0000 0001 0000000000000009 0000000000000000 0000000000000200")
                + [UInt8](repeating: 7, count: 512))
        #expect(try client.receiveChunk().error == nil)
        #expect(
            try served.client(.extended).read(0, 512) == [UInt8](repeating: 7, count: 512))
    }
}

private func bytes(of text: String) -> [UInt8] {
    let digits = text.compactMap(\.hexDigitValue)
    precondition(digits.count.isMultiple(of: 2))
    return stride(from: 0, to: digits.count, by: 2).map { UInt8(digits[$0] * 16 + digits[$0 + 1]) }
}

private func hex(_ bytes: [UInt8]) -> String {
    bytes.map { String(format: "%02x", $0) }.joined()
}
