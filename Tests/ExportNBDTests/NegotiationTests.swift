import BlockModel
import NBDWire
import RingIO
import TestSupport
import Testing

@testable import ExportNBD

/// Feeds bytes to a handshake and collects what it says.
struct Handshake {
    enum Outcome: Equatable { case open, closed, secured, waiting }

    var negotiation: NBDNegotiation
    var output: [UInt8] = []
    var outcome = Outcome.waiting
    var opening: NBDNegotiation.Opening?

    init(
        _ directory: TestDirectory, clientFlags: UInt32? = 3, security: NBDSecurity = .unavailable
    ) {
        negotiation = NBDNegotiation(directory: directory, security: security)
        if let clientFlags {
            feed([])
            output = []
            var bytes: [UInt8] = []
            bytes.appendWire(clientFlags)
            feed(bytes)
        }
    }

    /// Gives bytes in and takes all answers, as a client that reads them does.
    mutating func feed(_ bytes: [UInt8]) {
        guard outcome == .waiting else { return }
        take(bytes.withUnsafeBytes { negotiation.received($0) })
        while outcome == .waiting {
            let answer = negotiation.takeOutput()
            guard !answer.isEmpty else { return }
            output += answer
            take(negotiation.received(UnsafeRawBufferPointer(start: nil, count: 0)))
        }
        output += negotiation.takeOutput()
    }

    private mutating func take(_ result: NBDNegotiation.Outcome) {
        switch result {
        case .more: break
        case .closed: outcome = .closed
        case .secured: outcome = .secured
        case .opened(let opened):
            outcome = .open
            opening = opened
        }
    }

    static func option(_ number: UInt32, _ data: [UInt8] = []) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.appendWire(NBDWire.NBD.optionMagic)
        bytes.appendWire(number)
        bytes.appendWire(UInt32(data.count))
        return bytes + data
    }

    struct Reply: Equatable {
        var option: UInt32
        var type: UInt32
        var data: [UInt8]
    }

    /// Sends an option and returns the replies, which must be well-formed.
    mutating func ask(_ number: UInt32, _ data: [UInt8] = []) throws -> [Reply] {
        output = []
        feed(Self.option(number, data))
        var reader = WireReader(output[...])
        var replies: [Reply] = []
        while reader.remaining > 0 {
            #expect(reader.take(UInt64.self) == NBDWire.NBD.optionReplyMagic)
            guard let option = reader.take(UInt32.self), let type = reader.take(UInt32.self),
                let byteCount = reader.take(UInt32.self), let data = reader.take(byteCount)
            else { throw TestFailure("an option reply that is cut") }
            replies.append(Reply(option: option, type: type, data: Array(data)))
        }
        return replies
    }
}

private let acknowledged: UInt32 = 1
private let invalid: UInt32 = 0x8000_0003
private let unknown: UInt32 = 0x8000_0006

/// Both names of a cut, in the order they are listed.
private func changes(_ name: String) -> [String] {
    ["qemu:dirty-bitmap:\(name)", "stillpoint:changes:\(name)"]
}

private func bitmaps(_ names: String...) -> [String] { names.map { "qemu:dirty-bitmap:\($0)" } }

@Suite struct `Negotiation` {
    let directory = TestDirectory()
    private let thread: LoopThread
    private let bases = TestBases(["monday", "tuesday", "wednesday"])

