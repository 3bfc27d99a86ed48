import BlockModel
import CopyPlanning
import Foundation
import Glibc
import ImageCopy
import NBDAccess
import TestSupport
import Testing

/// What hostile servers did to NBD clients, against our own. Each test names the CVE.
@Suite struct `Copies from a hostile server` {
    private static let byteCount: UInt64 = 1 << 20
    private static let farOffsets: [UInt64] = [byteCount, .max, .max - 4095, 1 << 63]
    private static let foreignCookies: [UInt64] = [16, .max, 1 << 63]
    private static let impossibleSizes: [UInt64] = [.max, 1 << 63, (1 << 63) + 512]
    private let files: TemporaryDirectory

    init() throws { files = try TemporaryDirectory() }

    /// Copies the whole export; what `copy` does, short of asking a service which image it is.
    private func copy(_ server: HostileServer, byteCount: UInt64 = byteCount) throws {
        for name in ["copy", "copy.stillpoint"] { unlink(files.path(name)) }
        let worker = try CopyWorker(server.address, export: HostileServer.exportName)
        let cut = CopyCut(
            generation: "g", epoch: 1, size: byteCount, snapshot: "s", snapshotId: "id")
        let copier = try ImageCopier(
            CopyRequest(device: "disk", cut: cut, since: nil, isForced: false),
            target: files.path("copy"), workers: [worker])
        _ = try copier.begin()
        copier.copy(0)
        try copier.work.check()
        try copier.finish()
    }

