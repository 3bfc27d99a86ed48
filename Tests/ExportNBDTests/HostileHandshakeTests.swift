import BlockModel
import NBDWire
import RingIO
import TestSupport
import Testing

@testable import ExportNBD

@Suite struct `A hostile handshake` {
    let directory = TestDirectory()

    init() async throws {
        var configuration = LoopConfiguration()
        configuration.bufferPoolBytes = 64 << 20
        let thread = try LoopThread(index: 0, configuration: configuration)
        let target = try #require(
            await thread.mailbox.run { loop in
                LoopConfined<BlockTarget>(BlockTarget(size: 1 << 30, alignment: 1), on: loop)
            })
        directory.exports.withLock {
            $0.append(
                ExportDescription(
                    name: "disk", summary: "a disk", size: 1 << 30, isReadOnly: false,
                    isRotational: false, canDiscard: true, loop: thread,
                    target: target))
        }
        thread.stopAndJoin()
    }

    @Test(arguments: [UInt32(4), 7, 1 << 31, .max])
    func `unknown client flags close`(flags: UInt32) {
        #expect(Handshake(directory, clientFlags: flags).outcome == .closed)
    }

    @Test func `a wrong magic closes`() {
        var client = Handshake(directory)
        client.feed([UInt8](repeating: 0x41, count: 16))
        #expect(client.outcome == .closed)
    }

    @Test(arguments: [UInt32(65537), 1 << 26, 1 << 31, .max], [UInt32(1), 3, 7, 10, 99])
    func `an option longer than 64 KiB is refused without waiting for it`(
        length: UInt32, option: UInt32
    ) {
        var client = Handshake(directory)
        var bytes: [UInt8] = []
        bytes.appendWire(NBDWire.NBD.optionMagic)
        bytes.appendWire(option)
        bytes.appendWire(length)
        client.feed(bytes)
        #expect(client.outcome == .closed)
        #expect(client.output.isEmpty)
    }

    @Test(arguments: [UInt32(6), 7, 9, 10])
    func `lengths inside an option that do not fit it are invalid`(option: UInt32) throws {
        for length in [UInt32.max, 1 << 31, 4097, 5, 3] {
            var client = Handshake(directory)
            _ = try client.ask(11)
            var name: [UInt8] = []
            name.appendWire(length)
            var count: [UInt8] = [0, 0, 0, 4] + Array("disk".utf8)
            count.appendWire(length)
            for data in [name + Array("disk".utf8), count, [], [0, 0, 0]] {
                let types = try client.ask(option, data).map(\.type)
                #expect(types == [0x8000_0003] || types == [0x8000_0009], "\(data)")
                #expect(client.outcome == .waiting)
            }
        }
    }

    @Test func `a NUL or bytes that are no text make a name invalid`() throws {
        for name in [[UInt8(0)], [0x64, 0], [0xFF, 0xFE]] {
            var client = Handshake(directory)
            let data: [UInt8] = [0, 0, 0, UInt8(name.count)] + name + [0, 0]
            #expect(try client.ask(7, data).map(\.type) == [0x8000_0003])
        }
    }

    @Test func `the number of queries is bounded`() throws {
        var client = Handshake(directory)
        _ = try client.ask(8)
        let many = NBDClient.contextData("disk", Array(repeating: "", count: 257))
        #expect(try client.ask(10, many).map(\.type) == [0x8000_0009])
        let fewer = NBDClient.contextData("disk", Array(repeating: "base:", count: 256))
        #expect(try client.ask(9, fewer).last?.type == 1)
    }

    @Test func `the number of options is bounded`() {
        var client = Handshake(directory)
        for _ in 0..<NBDNegotiation.optionCountMax { client.feed(Handshake.option(99)) }
        #expect(client.outcome == .waiting)
        client.feed(Handshake.option(99))
        #expect(client.outcome == .closed)
    }

    @Test func `much asked for in one go is answered in portions`() {
        let export = directory.exports.withLock { $0[0] }
        directory.exports.withLock {
            for index in 0..<1000 {
                var more = export
                more.name = "disk-\(index)"
                $0.append(more)
            }
        }
        var negotiation = NBDNegotiation(directory: directory)
        _ = negotiation.takeOutput()
        let flood = [0, 0, 0, 3] + Array(repeatElement(Handshake.option(3), count: 1000).joined())
        _ = flood.withUnsafeBytes { negotiation.received($0) }
        var portions = 0
        while case let answer = negotiation.takeOutput(), !answer.isEmpty {
            #expect(answer.count < 256 << 10)
            portions += 1
            _ = negotiation.received(UnsafeRawBufferPointer(start: nil, count: 0))
        }
        #expect(portions > 100)
    }

    /// A whole handshake: what it says must not depend on how its bytes are cut.
    private func conversation() -> [UInt8] {
        [0, 0, 0, 3] + Handshake.option(8) + Handshake.option(3)
            + Handshake.option(10, NBDClient.contextData("disk", ["base:allocation"]))
            + Handshake.option(7, NBDClient.goData("disk")) + [1, 2, 3]
    }

    @Test func `a handshake may be cut at every byte`() {
        let bytes = conversation()
        var whole = Handshake(directory, clientFlags: nil)
        whole.feed(bytes)
        #expect(whole.outcome == .open)
        #expect(Array(whole.negotiation.remainingInput) == [1, 2, 3])
        for cut in 0..<bytes.count {
            var client = Handshake(directory, clientFlags: nil)
            client.feed(Array(bytes[..<cut]))
            #expect(client.outcome == (cut < bytes.count - 3 ? .waiting : .open))
            guard client.outcome == .waiting else { continue }
            client.feed(Array(bytes[cut...]))
            #expect(client.output == whole.output)
        }
        var single = Handshake(directory, clientFlags: nil)
        for byte in bytes.dropLast(3) { single.feed([byte]) }
        #expect(single.output == whole.output && single.outcome == .open)
    }

    @Test func `random and mutated bytes never do more than close`() {
        var generator = SeededGenerator.announced("hostile handshakes")
        for _ in 0..<5000 {
            var client = Handshake(directory)
            var bytes = Array(conversation().dropFirst(4))
            for _ in 0..<Int.random(in: 1...5, using: &generator) {
                let place = Int.random(in: 0..<bytes.count, using: &generator)
                switch Int.random(in: 0..<3, using: &generator) {
                case 0: bytes[place] = UInt8.random(in: 0...255, using: &generator)
                case 1: bytes.insert(0xFF, at: place)
                default: bytes.removeSubrange(place..<min(place + 3, bytes.count))
                }
            }
            client.feed(bytes)
            #expect(client.output.count < 1 << 20)
        }
        for _ in 0..<2000 {
            var client = Handshake(directory)
            for _ in 0..<4 {
                let number = UInt32.random(in: 0...12, using: &generator)
                client.feed(Handshake.option(number, generator.bytes(Int(generator.next() % 40))))
            }
            #expect(client.output.count < 1 << 20)
        }
    }
}