    init() async throws {
        var configuration = LoopConfiguration()
        configuration.bufferPoolBytes = 64 << 20
        thread = try LoopThread(index: 0, configuration: configuration)
        let target = try #require(
            await thread.mailbox.run { loop in
                LoopConfined<BlockTarget>(BlockTarget(size: 1 << 30, alignment: 1), on: loop)
            })
        for (name, isReadOnly) in [("disk", false), ("disk@tuesday", true)] {
            let export = ExportDescription(
                name: name, summary: "a disk", size: 1 << 30, isReadOnly: isReadOnly,
                isRotational: isReadOnly, canDiscard: !isReadOnly,
                bases: isReadOnly
                    ? bases.list.view(before: Epoch(2), of: bases.generation)
                    : bases.list.all,
                loop: thread, target: target)
            directory.exports.withLock { $0.append(export) }
        }
        thread.stopAndJoin()
    }

    private func client(flags: UInt32 = 3) -> Handshake {
        Handshake(directory, clientFlags: flags)
    }

    @Test func `the greeting is 18 bytes`() {
        var negotiation = NBDNegotiation(directory: directory)
        #expect(
            negotiation.takeOutput()
                == Array("NBDMAGICIHAVEOPT".utf8) + [0, 3])
    }

    @Test func `GO opens an export and tells its size, flags and block sizes`() throws {
        var client = client()
        let replies = try client.ask(7, NBDClient.goData("disk", information: [1, 2, 3]))
        try #require(replies.map(\.type) == [3, 3, 3, 3, acknowledged])
        #expect(replies[0].data == [0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0x0D, 0x6D])
        #expect(replies[1].data == [0, 1] + Array("disk".utf8))
        #expect(replies[2].data == [0, 2] + Array("a disk".utf8))
        #expect(replies[3].data == [0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0])
        #expect(client.outcome == .open)
        #expect(client.opening?.export.name == "disk")
        #expect(client.opening?.mode == .simple)
    }

    @Test func `INFO says the same and opens nothing`() throws {
        var client = client()
        let info = try client.ask(6, NBDClient.goData("disk"))
        #expect(client.outcome == .waiting)
        let go = try client.ask(7, NBDClient.goData("disk"))
        #expect(info.map(\.data) == go.map(\.data))
    }

    @Test func `transmission flags follow the export and the form of replies`() throws {
        func flags(_ name: String, _ options: [UInt32]) throws -> UInt16 {
            var client = client()
            for option in options { _ = try client.ask(option) }
            let data = try #require(try client.ask(7, NBDClient.goData(name)).first?.data)
            return UInt16(data[10]) << 8 | UInt16(data[11])
        }
        #expect(try flags("disk", []) == 0b1101_0110_1101)
        #expect(try flags("disk", [8]) == 0b1101_1110_1101)
        #expect(try flags("disk", [11]) == 0b1_1101_1110_1101)
        #expect(try flags("disk@tuesday", [8]) == 0b0101_1001_1111)
    }

    @Test func `EXPORT_NAME opens with and without the 124 zeroes`() {
        for (flags, zeroes) in [(UInt32(1), 124), (3, 0), (0, 124)] {
            var client = client(flags: flags)
            client.feed(Handshake.option(1, Array("disk".utf8)))
            #expect(client.outcome == .open)
            #expect(
                client.output == [0, 0, 0, 0, 0x40, 0, 0, 0, 0x0D, 0x6D]
                    + [UInt8](repeating: 0, count: zeroes))
        }
    }

    @Test func `EXPORT_NAME closes where it cannot open`() throws {
        var none = client()
        none.feed(Handshake.option(1, Array("none".utf8)))
        #expect(none.outcome == .closed && none.output.isEmpty)
        var wide = client()
        _ = try wide.ask(11)
        wide.feed(Handshake.option(1, Array("disk".utf8)))
        #expect(wide.outcome == .closed)
        var long = client()
        long.feed(Handshake.option(1, [UInt8](repeating: 0x78, count: 4097)))
        #expect(long.outcome == .closed)
    }

    @Test func `LIST names all exports with their descriptions`() throws {
        var client = client()
        let replies = try client.ask(3)
        #expect(replies.map(\.type) == [2, 2, acknowledged])
        #expect(replies[0].data == [0, 0, 0, 4] + Array("diska disk".utf8))
        #expect(try client.ask(3, [0]).map(\.type) == [invalid])
        #expect(client.outcome == .waiting)
    }

    @Test func `ABORT is acknowledged and closes`() throws {
        var client = client()
        #expect(try client.ask(2).map(\.type) == [acknowledged])
        #expect(client.outcome == .closed)
    }

    @Test(arguments: [UInt32(0), 4, 5, 12, 0x7FFF_FFFF, .max])
    func `unknown options, STARTTLS among them, are not supported`(option: UInt32) throws {
        var client = client()
        #expect(try client.ask(option, [1, 2, 3]).map(\.type) == [0x8000_0001])
        #expect(client.outcome == .waiting)
    }

    @Test func `structured replies and extended headers are agreed on once`() throws {
        var client = client()
        #expect(try client.ask(8, [1]).map(\.type) == [invalid])
        #expect(try client.ask(8).map(\.type) == [acknowledged])
        #expect(try client.ask(8).map(\.type) == [invalid])
        #expect(try client.ask(11).map(\.type) == [acknowledged])
        #expect(try client.ask(11).map(\.type) == [invalid])
        #expect(try client.ask(8).map(\.type) == [0x8000_000A])
        _ = try client.ask(7, NBDClient.goData("disk"))
        #expect(client.opening?.mode == .extended)
    }

    @Test func `unknown exports are answered and the handshake goes on`() throws {
        var client = client()
        _ = try client.ask(8)
        #expect(try client.ask(6, NBDClient.goData("none")).map(\.type) == [unknown])
        #expect(try client.ask(7, NBDClient.goData("")).map(\.type) == [unknown])
        #expect(
            try client.ask(10, NBDClient.contextData("none", ["base:allocation"])).map(\.type)
                == [unknown])
        #expect(try client.ask(7, NBDClient.goData("disk")).last?.type == acknowledged)
    }

    private func names(_ replies: [Handshake.Reply]) -> [String] {
        replies.filter { $0.type == 4 }.map {
            String(decoding: $0.data.dropFirst(4), as: UTF8.self)
        }
    }

    @Test(
        arguments: [
            (
                [],
                ["base:allocation"] + changes("wednesday") + changes("tuesday")
                    + changes("monday")
            ),
            (["base:"], ["base:allocation"]),
            (["qemu:"], bitmaps("wednesday", "tuesday", "monday")),
            (["qemu:dirty-bitmap:"], bitmaps("wednesday", "tuesday", "monday")),
            (
                ["stillpoint:"],
                [
                    "stillpoint:changes:wednesday", "stillpoint:changes:tuesday",
                    "stillpoint:changes:monday",
                ]
            ),
            (
                ["qemu:dirty-bitmap:monday", "qemu:"],
                bitmaps("monday", "wednesday", "tuesday")
            ),
            (["none:", "base", "qemu:d", "", ":", "qemu:dirty-bitmap:none"], []),
        ] as [([String], [String])])
    func `LIST_META_CONTEXT finds names and prefixes`(
        queries: [String], expected: [String]
    ) throws {
        var client = client()
        _ = try client.ask(8)
        let replies = try client.ask(9, NBDClient.contextData("disk", queries))
        #expect(names(replies) == expected)
        #expect(replies.last?.type == acknowledged)
        #expect(replies.allSatisfy { $0.type != 4 || $0.data.prefix(4) == [0, 0, 0, 0] })
    }

    @Test func `SET_META_CONTEXT selects exact names for one export`() throws {
        var client = client()
        #expect(
            try client.ask(10, NBDClient.contextData("disk", [])).map(\.type) == [invalid],
            "structured replies come first")
        _ = try client.ask(8)
        let all = [
            "stillpoint:changes:monday", "base:allocation", "base:allocation", "qemu:",
            "qemu:dirty-bitmap:none", "qemu:dirty-bitmap:tuesday",
        ]
        #expect(
            names(try client.ask(10, NBDClient.contextData("disk", all)))
                == ["stillpoint:changes:monday", "base:allocation", "qemu:dirty-bitmap:tuesday"])
        _ = try client.ask(7, NBDClient.goData("disk"))
        #expect(client.opening?.contexts.map(\.base) == [bases.base(1), nil, bases.base(2)])
        #expect(client.opening?.contexts.map(\.id) == [1, 2, 3])
    }

    @Test func `an image names only cuts before its own`() throws {
        var client = client()
        _ = try client.ask(8)
        let listed = names(try client.ask(9, NBDClient.contextData("disk@tuesday", [])))
        #expect(listed == ["base:allocation"] + changes("monday"))
        let wanted = bitmaps("wednesday", "tuesday", "monday")
        #expect(
            names(try client.ask(10, NBDClient.contextData("disk@tuesday", wanted)))
                == bitmaps("monday"))
        let other = Generation(id: .random())
        #expect(bases.list.view(before: Epoch(9), of: other).newest(9).isEmpty)
    }

    @Test func `of a single cut one bitmap is listed, and no other can be selected`() throws {
        let view = try #require(bases.list.all.only("tuesday"))
        directory.exports.withLock { $0[0].bases = view }
        #expect(bases.list.all.only("sunday") == nil)
        #expect(view.only("monday") == nil)
        var client = client()
        _ = try client.ask(8)
        let listed = names(try client.ask(9, NBDClient.contextData("disk", [])))
        #expect(listed == ["base:allocation"] + bitmaps("tuesday"))
        let wanted = bitmaps("wednesday", "tuesday", "monday")
        #expect(
            names(try client.ask(10, NBDClient.contextData("disk", wanted)))
                == bitmaps("tuesday"))
    }

    @Test func `of thousands of cuts the newest are listed, and any 64 can be selected`() throws {
        let many = TestBases((1...10_000).map { "c\($0)" })
        directory.exports.withLock { $0[0].bases = many.list.all }
        var client = client()
        _ = try client.ask(8)
        let listed = names(try client.ask(9, NBDClient.contextData("disk", [])))
        #expect(listed.count == 1 + NBDNegotiation.listedCountMax)
        #expect(Array(listed.prefix(3)) == ["base:allocation"] + changes("c10000"))
        #expect(listed.last == "stillpoint:changes:c9489")
        let wanted = (1...100).map { "qemu:dirty-bitmap:c\($0)" }
        let selected = names(try client.ask(10, NBDClient.contextData("disk", wanted)))
        #expect(selected == Array(wanted.prefix(NBDNegotiation.contextCountMax)))
        #expect(
            names(try client.ask(9, NBDClient.contextData("disk", [wanted[0]]))) == [wanted[0]])
    }

    @Test func `a selection is dropped by another export, a later selection and a failed one`()
        throws
    {
        let base = NBDClient.contextData("disk", ["base:allocation"])
        for later in [
            NBDClient.contextData("disk", []), NBDClient.contextData("none", ["base:allocation"]),
            [1, 2, 3], NBDClient.contextData("disk@tuesday", ["base:allocation"]),
        ] {
            var client = client()
            _ = try client.ask(8)
            _ = try client.ask(10, base)
            _ = try client.ask(10, later)
            _ = try client.ask(7, NBDClient.goData("disk"))
            #expect(client.opening?.contexts.isEmpty == true)
        }
        var kept = client()
        _ = try kept.ask(11)
        _ = try kept.ask(10, base)
        _ = try kept.ask(9, NBDClient.contextData("disk", []))
        _ = try kept.ask(6, NBDClient.goData("disk@tuesday"))
        _ = try kept.ask(7, NBDClient.goData("disk"))
        #expect(kept.opening?.contexts.count == 1)
    }
}
