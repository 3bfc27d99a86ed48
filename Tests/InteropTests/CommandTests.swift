import Foundation
import TestSupport
import Testing

private let mebibyte = 1 << 20

/// Every command and flag, by the tests' own client, in every form of headers.
@Suite(
    .serialized, .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Commands` {
    @Test(arguments: Setting.all, NBDClient.Headers.allCases)
    func `unaligned reads and writes touch what they name and nothing else`(
        setting: Setting, headers: NBDClient.Headers
    ) throws {
        var generator = SeededGenerator.announced("unaligned, \(setting), \(headers)")
        let byteCount = 4 * mebibyte
        let served = try ServedOrigin(setting, byteCount: byteCount)
        let client = try served.client(headers)
        #expect(client.byteCount == UInt64(byteCount))
        var model = generator.bytes(byteCount)
        try client.write(0, model)
        for _ in 0..<300 {
            let length = Int.random(in: 1...70000, using: &generator)
            let offset = Int.random(in: 0...(byteCount - length), using: &generator)
            switch Int.random(in: 0..<4, using: &generator) {
            case 0:
                let read = try client.read(UInt64(offset), length)
                #expect(read.elementsEqual(model[offset..<offset + length]))
            case 1:
                try client.succeed(
                    NBDRequest(.writeZeroes, offset: UInt64(offset), length: UInt64(length)))
                for index in offset..<offset + length { model[index] = 0 }
            default:
                let bytes = generator.bytes(length)
                try client.write(UInt64(offset), bytes)
                model.replaceSubrange(offset..<offset + length, with: bytes)
            }
        }
        #expect(try client.read(0, byteCount) == model)
        try client.succeed(NBDRequest(.flush))
        #expect(try served.origin.read(0..<byteCount) == model)
    }

    @Test(arguments: Setting.all)
    func `small neighbouring writes in flight do not undo each other`(setting: Setting) throws {
        // Every sector is read, modified and written by several requests at the same time.
        let served = try ServedOrigin(setting, byteCount: mebibyte)
        let client = try served.client()
        for round in 1...20 {
            var expected = [UInt8](repeating: 0, count: 4096)
            for index in 0..<64 {
                let value = UInt8(truncatingIfNeeded: round * 64 + index)
                let part = [UInt8](repeating: value, count: 64)
                expected.replaceSubrange(index * 64..<index * 64 + 64, with: part)
                try client.send(
                    NBDRequest(
                        .write, cookie: UInt64(index), offset: UInt64(index * 64), length: 64,
                        payload: part))
            }
            for _ in 0..<64 { #expect(try client.receiveChunk().error == nil) }
            #expect(try client.read(0, 4096) == expected)
        }
    }

    @Test(arguments: NBDClient.Headers.allCases)
    func `payloads of 32 MiB are served and larger ones are refused`(
        headers: NBDClient.Headers
    ) throws {
        var generator = SeededGenerator(seed: 7)
        let served = try ServedOrigin(
            Setting(kind: .tmpfsFile, transport: .unix), byteCount: 80 * mebibyte)
        let client = try served.client(headers)
        #expect(client.blockSizes?.maximum == UInt32(32 * mebibyte))
        let bytes = generator.bytes(32 * mebibyte)
        try client.write(UInt64(mebibyte), bytes)
        #expect(try client.read(UInt64(mebibyte), bytes.count) == bytes)
        let reply = try client.perform(
            NBDRequest(.read, offset: 0, length: UInt64(32 * mebibyte + 1)))
        #expect(reply.error != nil)
        #expect(try client.read(UInt64(mebibyte), 4096).elementsEqual(bytes[..<4096]))
    }

    @Test(arguments: NBDClient.Headers.allCases)
    func `errors have the numbers of the specification and the connection lives on`(
        headers: NBDClient.Headers
    ) throws {
        let size = UInt64(mebibyte)
        let served = try ServedOrigin(
            Setting(kind: .sparseFile, transport: .unix), byteCount: mebibyte)
        let client = try served.client(
            headers, contexts: headers == .simple ? [] : ["base:allocation"])
        let block = [UInt8](repeating: 1, count: 512)
        let expectations: [(NBDRequest, UInt32)] = [
            (NBDRequest(.read, offset: size, length: 512), NBD.ErrorNumber.invalid),
            (NBDRequest(.read, offset: size - 1, length: 2), NBD.ErrorNumber.invalid),
            (NBDRequest(.read, offset: .max - 1, length: 512), NBD.ErrorNumber.invalid),
            (
                NBDRequest(.write, offset: size - 511, length: 512, payload: block),
                NBD.ErrorNumber.noSpace
            ),
            (
                NBDRequest(.write, offset: .max - 1, length: 512, payload: block),
                NBD.ErrorNumber.noSpace
            ),
            (NBDRequest(.writeZeroes, offset: size, length: 1), NBD.ErrorNumber.noSpace),
            (NBDRequest(.trim, offset: size - 1, length: 512), NBD.ErrorNumber.invalid),
            (NBDRequest(.unknown, offset: 0, length: 0), NBD.ErrorNumber.invalid),
            (NBDRequest(.read, flags: 1 << 9, length: 512), NBD.ErrorNumber.invalid),
            (
                NBDRequest(.write, flags: 1 << 9, length: 512, payload: block),
                NBD.ErrorNumber.invalid
            ),
            (NBDRequest(.blockStatus, offset: size, length: 512), NBD.ErrorNumber.invalid),
            (NBDRequest(.blockStatus, offset: 0, length: 0), NBD.ErrorNumber.invalid),
        ]
        for (request, error) in expectations {
            #expect(try client.perform(request).error == error, "\(request.command)")
        }
        #expect(try client.read(0, 512).allSatisfy { $0 == 0 }, "a refused write changed data")
        #expect(try client.read(size - 512, 512).allSatisfy { $0 == 0 })
    }

    @Test(arguments: [NBDClient.Headers.structured, .extended])
    func `a read that must not be fragmented comes in one chunk`(
        headers: NBDClient.Headers
    ) throws {
        let served = try ServedOrigin(
            Setting(kind: .sparseFile, transport: .unix), byteCount: 4 * mebibyte)
        let client = try served.client(headers)
        #expect(client.flags & NBD.TransmissionFlag.sendDF != 0)
        try client.write(8192, [UInt8](repeating: 9, count: 4096))
        let reply = try client.perform(
            NBDRequest(.read, flags: NBD.CommandFlag.dontFragment, offset: 0, length: 65536))
        #expect(reply.chunks.count == 1)
        let data = try reply.data(offset: 0, length: 65536)
        #expect(data[8191] == 0 && data[8192] == 9 && data[12287] == 9 && data[12288] == 0)
    }

    @Test func `FUA is taken on every command and CACHE does nothing harmful`() throws {
        let served = try ServedOrigin(
            Setting(kind: .sparseFile, transport: .unix), byteCount: 4 * mebibyte)
        let client = try served.client(contexts: ["base:allocation"])
        let fua = NBD.CommandFlag.fua
        try client.write(0, [UInt8](repeating: 5, count: 8192), flags: fua)
        #expect(try client.read(0, 8192, flags: fua) == [UInt8](repeating: 5, count: 8192))
        try client.succeed(NBDRequest(.flush, flags: fua))
        try client.succeed(NBDRequest(.trim, flags: fua, offset: 65536, length: 65536))
        try client.succeed(NBDRequest(.writeZeroes, flags: fua, offset: 65536, length: 65536))
        try client.succeed(NBDRequest(.cache, flags: fua, offset: 0, length: 65536))
        #expect(!(try client.blockStatus(0, 65536, flags: fua)).isEmpty)
        #expect(try client.read(0, 8192) == [UInt8](repeating: 5, count: 8192))
    }

    @Test(arguments: OriginKind.available)
    func `a fast zero is done or refused at once`(kind: OriginKind) throws {
        let served = try ServedOrigin(Setting(kind: kind, transport: .unix), byteCount: mebibyte)
        let client = try served.client()
        #expect(client.flags & NBD.TransmissionFlag.sendFastZero != 0)
        try client.write(0, [UInt8](repeating: 5, count: mebibyte))
        let reply = try client.perform(
            NBDRequest(.writeZeroes, flags: NBD.CommandFlag.fastZero, length: 65536))
        let first = try client.read(0, 65536)
        if let error = reply.error {
            #expect(error == NBD.ErrorNumber.notSupported)
            #expect(first.allSatisfy { $0 == 5 })
        } else {
            #expect(first.allSatisfy { $0 == 0 })
        }
        #expect(try client.read(65536, 512).allSatisfy { $0 == 5 })
    }

    @Test func `DISC ends the connection after all replies`() throws {
        let served = try ServedOrigin(
            Setting(kind: .sparseFile, transport: .unix), byteCount: mebibyte)
        let client = try served.client()
        for index in 0..<16 {
            try client.send(
                NBDRequest(
                    .write, cookie: UInt64(index), offset: UInt64(index * 4096), length: 4096,
                    payload: [UInt8](repeating: 8, count: 4096)))
        }
        try client.send(NBDRequest(.disconnect))
        for _ in 0..<16 { #expect(try client.receiveChunk().error == nil) }
        try client.drainUntilClosed()
        #expect(try served.origin.read(0..<65536).allSatisfy { $0 == 8 })
    }

    @Test func `the old way to open an export works`() throws {
        let served = try ServedOrigin(
            Setting(kind: .sparseFile, transport: .unix), byteCount: mebibyte)
        for (clientFlags, padding) in [(UInt32(1), 124), (3, 0)] {
            let client = try NBDClient(served.address)
            try client.greet(clientFlags: clientFlags)
            try client.sendOption(NBD.Option.exportName, Array("disk".utf8))
            let answer = try client.receive(10 + padding)
            let size: UInt64 = answer.big(at: 0)
            #expect(size == UInt64(mebibyte))
            #expect(answer.dropFirst(10).allSatisfy { $0 == 0 })
            #expect(try client.read(0, 512).count == 512)
        }
    }
}
