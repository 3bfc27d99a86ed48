import Foundation
import Glibc
import TestSupport
import Testing

private let mebibyte = 1 << 20

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Changes` {
    @Test func `until a held snapshot stay as they were at its cut`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        try harness.done("checkpoint", "create", "x", "--device", "a")
        try harness.write("a", blocks: 1, 50)
        let made = try harness.object("snapshot", "create", "--device", "a")
        let id = try #require(made["id"] as? String)
        try harness.write("a", blocks: 1, 2, 51, 900)
        for until in [id, String(id.prefix(8))] {
            #expect(try harness.changedBlocks("a", since: "x", until: until) == [1, 50])
        }
        #expect(try harness.changedBlocks("a", since: "x") == [1, 2, 50, 51, 900])
        let document = try harness.object("changes", "a", "--since", "x", "--until", id)
        #expect(
            Set(document.keys) == [
                "device", "generation", "full", "since", "until", "size", "changed_bytes",
                "ranges", "next_offset",
            ])
        #expect(document["device"] as? String == "a" && document["full"] as? Bool == false)
        #expect((document["since"] as? [String: Any])?["name"] as? String == "x")
        #expect((document["since"] as? [String: Any])?["epoch"] as? Int == 1)
        #expect((document["until"] as? [String: Any])?["name"] as? String == id)
        #expect((document["until"] as? [String: Any])?["epoch"] as? Int == 2)
        #expect(document["size"] as? Int == 16 * mebibyte)
        let now = try harness.object("changes", "a", "--since", "generation")
        #expect((now["since"] as? [String: Any])?["epoch"] as? Int == 0)
        #expect((now["until"] as? [String: Any])?["name"] is NSNull)
        #expect((now["until"] as? [String: Any])?["epoch"] as? Int == 3)
    }

    @Test func `name the cut they cannot be told between`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        try harness.attach("b")
        try harness.done("snapshot", "create", "--device", "a", "--name", "early")
        try harness.done("checkpoint", "create", "late", "--device", "a")
        try harness.done("snapshot", "create", "--device", "a", "--name", "ready", "--prepare")
        let gone = try harness.object("snapshot", "create", "--device", "a")["id"] as? String ?? ""
        try harness.done("snapshot", "destroy", gone)
        let refusals: [([String], Int32, Int, String)] = [
            (["none"], 3, 404, "none"),
            (["a", "since=none"], 3, 404, "none"),
            (["b", "since=late"], 3, 404, "not of device b"),
            (["b", "until=early"], 3, 404, "not of device b"),
            (["a", "until=none"], 3, 404, "none"),
            (["a", "since=late", "until=early"], 2, 400, "later than"),
            (["a", "until=\(gone)"], 4, 409, "not held"),
            (["a", "until=late"], 4, 409, "not held"),
            (["a", "until=ready"], 4, 409, "not taken"),
        ]
        for (question, exit, status, reason) in refusals {
            var arguments = ["changes", question[0]]
            for part in question.dropFirst() {
                arguments += part.split(separator: "=").enumerated().map {
                    $0.offset == 0 ? "--\($0.element)" : String($0.element)
                }
            }
            for format in ["table", "json", "ranges", "heatmap"] {
                let outcome = try Command.run(
                    TestService.binary,
                    arguments + ["--format", format, "--control", harness.service.controlPath])
                #expect(outcome.status == exit, "\(question): \(outcome.diagnostics)")
                #expect(outcome.hasNoAnswer && outcome.diagnostics.contains(reason))
            }
            let query = question.dropFirst().joined(separator: "&")
            #expect(
                try harness.http("GET", "/v1/devices/\(question[0])/changes?\(query)").status
                    == status)
        }
        for arguments in [
            ["changes"], ["changes", "a", "--format", "other"], ["changes", "a", "--since", ""],
            ["changes", "a", "--json", "--format", "ranges"],
        ] {
            let outcome = try Command.run(
                TestService.binary, arguments + ["--control", harness.service.controlPath])
            #expect(outcome.status == 2 && outcome.hasNoAnswer)
        }
    }

    @Test func `until a corrupted snapshot are refused with exit status 6`() throws {
        let harness = try ControlHarness()
        try harness.attach("a", byteCount: 64 * mebibyte)
        // What is there must be preserved: more than there is room for.
        let client = try NBDClient(.unix(path: harness.service.socketPath), export: "a")
        let ones = [UInt8](repeating: 1, count: mebibyte)
        for place in 0..<16 { try client.write(UInt64(place * mebibyte), ones) }
        try harness.done(
            "snapshot", "create", "--device", "a", "--name", "s", "--storage", "memory:4M")
        for place in 0..<16 { try client.write(UInt64(place * mebibyte), ones) }
        #expect(try harness.object("snapshot", "show", "s")["state"] as? String == "corrupted")
        for since in [["--since", "generation"], ["--since", "s"], []] {
            let outcome = try Command.run(
                TestService.binary,
                ["changes", "a", "--until", "s", "--control", harness.service.controlPath] + since)
            #expect(outcome.status == 6 && outcome.hasNoAnswer)
            #expect(outcome.diagnostics.contains("lost data"))
        }
        let (status, answer) = try harness.http("GET", "/v1/devices/a/changes?until=s")
        #expect(status == 409)
        #expect((answer["error"] as? [String: Any])?["code"] as? String == "corrupted")
        #expect(try harness.changedBlocks("a", since: "s").count == 16 * 256)
    }

    @Test func `without a base are all a full backup reads, of an image too`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        try harness.write("a", blocks: 0, 9, 100)
        try harness.done("snapshot", "create", "--device", "a", "--name", "s")
        try harness.write("a", blocks: 9, 200)
        let document = try harness.object("changes", "a")
        #expect(document["full"] as? Bool == true && document["since"] is NSNull)
        #expect(try harness.changedBlocks("a") == [0, 9, 100, 200])
        #expect(try harness.changedBlocks("a", until: "s") == [0, 9, 100])
        // A page at a time says the same.
        var found: [Int] = []
        var next = "offset=0"
        while true {
            let (status, page) = try harness.http(
                "GET", "/v1/devices/a/changes?until=s&limit=1&\(next)")
            #expect(status == 200)
            found += (page["ranges"] as? [[String: Int]] ?? []).map { $0["offset"]! / 4096 }
            guard let offset = page["next_offset"] as? Int else { break }
            next = "offset=\(offset)"
        }
        #expect(found == [0, 9, 100])
    }

    @Test func `come in pages that name what they belong to`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        try harness.done("checkpoint", "create", "x", "--device", "a")
        try harness.write("a", blocks: 0, 1, 10, 20, 30, 40)
        func page(_ query: String) throws -> (status: Int, document: [String: Any]) {
            try harness.http("GET", "/v1/devices/a/changes?since=x&\(query)")
        }
        let first = try page("limit=2").document
        #expect(first["next_offset"] as? Int == 20 * 4096)
        #expect(first["changed_bytes"] as? Int == 3 * 4096)
        let generation = try #require(first["generation"] as? String)
        let names = "generation=\(generation)&since_epoch=1&until_epoch=2"
        let second = try page("limit=2&offset=\(20 * 4096)&\(names)").document
        #expect(
            (second["ranges"] as? [[String: Int]])?.map { $0["offset"]! } == [
                20 * 4096, 30 * 4096,
            ])
        let last = try page("limit=2&offset=\(40 * 4096)&\(names)").document
        #expect(last["next_offset"] is NSNull)
        // A window cuts ranges at its ends.
        let window = try page("offset=4096&length=\(9 * 4096 + 100)").document
        #expect(
            window["ranges"] as? [[String: Int]] == [
                ["offset": 4096, "length": 4096], ["offset": 40960, "length": 100],
            ])
        #expect(window["next_offset"] is NSNull)
        #expect(try page("offset=\(1 << 40)").document["ranges"] as? [[String: Int]] == [])
        // A cut between two pages until now: the rest belongs to another answer.
        try harness.done("checkpoint", "create", "y", "--device", "a")
        let late = try page("limit=2&offset=\(20 * 4096)&\(names)")
        #expect(late.status == 410)
        #expect((late.document["error"] as? [String: Any])?["code"] as? String == "changed")
        for names in [
            "since_epoch=2", "until_epoch=2", "generation=00000000-0000-4000-8000-000000000000",
        ] {
            #expect(try page("offset=0&\(names)").status == 410)
        }
        for query in [
            "limit=0", "limit=70000", "limit=x", "offset=-1", "generation=x", "until_epoch=x",
            "until_epoch=4294967296", "until=", "length=x",
        ] {
            #expect(try page(query).status == 400, "\(query)")
        }
    }

    @Test func `are printed as lines, as a table and as a picture that fits`() throws {
        let harness = try ControlHarness()
        let path = try harness.image("big.img", byteCount: 1 << 40)
        try harness.done("device", "attach", "big", path)
        try harness.write("big", blocks: 0, 1, 5, 100_000_000)
        let lines = try harness.command(
            "changes", "big", "--since", "generation", "--format", "ranges"
        ).output
        #expect(lines == "0 8192\n20480 4096\n409600000000 4096\n")
        let table = try harness.command("changes", "big", "--since", "generation").output
        #expect(table.contains("16 KiB in 3 range(s)") && table.contains("409600000000"))
        try harness.done("changes", "mark", "big", "--range", "512G:64G")
        let map = try harness.command(
            "changes", "big", "--since", "generation", "--format", "heatmap"
        ).output
        let rows = map.split(separator: "\n", omittingEmptySubsequences: false).dropLast()
        #expect(rows.count <= 23 && rows.allSatisfy { $0.count <= 80 })
        #expect(!map.contains("\u{1B}"), "colours are for terminals")
        #expect(map.contains("64.0 GiB of 1 TiB") && map.contains("1 cell ="))
        let picture = rows.filter { $0.contains("│") }.map { row in
            row.split(separator: "│", omittingEmptySubsequences: false)[1]
        }.joined()
        #expect(picture.first == "░" && picture.filter { $0 == "░" }.count >= 2)
        // 64 GiB in the middle of 1 TiB: a sixteenth of the cells, behind the first half.
        let full = picture.enumerated().filter { $0.element == "█" }.map(\.offset)
        let cellCount = picture.filter { $0 != " " }.count
        #expect(abs(full.count - cellCount / 16) <= 1)
        #expect(abs(full[0] - cellCount / 2) <= 1 && full == Array(full[0]...full.last!))
    }
}

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Changes declared by hand` {
    @Test func `count for whole blocks, until held snapshots too`() throws {
        let harness = try ControlHarness()
        try harness.attach("a", byteCount: 16 * mebibyte - 1536)
        try harness.done("checkpoint", "create", "x", "--device", "a")
        try harness.done("snapshot", "create", "--device", "a", "--name", "s")
        try harness.done("snapshot", "create", "--device", "a", "--name", "t")
        let last = 16 * mebibyte / 4096 - 1
        try harness.done(
            "changes", "mark", "a", "--range", "5000:1", "--range", "65535:2", "--range",
            "\(16 * mebibyte - 1537):1")
        let blocks: Set<Int> = [1, 15, 16, last]
        #expect(try harness.changedBlocks("a", since: "x") == blocks)
        #expect(try harness.changedBlocks("a", since: "x", until: "s") == blocks)
        #expect(try harness.changedBlocks("a", since: "x", until: "t").isSuperset(of: blocks))
        #expect(try harness.changedBlocks("a", since: "s", until: "t") == blocks)
        #expect(try harness.changedBlocks("a", since: "t") == blocks)
        try harness.done("checkpoint", "create", "y", "--device", "a")
        #expect(try harness.changedBlocks("a", since: "y") == [])
        // What the images hold has not changed.
        #expect(try harness.object("snapshot", "show", "s")["state"] as? String == "held")
    }

    @Test func `are taken wholly or not at all`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let refusals: [([String], Int32, String)] = [
            (["--range", "0:4096", "--range", "16M:1"], 2, "beyond the end"),
            (["--range", "0:4096", "--range", "0:17M"], 2, "beyond the end"),
            (["--range", "0:4096", "--range", "4096:0"], 2, "empty"),
            (["--range", "0:4096", "--range", "x"], 2, "OFFSET:LENGTH"),
            (["--range", "0:4096", "--range", "-1:4096"], 2, "range"),
            ([], 2, "--range"),
        ]
        for (arguments, status, reason) in refusals {
            let outcome = try Command.run(
                TestService.binary,
                ["changes", "mark", "a", "--control", harness.service.controlPath] + arguments)
            #expect(outcome.status == status, "\(arguments): \(outcome.diagnostics)")
            #expect(outcome.hasNoAnswer && outcome.diagnostics.contains(reason))
        }
        for body in [
            "{\"ranges\":[]}", "{\"ranges\":[{\"offset\":0,\"length\":0}]}", "{}", "[]",
            "{\"ranges\":[{\"offset\":0,\"length\":4096},{\"offset\":4096,\"length\":0}]}",
            "{\"ranges\":[{\"offset\":18446744073709551615,\"length\":2}]}",
            "{\"ranges\":[{\"offset\":-1,\"length\":2}]}",
            "{\"ranges\":[{\"offset\":0,\"length\":1}],\"other\":1}",
        ] {
            #expect(
                try harness.http("POST", "/v1/devices/a/changes", body: body).status == 400,
                "\(body)"
            )
        }
        #expect(try harness.changedBlocks("a", since: "generation") == [])
        #expect(try harness.failure("changes", "mark", "none", "--range", "0:1").status == 3)
    }

    @Test func `that a held snapshot cannot remember are refused, and it stays held`() throws {
        let harness = try ControlHarness()
        let path = try harness.image("big.img", byteCount: 1 << 40)
        try harness.done("device", "attach", "big", path)
        try harness.done("snapshot", "create", "--device", "big", "--name", "s")
        let outcome = try harness.failure("changes", "mark", "big", "--range", "0:1T")
        #expect(outcome.status == 1 && outcome.message.contains("cannot remember"))
        #expect(try harness.changedBlocks("big", since: "generation") == [])
        #expect(try harness.object("snapshot", "show", "s")["state"] as? String == "held")
    }
}