    /// The copy fails because of what the server says, and its record says that it is none.
    private func expectRefused(
        _ words: String, sourceLocation: SourceLocation = #_sourceLocation,
        _ reply: @escaping @Sendable (HostileServer.Request) -> [UInt8]?
    ) throws {
        let server = try HostileServer(
            handshake: HostileServer.handshake(byteCount: Self.byteCount), reply: reply)
        let error = #expect(throws: CopyError.self, sourceLocation: sourceLocation) {
            try copy(server)
        }
        #expect(error?.code == .unreadable, sourceLocation: sourceLocation)
        #expect(
            error?.message.contains(words) == true, "\(error?.message ?? "")",
            sourceLocation: sourceLocation)
        let bytes = try Data(contentsOf: URL(filePath: files.path("copy.stillpoint")))
        #expect(
            CopyRecord.decoded([UInt8](bytes))?.state == .running, sourceLocation: sourceLocation)
    }

    @Test func `a proper server is copied from`() throws {
        for hasAllocation in [false, true] {
            let server = try HostileServer(
                handshake: HostileServer.handshake(
                    byteCount: Self.byteCount, hasAllocation: hasAllocation)
            ) { request in
                guard request.command == NBD.Command.blockStatus.rawValue else {
                    return HostileServer.proper(request)
                }
                return Self.status(request.cookie, [(Self.byteCount / 2, 0), (.max, 3)])
            }
            try copy(server)
            let bytes = [UInt8](try Data(contentsOf: URL(filePath: files.path("copy"))))
            let half = bytes.count / 2
            #expect(bytes[..<half].allSatisfy { $0 == 0xda })
            #expect(bytes[half...].allSatisfy { $0 == (hasAllocation ? 0 : 0xda) })
        }
    }

    @Test func `CVE-2019-14842: data that was not asked for is written nowhere`() throws {
        try expectRefused("not asked for") { request in
            HostileServer.data(
                cookie: request.cookie, offset: request.offset, count: Int(request.length) + 1)
        }
        for offset in Self.farOffsets {
            try expectRefused("not asked for") { request in
                HostileServer.data(cookie: request.cookie, offset: offset, count: 4096)
            }
            try expectRefused("not asked for") { request in
                HostileServer.hole(cookie: request.cookie, offset: offset, count: .max)
            }
        }
        try expectRefused("not asked for") { request in
            HostileServer.data(
                cookie: request.cookie, offset: request.offset &- 1, count: Int(request.length))
        }
        for cookie in Self.foreignCookies {
            try expectRefused("not asked for") { request in
                HostileServer.data(cookie: cookie, offset: request.offset, count: 4096)
            }
            try expectRefused("a reply to nothing") { _ in
                HostileServer.chunk(NBD.ChunkType.none, cookie: cookie)
            }
        }
        // Answered twice: the second answers nothing.
        try expectRefused("not asked for") {
            HostileServer.proper($0) + HostileServer.proper($0)
        }
    }

    @Test func `CVE-2021-20286: a handshake may end at every byte and say anything`() throws {
        let proper = HostileServer.handshake(byteCount: Self.byteCount, hasAllocation: true)
        for count in 0..<proper.count {
            let server = try HostileServer(
                handshake: Array(proper[..<count]), endsThere: true)
            #expect(throws: NBDAccessError.ended) {
                _ = try NBDExport(server.address, export: HostileServer.exportName)
            }
        }
        var generator = SeededGenerator.announced("handshakes of a hostile server")
        for _ in 0..<500 {
            var bytes = proper
            for _ in 0..<Int.random(in: 1...4, using: &generator) {
                let place = Int.random(in: 0..<bytes.count, using: &generator)
                bytes[place] = UInt8.random(in: 0...255, using: &generator)
            }
            let server = try HostileServer(handshake: bytes, endsThere: true)
            // Whatever comes of it, it comes to an end.
            do throws(NBDAccessError) {
                _ = try NBDExport(server.address, export: HostileServer.exportName)
            } catch {}
        }
        // The answer to another option, one without end, and one too large.
        let go = NBD.Option.go
        let acknowledged = HostileServer.answer(go, NBD.OptionReply.acknowledged)
        let endless = [[UInt8]](
            repeating: HostileServer.answer(
                NBD.Option.extendedHeaders, NBD.OptionReply.server, [0, 0, 0, 0]), count: 100)
        var large = HostileServer.answer(NBD.Option.extendedHeaders, NBD.OptionReply.info)
        large.replaceSubrange(16..<20, with: [0xff, 0xff, 0xff, 0xff])
        for bytes in [acknowledged, Array(endless.joined()), large] {
            let server = try HostileServer(
                handshake: HostileServer.greeting() + bytes, endsThere: true)
            let error = #expect(throws: NBDAccessError.self) {
                _ = try NBDExport(server.address, export: HostileServer.exportName)
            }
            #expect(error?.description.contains("not understood") == true)
        }
    }

    @Test func `CVE-2022-0485: a copy with a read that failed is no copy`() throws {
        let half = Self.byteCount / 2
        try expectRefused("error 5") { request in
            guard request.offset >= half else { return HostileServer.proper(request) }
            return HostileServer.chunk(
                NBD.ChunkType.error, cookie: request.cookie, [0, 0, 0, 5, 0, 0])
        }
        // Some bytes came, then the error.
        try expectRefused("error 5") { request in
            HostileServer.data(
                cookie: request.cookie, offset: request.offset, count: 4096, isLast: false)
                + HostileServer.chunk(
                    NBD.ChunkType.errorOffset, cookie: request.cookie,
                    [0, 0, 0, 5, 0, 0] + [UInt8](repeating: 0, count: 8))
        }
        try expectRefused("4096 of") { request in
            HostileServer.data(cookie: request.cookie, offset: request.offset, count: 4096)
        }
        // As many bytes as were asked for, but one half of them twice and the other never.
        try expectRefused("not asked for") { request in
            let count = Int(request.length / 2)
            return HostileServer.data(
                cookie: request.cookie, offset: request.offset, count: count, isLast: false)
                + HostileServer.data(
                    cookie: request.cookie, offset: request.offset, count: count)
        }
        try expectRefused("ended") { request in
            request.offset >= half ? nil : HostileServer.proper(request)
        }
    }

    @Test func `pieces of a reply may come in any order, and be as small as blocks`() throws {
        let server = try HostileServer(
            handshake: HostileServer.handshake(byteCount: Self.byteCount)
        ) { request in
            let starts = stride(from: 0, to: request.length, by: 4096).reversed()
            return starts.flatMap { start in
                let offset = request.offset + start
                return start.isMultiple(of: 8192)
                    ? HostileServer.data(
                        cookie: request.cookie, offset: offset, count: 4096, isLast: start == 0)
                    : HostileServer.hole(
                        cookie: request.cookie, offset: offset, count: 4096, isLast: start == 0)
            }
        }
        try copy(server)
        let bytes = [UInt8](try Data(contentsOf: URL(filePath: files.path("copy"))))
        for start in stride(from: 0, to: bytes.count, by: 4096) {
            let expected: UInt8 = start.isMultiple(of: 8192) ? 0xda : 0
            #expect(bytes[start..<start + 4096].allSatisfy { $0 == expected })
        }
        // Smaller than anybody needs, with gaps: refused before it costs much.
        try expectRefused("not asked for") { request in
            stride(from: 0, to: request.length, by: 512).flatMap { start in
                HostileServer.data(
                    cookie: request.cookie, offset: request.offset + start, count: 256,
                    isLast: false)
            }
        }
    }

    @Test(arguments: impossibleSizes)
    func `CVE-2023-5215: a size that no file can have is refused`(byteCount: UInt64) throws {
        let server = try HostileServer(handshake: HostileServer.handshake(byteCount: byteCount))
        let error = #expect(throws: NBDAccessError.self) {
            _ = try NBDExport(server.address, export: HostileServer.exportName)
        }
        #expect(error == .notUnderstood("an export of \(byteCount) bytes"))
        // And one that is not that of the snapshot is no image of it.
        let other = try HostileServer(
            handshake: HostileServer.handshake(byteCount: Self.byteCount * 2))
        #expect(throws: CopyError.self) { try copy(other) }
    }

    @Test func `CVE-2023-5871: extents of any length and number come to an end`() throws {
        let large = UInt64(4 << 20)
        let answers: [[(UInt64, UInt64)]] = [
            [], [(0, 0)], [(0, 3), (.max, 3)], [(0, 0), (0, 0)],
        ]
        for extents in answers {
            let server = try HostileServer(
                handshake: HostileServer.handshake(byteCount: large, hasAllocation: true)
            ) { Self.status($0.cookie, extents) }
            #expect(throws: CopyError.self) { try copy(server, byteCount: large) }
        }
        // Longer than the image: what lies in it counts.
        let long: [[(UInt64, UInt64)]] = [[(.max, 3)], [(1 << 63, 2)], [(4096, 3), (.max - 1, 3)]]
        for extents in long {
            let server = try HostileServer(
                handshake: HostileServer.handshake(byteCount: large, hasAllocation: true)
            ) { Self.status($0.cookie, extents) }
            try copy(server, byteCount: large)
        }
        // A body that is no number of extents, and an answer without end.
        for bodyByteCount in [0, 7, 8, 23, 25] {
            let server = try HostileServer(
                handshake: HostileServer.handshake(byteCount: large, hasAllocation: true)
            ) {
                HostileServer.chunk(
                    NBD.ChunkType.blockStatusExtended, cookie: $0.cookie,
                    [UInt8](repeating: 0, count: bodyByteCount))
            }
            #expect(throws: CopyError.self) { try copy(server, byteCount: large) }
        }
        let extents = [(UInt64, UInt64)](repeating: (512, 0), count: 60_000)
        let endless = try HostileServer(
            handshake: HostileServer.handshake(byteCount: large, hasAllocation: true)
        ) { request in
            let part = Self.status(request.cookie, extents, isLast: false)
            return Array([[UInt8]](repeating: part, count: 20).joined())
        }
        let error = #expect(throws: CopyError.self) { try copy(endless, byteCount: large) }
        #expect(error?.message.contains("without end") == true, "\(error?.message ?? "")")
    }

    private static func status(
        _ cookie: UInt64, _ extents: [(UInt64, UInt64)], isLast: Bool = true
    ) -> [UInt8] {
        var body: [UInt8] = []
        body.append(big: UInt32(1))
        body.append(big: UInt32(extents.count))
        for (length, flags) in extents {
            body.append(big: length)
            body.append(big: flags)
        }
        return HostileServer.chunk(
            NBD.ChunkType.blockStatusExtended, cookie: cookie, isLast: isLast, body)
    }

    @Test func `what it says reaches people as one line that steers nothing`() throws {
        let text = "no\u{1b}[2J\n\u{202e}disk\0" + String(repeating: "x", count: 100_000)
        let server = try HostileServer(
            handshake: HostileServer.greeting()
                + HostileServer.answer(
                    NBD.Option.extendedHeaders, NBD.OptionReply.policy, Array(text.utf8)))
        let error = #expect(throws: NBDAccessError.self) {
            _ = try NBDExport(server.address, export: HostileServer.exportName)
        }
        let message = try #require(error?.description)
        #expect(message.hasPrefix("refused: no?[2J??disk?xxx"), "\(message.prefix(100))")
        #expect(message.utf8.count < 5000)
    }
}
