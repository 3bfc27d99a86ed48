import Foundation
import TestSupport
import Testing

private let mebibyte = 1 << 20

/// Programs of other projects use our server as they use any other.
@Suite(
    .serialized, .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Clients of other projects` {
    @Test(
        .enabled(if: Command.exists("nbdinfo"), "needs nbdinfo (libnbd-bin)"),
        arguments: Setting.all)
    func `nbdinfo sees size, flags and limits`(setting: Setting) throws {
        let served = try ServedOrigin(setting, byteCount: 16 * mebibyte)
        let text = try Command.check("nbdinfo", ["--json", served.uri])
        let document = try JSONDecoder().decode(NBDInfoDocument.self, from: Data(text.utf8))
        let export = try #require(document.exports.first)
        #expect(document.exports.count == 1)
        #expect(export.name == "disk")
        #expect(export.size == 16 * mebibyte)
        #expect(!export.isReadOnly)
        #expect(export.canFlush && export.canFUA && export.canZero && export.canTrim)
        #expect(export.canDF && export.canMultiConn && export.canCache && export.canFastZero)
        #expect(export.contexts.contains("base:allocation"))
        let minimum = try #require(export.minimum)
        let preferred = try #require(export.preferred)
        let maximum = try #require(export.maximum)
        #expect(minimum.nonzeroBitCount == 1 && minimum <= 65536)
        #expect(preferred.nonzeroBitCount == 1 && preferred >= max(minimum, 512))
        #expect(maximum == 32 * mebibyte)
        #expect(document.protocolName == "newstyle-fixed")
        #expect(document.structured == true)
        #expect(try Command.check("nbdinfo", ["--size", served.uri]) == "\(16 * mebibyte)\n")
    }

    @Test(.enabled(if: Command.exists("nbdinfo"), "needs nbdinfo (libnbd-bin)"))
    func `nbdinfo lists every device`() throws {
        let first = try TestOrigin(.sparseFile, byteCount: mebibyte)
        let second = try TestOrigin(.tmpfsFile, byteCount: 2 * mebibyte)
        let service = try TestService(attaching: ["alpha": first.path, "beta.2": second.path])
        for transport in TestService.Transport.allCases {
            let text = try Command.check(
                "nbdinfo", ["--json", "--list", service.uri("", transport)])
            let document = try JSONDecoder().decode(NBDInfoDocument.self, from: Data(text.utf8))
            #expect(document.exports.map(\.name).sorted() == ["alpha", "beta.2"])
            #expect(document.exports.map(\.size).sorted() == [mebibyte, 2 * mebibyte])
        }
    }

    @Test(
        .enabled(if: Command.exists("nbdinfo"), "needs nbdinfo (libnbd-bin)"),
        arguments: Setting.all.filter { !$0.kind.isBlockDevice })
    func `nbdinfo maps data and holes and adds them up`(setting: Setting) throws {
        let served = try ServedOrigin(setting, byteCount: 16 * mebibyte)
        let client = try served.client()
        try client.succeed(NBDRequest(.trim, length: UInt64(16 * mebibyte)))
        try client.write(UInt64(4 * mebibyte), [UInt8](repeating: 7, count: 3 * mebibyte))
        let map = try JSONDecoder().decode(
            [NBDInfoExtent].self,
            from: Data(try Command.check("nbdinfo", ["--json", "--map", served.uri]).utf8))
        #expect(
            map == [
                NBDInfoExtent(0, 4 * mebibyte, 3, "hole,zero"),
                NBDInfoExtent(4 * mebibyte, 3 * mebibyte, 0, "data"),
                NBDInfoExtent(7 * mebibyte, 9 * mebibyte, 3, "hole,zero"),
            ])
        let totals = try Command.check("nbdinfo", ["--map", "--totals", served.uri])
            .split(separator: "\n").map { $0.split(separator: " ").map(String.init) }
        #expect(totals.contains { $0.first == "\(3 * mebibyte)" && $0.last == "data" })
        #expect(totals.contains { $0.first == "\(13 * mebibyte)" && $0.last == "hole,zero" })
    }

    @Test(
        .enabled(if: Command.exists("nbdcopy"), "needs nbdcopy (libnbd-bin)"),
        arguments: Setting.all)
    func `nbdcopy writes and reads back what it wrote`(setting: Setting) throws {
        var generator = SeededGenerator.announced("nbdcopy, \(setting)")
        let byteCount = scaled(1024 * mebibyte, "nbdcopy of random bytes", multipleOf: mebibyte)
        let files = try TemporaryDirectory(inMemory: true)
        let source = files.path("source")
        for connections in [1, 4] {
            let served = try ServedOrigin(setting, byteCount: byteCount)
            try makeRandomFile(source, byteCount: byteCount, generator: &generator)
            let options = ["--connections=\(connections)"]
            try Command.check("nbdcopy", options + ["--flush", source, served.uri])
            try Command.check("cmp", [source, served.origin.path])
            try Command.check("nbdcopy", options + [served.uri, files.path("back")])
            try Command.check("cmp", [source, files.path("back")])
        }
    }

    @Test(
        .enabled(if: Command.exists("qemu-img"), "needs qemu-img (qemu-utils)"),
        arguments: Setting.all)
    func `qemu-img converts, compares, maps and informs`(setting: Setting) throws {
        var generator = SeededGenerator.announced("qemu-img, \(setting)")
        let byteCount = 24 * mebibyte
        let served = try ServedOrigin(setting, byteCount: byteCount)
        let files = try TemporaryDirectory()
        let source = files.path("source")
        try makeRandomFile(source, byteCount: byteCount, generator: &generator)
        try Command.check("fallocate", ["-p", "-o", "8MiB", "-l", "8MiB", source])
        let raw = ["-f", "raw"]
        try Command.check(
            "qemu-img", ["convert", "-n"] + raw + ["-O", "raw", source, served.uri])
        try Command.check("qemu-img", ["compare"] + raw + ["-F", "raw", source, served.uri])
        let qcow = files.path("copy.qcow2")
        try Command.check("qemu-img", ["convert"] + raw + ["-O", "qcow2", served.uri, qcow])
        try Command.check("qemu-img", ["compare"] + raw + ["-F", "qcow2", source, qcow])
        let information = try Command.check(
            "qemu-img", ["info", "--output=json"] + raw + [served.uri])
        #expect(information.contains("\"virtual-size\": \(byteCount)"))
        let map = try JSONDecoder().decode(
            [QEMUExtent].self,
            from: Data(
                try Command.check(
                    "qemu-img", ["map", "--output=json"] + raw + [served.uri]
                ).utf8))
        #expect(map.map(\.length).reduce(0, +) == byteCount)
        #expect(map.allSatisfy { $0.zero || $0.data })
        let zeroByteCount = map.filter(\.zero).map(\.length).reduce(0, +)
        // A block device does not tell its holes; a file does.
        if !setting.kind.isBlockDevice { #expect(zeroByteCount == 8 * mebibyte) }
        // The comparison can fail: one byte is enough.
        let client = try served.client()
        let byte = try client.read(12345, 1)
        try client.write(12345, byte.map(~))
        let different = try Command.run(
            "qemu-img", ["compare"] + raw + ["-F", "raw", source, served.uri])
        #expect(different.status == 1)
    }

    @Test(
        .enabled(if: Command.exists("qemu-io"), "needs qemu-io (qemu-utils)"),
        arguments: Setting.all)
    func `qemu-io reads back patterns, zeroes and discards`(setting: Setting) throws {
        let served = try ServedOrigin(setting, byteCount: 16 * mebibyte)
        func perform(_ commands: [String]) throws -> Command.Outcome {
            try Command.run(
                "qemu-io",
                ["--discard", "unmap", "-f", "raw"] + commands.flatMap { ["-c", $0] }
                    + [served.uri])
        }
        let outcome = try perform([
            "write -P 0x11 0 8M", "read -P 0x11 0 8M",
            "write -P 0x22 513 1000", "read -P 0x11 0 513", "read -P 0x22 513 1000",
            "read -P 0x11 1513 100k",
            "write -f -P 0x33 1M 64k", "read -P 0x33 1M 64k",
            "write -z 2M 1M", "read -P 0 2M 1M", "read -P 0x11 3M 64k",
            "write -z -u 4M 1M", "read -P 0 4M 1M", "read -P 0x11 5M 64k",
            "write -z 6000001 70001", "read -P 0 6000001 70001", "read -P 0x11 5999000 1001",
            "read -P 0x11 6070002 999",
            "discard 7M 512k", "read -P 0x11 7864320 64k",
            "aio_write -P 0x44 8M 1M", "aio_write -P 0x55 9M 1M", "aio_flush",
            "read -P 0x44 8M 1M", "read -P 0x55 9M 1M", "flush",
        ])
        #expect(outcome.status == 0, "\(outcome.output) \(outcome.diagnostics)")
        #expect(!outcome.output.contains("failed"), "\(outcome.output)")
        #expect(try served.origin.read(513..<1513) == [UInt8](repeating: 0x22, count: 1000))
        // The pattern check can fail.
        #expect(try perform(["read -P 0x12 0 512"]).status != 0)
    }

    @Test(
        .enabled(if: Command.exists("fio"), "needs fio with the nbd engine"),
        arguments: Setting.all)
    func `fio verifies mixed sizes at depth 32 with four jobs`(setting: Setting) throws {
        let part = scaled(512 * mebibyte, "fio, per job", multipleOf: mebibyte) / 2
        let partMebibytes = part / mebibyte
        let served = try ServedOrigin(setting, byteCount: 4 * partMebibytes * mebibyte)
        let files = try TemporaryDirectory()
        try Command.check(
            "fio",
            [
                "--name=verify", "--ioengine=nbd", "--uri=\(served.uri)", "--rw=randwrite",
                "--bsrange=4k-1m", "--iodepth=32", "--numjobs=4", "--thread",
                "--size=\(partMebibytes)m", "--offset_increment=\(partMebibytes)m",
                "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--fsync=64",
                "--do_verify=1", "--group_reporting", "--aux-path=\(files.root)",
            ])
    }

    @Test(
        .enabled(if: pythonHasNBD, "needs Debian's python3-libnbd"),
        arguments: Setting.all)
    func `libnbd from Python asks for block status`(setting: Setting) throws {
        let served = try ServedOrigin(setting, byteCount: 8 * mebibyte)
        try served.client().succeed(
            NBDRequest(.writeZeroes, offset: 0, length: UInt64(8 * mebibyte)))
        try served.client().write(UInt64(mebibyte), [UInt8](repeating: 1, count: mebibyte))
        let script = """
            import nbd, sys
            h = nbd.NBD()
            h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
            h.connect_uri(sys.argv[1])
            assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
            size = h.get_size()
            found = []
            def extent(context, offset, entries, error):
                assert context == nbd.CONTEXT_BASE_ALLOCATION
                at = offset
                for length, flags in zip(entries[0::2], entries[1::2]):
                    found.append((at, length, flags))
                    at += length
            at = 0
            while at < size:
                found.clear()
                h.block_status(size - at, at, extent)
                assert found
                for entry in found:
                    print(*entry)
                at = found[-1][0] + found[-1][1]
            one = []
            h.block_status(1 << 20, 512, lambda c, o, e, r: one.append(list(e)),
                           nbd.CMD_FLAG_REQ_ONE)
            assert len(one) == 1 and len(one[0]) == 2 and one[0][0] <= 1 << 20, one
            h.shutdown()
            """
        let text = try Command.check("/usr/bin/python3", ["-c", script, served.uri])
        var at = 0
        var zeroes = 0
        for line in text.split(separator: "\n") {
            let fields = line.split(separator: " ").compactMap { Int($0) }
            #expect(fields[0] == at)
            at = fields[0] + fields[1]
            if fields[2] & 2 != 0 {
                zeroes += fields[1]
                #expect(at <= mebibyte || fields[0] >= 2 * mebibyte, "data reported as zero")
            }
        }
        #expect(at == 8 * mebibyte)
        if !setting.kind.isBlockDevice { #expect(zeroes == 7 * mebibyte) }
    }
}

private let pythonHasNBD =
    (try? Command.run("/usr/bin/python3", ["-c", "import nbd"]).status) == 0

private struct NBDInfoDocument: Decodable {
    struct Export: Decodable {
        let name: String
        let size: Int
        let contexts: [String]
        let isReadOnly, canFlush, canFUA, canZero, canTrim, canDF, canMultiConn, canCache: Bool
        let canFastZero: Bool
        let minimum, preferred, maximum: Int?

        enum CodingKeys: String, CodingKey {
            case name = "export-name"
            case size = "export-size"
            case contexts
            case isReadOnly = "is_read_only"
            case canFlush = "can_flush"
            case canFUA = "can_fua"
            case canZero = "can_zero"
            case canTrim = "can_trim"
            case canDF = "can_df"
            case canMultiConn = "can_multi_conn"
            case canCache = "can_cache"
            case canFastZero = "can_fast_zero"
            case minimum = "block_size_minimum"
            case preferred = "block_size_preferred"
            case maximum = "block_size_maximum"
        }
    }

    let protocolName: String
    let structured: Bool?
    let exports: [Export]

    enum CodingKeys: String, CodingKey {
        case protocolName = "protocol"
        case structured, exports
    }
}

private struct NBDInfoExtent: Decodable, Equatable {
    let offset, length, type: Int
    let description: String

    init(_ offset: Int, _ length: Int, _ type: Int, _ description: String) {
        self.offset = offset
        self.length = length
        self.type = type
        self.description = description
    }
}

private struct QEMUExtent: Decodable {
    let start, length: Int
    let zero, data: Bool
}
