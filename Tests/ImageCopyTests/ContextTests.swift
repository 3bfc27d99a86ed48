import Foundation
import Glibc
import TestSupport
import Testing

private let pythonHasNBD =
    (try? Command.run("/usr/bin/python3", ["-c", "import nbd"]).status) == 0

/// What changed, told over NBD to tools of others.
@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Changes over NBD` {
    /// A device with three cuts, its newest images held, and changes after each.
    private func harness(byteCount: Int = 32 * mebibyte) throws -> CopyHarness {
        let harness = try CopyHarness(byteCount: byteCount)
        var generator = SeededGenerator.announced("changes over NBD")
        try harness.change(12, &generator)
        try harness.command("checkpoint", "create", "a", "--device", "disk")
        try harness.change(12, &generator)
        try harness.take("b")
        try harness.change(12, &generator)
        try harness.take("c")
        try harness.change(12, &generator)
        return harness
    }

    /// Ranges as `changes --json` tells them.
    private func changes(
        _ harness: CopyHarness, since: String, until: String?
    ) throws -> [Range<Int>] {
        let document = try harness.json(
            ["changes", "disk", "--since", since] + (until.map { ["--until", $0] } ?? []))
        let ranges = document["ranges"] as? [[String: Any]] ?? []
        return ranges.compactMap { range in
            guard let offset = range["offset"] as? Int, let length = range["length"] as? Int else {
                return nil
            }
            return offset..<offset + length
        }
    }

    /// Every pair of a base and an export that tells it.
    private let pairs: [(since: String, until: String?)] = [
        ("a", "b"), ("a", "c"), ("a", nil), ("b", "c"), ("b", nil), ("c", nil),
    ]

    private func export(_ until: String?) -> String { until.map { "disk@\($0)" } ?? "disk" }

    /// Joins neighbours and drops what did not change.
    private func ranges(_ extents: [(length: Int, isChanged: Bool)]) -> [Range<Int>] {
        var found: [Range<Int>] = []
        var offset = 0
        for (length, isChanged) in extents {
            let end = offset + length
            if isChanged, found.last?.upperBound == offset {
                found[found.count - 1] = found[found.count - 1].lowerBound..<end
            } else if isChanged {
                found.append(offset..<end)
            }
            offset = end
        }
        return found
    }

    @Test(arguments: [NBDClient.Headers.structured, .extended])
    func `are the same as by HTTP, in extents that are maximal and cover what was asked`(
        headers: NBDClient.Headers
    ) throws {
        let harness = try harness()
        for (since, until) in pairs {
            let expected = try changes(harness, since: since, until: until)
            for prefix in ["qemu:dirty-bitmap:", "stillpoint:changes:"] {
                let context = prefix + since
                let client = try NBDClient(
                    harness.service.address(), export: export(until), headers: headers,
                    contexts: ["base:allocation", context])
                let whole = try client.blockStatus(
                    0, UInt64(harness.byteCount), context: context)
                #expect(whole.reduce(0) { $0 + $1.length } == UInt64(harness.byteCount))
                #expect(zip(whole, whole.dropFirst()).allSatisfy { $0.flags != $1.flags })
                #expect(whole.allSatisfy { $0.flags <= 1 && $0.length > 0 })
                #expect(
                    ranges(whole.map { (Int($0.length), $0.flags == 1) }) == expected,
                    "\(context) on \(export(until))")
                // Asked in odd pieces, and for one extent at a time.
                var pieces: [(Int, Bool)] = []
                var offset = 0
                while offset < harness.byteCount {
                    let length = min(1_000_003, harness.byteCount - offset)
                    let answer = try client.blockStatus(
                        UInt64(offset), UInt64(length), context: context,
                        flags: NBD.CommandFlag.requestOne)
                    #expect(answer.count == 1 && answer[0].length <= UInt64(length))
                    pieces.append((Int(answer[0].length), answer[0].flags == 1))
                    offset += Int(answer[0].length)
                }
                #expect(ranges(pieces) == expected)
            }
        }
    }

    @Test func `are offered for cuts that an export can be asked about, and for no others`() throws
    {
        let harness = try harness()
        func offered(_ export: String) throws -> Set<String> {
            let client = try NBDClient(harness.service.address())
            try client.greet()
            _ = try client.negotiate(NBD.Option.structuredReply)
            let replies = try client.negotiate(
                NBD.Option.listMetaContext, NBDClient.contextData(export, ["qemu:"]))
            return Set(
                replies.dropLast().map { String(decoding: $0.data.dropFirst(4), as: UTF8.self) })
        }
        func names(_ cuts: String...) -> Set<String> {
            Set(cuts.map { "qemu:dirty-bitmap:\($0)" })
        }
        #expect(try offered("disk") == names("a", "b", "c"))
        #expect(try offered("disk@b") == names("a"))
        #expect(try offered("disk@c") == names("a", "b"))
        #expect(try offered("disk@c:rw") == [])
        #expect(try offered("disk@c:since=a") == names("a"))
        #expect(try offered("disk:since=c") == names("c"))

        // A context that was negotiated outlives its name; a later cut of the name is another.
        let client = try NBDClient(
            harness.service.address(), export: "disk", headers: .structured,
            contexts: ["qemu:dirty-bitmap:a"])
        let before = try client.blockStatus(
            0, UInt64(harness.byteCount), context: "qemu:dirty-bitmap:a")
        try harness.command("checkpoint", "delete", "a")
        #expect(try offered("disk@b") == [])
        try harness.command("checkpoint", "create", "a", "--device", "disk")
        #expect(try offered("disk") == names("a", "b", "c"))
        #expect(try offered("disk@c") == names("b"))
        let after = try client.blockStatus(
            0, UInt64(harness.byteCount), context: "qemu:dirty-bitmap:a")
        #expect(before == after)
        #expect(try changes(harness, since: "a", until: nil) == [])

        // Another device under the name, another history: the old contexts are gone.
        try harness.command("device", "detach", "disk", "--force")
        try makeSparseFile(harness.files.path("other"), byteCount: harness.byteCount)
        try harness.command("device", "attach", "disk", harness.files.path("other"))
        #expect(try offered("disk") == [])
    }

    @Test(.enabled(if: Command.exists("nbdinfo"), "needs Debian's libnbd-bin"))
    func `are what nbdinfo reads`() throws {
        let harness = try harness()
        for (since, until) in pairs {
            let text = try Command.check(
                "nbdinfo",
                [
                    "--json", "--map=qemu:dirty-bitmap:\(since)",
                    harness.service.uri(export(until)),
                ])
            let extents =
                try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [[String: Any]] ?? []
            let found = ranges(
                extents.map { (($0["length"] as? Int) ?? 0, ($0["type"] as? Int) == 1) })
            #expect(try found == changes(harness, since: since, until: until))
        }
    }

    @Test(.enabled(if: pythonHasNBD, "needs Debian's python3-libnbd"))
    func `are what libnbd reads from Python`() throws {
        let harness = try harness()
        let script = """
            import nbd, sys
            h = nbd.NBD()
            h.add_meta_context(sys.argv[2])
            h.connect_uri(sys.argv[1])
            assert h.can_meta_context(sys.argv[2])
            at = 0
            def tell(context, offset, entries, error):
                global at
                assert context == sys.argv[2] and offset == at
                for length, flags in zip(entries[0::2], entries[1::2]):
                    print(length, flags)
                    at += length
            while at < h.get_size():
                h.block_status(h.get_size() - at, at, tell)
            """
        for (since, until) in pairs {
            let text = try Command.check(
                "/usr/bin/python3",
                [
                    "-c", script, harness.service.uri(export(until)),
                    "stillpoint:changes:\(since)",
                ])
            let found = ranges(
                text.split(separator: "\n").map { line in
                    let fields = line.split(separator: " ").compactMap { Int($0) }
                    return (fields[0], fields[1] == 1)
                })
            #expect(try found == changes(harness, since: since, until: until))
        }
    }

    /// QEMU shows a dirty bitmap as allocation, upside down: what is dirty is a hole without data.
    @Test(.enabled(if: Command.exists("qemu-img"), "needs Debian's qemu-utils"))
    func `are what qemu-img reads with x-dirty-bitmap, where changed is data false`() throws {
        let harness = try harness()
        for (since, until) in pairs {
            let options =
                "driver=nbd,server.type=unix,server.path=\(harness.service.socketPath),"
                + "export=\(export(until)),x-dirty-bitmap=qemu:dirty-bitmap:\(since)"
            let text = try Command.check(
                "qemu-img", ["map", "--output=json", "--image-opts", options])
            let extents =
                try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [[String: Any]] ?? []
            let found = ranges(
                extents.map { (($0["length"] as? Int) ?? 0, ($0["data"] as? Bool) == false) })
            #expect(try found == changes(harness, since: since, until: until))
        }
    }

    @Test(.enabled(if: pythonHasNBD, "needs Debian's python3-libnbd"))
    func `are enough to bring a copy forward with the script of the guide`() throws {
        let guide = try String(contentsOfFile: Self.guidePath, encoding: .utf8)
        let begin = try #require(guide.range(of: "```python pull.py\n"))
        let end = try #require(guide[begin.upperBound...].range(of: "```"))
        let harness = try harness()
        let script = harness.files.path("pull.py")
        try String(guide[begin.upperBound..<end.lowerBound])
            .write(toFile: script, atomically: true, encoding: .utf8)
        let copy = harness.files.path("pulled")
        try Command.check("nbdcopy", [harness.service.uri("disk@b"), copy])
        var generator = SeededGenerator.announced("pull")
        try harness.change(20, &generator)
        try harness.take("d")
        try Command.check("/usr/bin/python3", [script, harness.service.uri("disk@d"), "b", copy])
        #expect(try readFile(copy, 0..<harness.byteCount) == harness.contents)
        // A cut that the image does not know is refused, and the copy stays as it is.
        let refused = try Command.run(
            "/usr/bin/python3", [script, harness.service.uri("disk@d"), "none", copy])
        #expect(refused.status != 0 && refused.diagnostics.contains("make a full copy"))
    }

    private static let guidePath = #filePath.replacing(
        "/Tests/ImageCopyTests/ContextTests.swift", with: "/docs/client.md")
}
