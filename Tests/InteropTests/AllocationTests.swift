import CTestSupport
import Foundation
import Glibc
import TestSupport
import Testing

/// `base:allocation` says what the filesystem says.
@Suite(
    .serialized, .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Allocation` {
    private static let byteCount = 48 << 20

    /// Writes a file with a thousand holes at random places, some of them adjacent to others' data.
    private func makeHoles(_ path: String) throws {
        var generator = SeededGenerator.announced("a thousand holes")
        try makeRandomFile(path, byteCount: Self.byteCount, generator: &generator)
        let descriptor = open(path, O_RDWR | O_CLOEXEC)
        defer { close(descriptor) }
        // One slot each, so that they stay apart: a thousand holes, not fewer.
        let slot = Self.byteCount / 1000 / 4096 * 4096
        for index in 0..<1000 {
            let blocks = slot / 4096
            let first = Int.random(in: 0..<blocks - 1, using: &generator)
            let count = Int.random(in: 1...(blocks - 1 - first), using: &generator)
            let offset = index * slot + first * 4096
            guard stillpoint_test_punch(descriptor, offset, count * 4096) == 0 else {
                throw TestFailure("cannot punch: \(errno)")
            }
        }
        fsync(descriptor)
    }

    /// The file's extents in the words of the specification, by SEEK_DATA and SEEK_HOLE.
    private func extentsOfFile(_ path: String) throws -> [NBDExtent] {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        defer { close(descriptor) }
        var extents: [NBDExtent] = []
        var offset = 0
        while offset < Self.byteCount {
            let found = stillpoint_test_seek_data(descriptor, offset)
            let data = found < 0 ? Self.byteCount : found
            if data > offset { extents.append(NBDExtent(length: UInt64(data - offset), flags: 3)) }
            guard data < Self.byteCount else { break }
            let hole = stillpoint_test_seek_hole(descriptor, data)
            extents.append(NBDExtent(length: UInt64(hole - data), flags: 0))
            offset = hole
        }
        return extents
    }

    /// All extents as the server tells them, one request after another, joined nowhere.
    private func extentsOfServer(
        _ client: NBDClient, requestByteCount: Int = .max
    ) throws -> [NBDExtent] {
        var extents: [NBDExtent] = []
        var offset = 0
        while offset < Self.byteCount {
            let length = min(requestByteCount, Self.byteCount - offset)
            let answer = try client.blockStatus(UInt64(offset), UInt64(length))
            let told = answer.reduce(0) { $0 + Int($1.length) }
            guard told > 0 else { throw TestFailure("no progress at \(offset)") }
            guard offset + told <= Self.byteCount else { throw TestFailure("beyond the end") }
            extents += answer
            offset += told
        }
        return extents
    }

    @Test(
        arguments: [OriginKind.sparseFile, .tmpfsFile], [NBDClient.Headers.structured, .extended])
    func `a thousand holes are told exactly, in maximal extents`(
        kind: OriginKind, headers: NBDClient.Headers
    ) throws {
        let origin = try TestOrigin(kind, byteCount: Self.byteCount)
        try makeHoles(origin.path)
        let expected = try extentsOfFile(origin.path)
        #expect(expected.count(where: { $0.flags == 3 }) == 1000)
        let service = try TestService(attaching: ["disk": origin.path])
        let client = try NBDClient(
            service.address(), export: "disk", headers: headers, contexts: ["base:allocation"])
        #expect(try extentsOfServer(client) == expected)

        // Asked in small steps the answers join to the same picture.
        var joined: [NBDExtent] = []
        for extent in try extentsOfServer(client, requestByteCount: 100 * 1024) {
            if joined.last?.flags == extent.flags {
                joined[joined.count - 1].length += extent.length
            } else {
                joined.append(extent)
            }
        }
        #expect(joined == expected)

        // What is written through the export shows up at once.
        try client.write(0, [UInt8](repeating: 3, count: 1 << 20))
        #expect(try extentsOfServer(client) == extentsOfFile(origin.path))
        try client.succeed(NBDRequest(.trim, offset: 2 << 20, length: 1 << 20))
        #expect(try extentsOfServer(client) == extentsOfFile(origin.path))
        try client.succeed(NBDRequest(.writeZeroes, offset: 4 << 20, length: 1 << 20))
        #expect(try extentsOfServer(client) == extentsOfFile(origin.path))
    }

    @Test func `one extent is one extent, and not longer than asked`() throws {
        let origin = try TestOrigin(.sparseFile, byteCount: Self.byteCount)
        try makeHoles(origin.path)
        let service = try TestService(attaching: ["disk": origin.path])
        let client = try NBDClient(
            service.address(), export: "disk", headers: .structured,
            contexts: ["base:allocation"])
        var offset: UInt64 = 0
        for expected in try extentsOfFile(origin.path) {
            for (start, length) in [(offset, UInt64(1 << 20)), (offset + 512, 512), (offset, 1)] {
                let answer = try client.blockStatus(
                    start, length, flags: NBD.CommandFlag.requestOne)
                let left = offset + expected.length - start
                #expect(answer == [NBDExtent(length: min(left, length), flags: expected.flags)])
            }
            offset += expected.length
        }
    }
}
