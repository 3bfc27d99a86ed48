import Foundation
import TestSupport
import Testing

/// What hostile clients did to NBD servers before the export was open. Each test names the CVE.
@Suite(
    .serialized, .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Attacks on the handshake` {
    /// The bytes of a whole, proper session.
    private func properSession() -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.append(big: UInt32(3))
        func option(_ code: UInt32, _ data: [UInt8]) {
            bytes.append(big: NBD.optionMagic)
            bytes.append(big: code)
            bytes.append(big: UInt32(data.count))
            bytes += data
        }
        option(NBD.Option.structuredReply, [])
        option(NBD.Option.list, [])
        option(
            NBD.Option.setMetaContext, NBDClient.contextData("disk", ["base:allocation"]))
        option(NBD.Option.go, NBDClient.goData("disk"))
        let payload = [UInt8](repeating: 1, count: 16)
        bytes += NBDRequest(.write, offset: 8192, length: 16, payload: payload)
            .encoded(.structured)
        bytes += NBDRequest(.read, offset: 0, length: 512).encoded(.structured)
        return bytes
    }

    @Test func `CVE-2017-9524: a client may vanish after any byte`() throws {
        let victim = try Victim()
        let session = properSession()
        for count in 0...session.count {
            let client = try victim.connect()
            try client.send(Array(session[..<count]))
            // Every second one half-closes and waits; the others just go.
            if count.isMultiple(of: 2) {
                client.shutdownSending()
                try client.drainUntilClosed()
            }
        }
        try victim.expectUnharmed()
    }

    @Test func `CVE-2013-6410: a name that begins like a known one is unknown`() throws {
        let victim = try Victim()
        let names = ["d", "dis", "diskk", "disk ", " disk", "disk/", "disk2", "Disk", "disk,disk"]
        for name in names {
            for option in [NBD.Option.go, NBD.Option.info] {
                let reply = try #require(
                    try victim.greeted().negotiate(option, NBDClient.goData(name)).last)
                #expect(reply.type == NBD.OptionReply.unknown, "\(name)")
            }
            let old = try victim.greeted()
            try old.sendOption(NBD.Option.exportName, Array(name.utf8))
            #expect(throws: ConnectionEnded.self) { _ = try old.receive(1) }
        }
        try victim.expectUnharmed()
    }

    @Test func `CVE-2019-14850: nothing but an opened export touches its device`() throws {
        let victim = try Victim()
        try victim.expectUnharmed()
        let before = try counters(victim)
        for index in 0..<40 {
            let client = try victim.greeted()
            _ = try client.negotiate(NBD.Option.list)
            _ = try client.negotiate(NBD.Option.structuredReply)
            _ = try client.negotiate(NBD.Option.info, NBDClient.goData("disk"))
            for option in [NBD.Option.listMetaContext, NBD.Option.setMetaContext] {
                _ = try client.negotiate(
                    option, NBDClient.contextData("disk", ["base:allocation"]))
            }
            // Requests of somebody who was never let in.
            if index.isMultiple(of: 2) {
                try client.send(NBDRequest(.read, length: 4096).encoded(.structured))
                try client.drainUntilClosed()
            }
        }
        #expect(try counters(victim) == before)
        let client = try victim.opened()
        _ = try client.read(0, 4096)
        #expect(try counters(victim) != before)
    }

    /// What the device counts of itself.
    private func counters(_ victim: Victim) throws -> [String: Int] {
        let text = try Command.check(
            TestService.binary,
            ["device", "show", "disk", "--json", "--control", victim.service.controlPath])
        let document = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any]
        return try #require(document?["counters"] as? [String: Int])
    }

    @Test func `CVE-2020-10761: no answer grows with what was said`() throws {
        let victim = try Victim()
        let long = String(repeating: "y", count: 4096)
        let client = try victim.greeted()
        _ = try client.negotiate(NBD.Option.structuredReply)
        let attempts: [(UInt32, [UInt8])] = [
            (NBD.Option.info, NBDClient.goData(long)), (NBD.Option.go, NBDClient.goData(long)),
            (NBD.Option.listMetaContext, NBDClient.contextData(long, [long])),
            (NBD.Option.setMetaContext, NBDClient.contextData(long, [long])),
            (NBD.Option.listMetaContext, NBDClient.contextData("disk", [long])),
            (99, Array(long.utf8)),
        ]
        for (option, data) in attempts {
            for reply in try client.negotiate(option, data) {
                #expect(reply.data.count <= 4096, "option \(option)")
            }
        }
        let opened = try victim.opened()
        let requests = [
            NBDRequest(.read, offset: .max, length: 4096), NBDRequest(.unknown, length: 1),
            NBDRequest(.read, flags: 0xffff, length: 4096), NBDRequest(.read, length: 1 << 31),
        ]
        for request in requests {
            let reply = try opened.perform(request)
            #expect(reply.error != nil)
            for chunk in reply.chunks { #expect(chunk.payload.count <= 4096 + 14) }
        }
        try victim.expectUnharmed()
    }

    @Test(arguments: [256, 4095, 4096, 4097, 8192, 65535, 65536])
    func `CVE-2017-15118: an export name of any length is answered or ends the connection`(
        length: Int
    ) throws {
        let victim = try Victim()
        let name = String(repeating: "x", count: length)
        for option in [NBD.Option.go, NBD.Option.info] {
            let client = try victim.greeted()
            do {
                let reply = try #require(
                    try client.negotiate(option, NBDClient.goData(name)).last)
                #expect(reply.type & 0x8000_0000 != 0)
                // CVE-2020-10761: an error that repeats a long name must not grow with it.
                #expect(reply.data.count <= 4096)
                #expect(length > 4096 || reply.type == NBD.OptionReply.unknown)
            } catch is ConnectionEnded {
                #expect(length > 4096, "a name of \(length) bytes is allowed")
            }
        }
        let old = try victim.greeted()
        do {
            try old.sendOption(NBD.Option.exportName, Array(name.utf8))
            try old.drainUntilClosed()
        } catch is ConnectionEnded {}
        try victim.expectUnharmed()
    }

    @Test(arguments: [
        NBD.Option.exportName, NBD.Option.abort, NBD.Option.list, 4, NBD.Option.startTLS,
        NBD.Option.info, NBD.Option.go, NBD.Option.structuredReply, NBD.Option.listMetaContext,
        NBD.Option.setMetaContext, NBD.Option.extendedHeaders, 12, 0, 0xffff_ffff,
    ])
    func `CVE-2017-15119: a huge option is not waited for`(option: UInt32) throws {
        let victim = try Victim()
        let before = try victim.peakKibibytes()
        for length in [UInt32.max, 1 << 31, 1 << 26] {
            let client = try NBDClient(victim.service.address(), timeoutSeconds: 30)
            try client.greet()
            var bytes: [UInt8] = []
            bytes.append(big: NBD.optionMagic)
            bytes.append(big: option)
            bytes.append(big: length)
            // Only a little of it comes, and the client waits: so must the server not. It says no,
            // or closes the connection; receiving nothing in time is an error here.
            do {
                try client.send(bytes + [UInt8](repeating: 0, count: 8192))
                _ = try client.receive(1)
            } catch is ConnectionEnded {}
        }
        #expect(try victim.peakKibibytes() - before < 16 * 1024)
        try victim.expectUnharmed()
    }

    @Test func `CVE-2022-26495: lengths inside an option are held against the option's own`() throws
    {
        let victim = try Victim()
        for length in [UInt32.max, 0x8000_0000, 100, 11, 5] {
            for option in [
                NBD.Option.go, NBD.Option.info, NBD.Option.setMetaContext,
                NBD.Option.listMetaContext,
            ] {
                let client = try victim.greeted()
                _ = try client.negotiate(NBD.Option.structuredReply)
                // A name length beyond the data; then a proper name and a count beyond the data.
                var nameTooLong: [UInt8] = []
                nameTooLong.append(big: length)
                nameTooLong += Array("disk".utf8)
                var countTooLarge: [UInt8] = []
                countTooLarge.append(big: UInt32(4))
                countTooLarge += Array("disk".utf8)
                countTooLarge.append(big: length)
                for data in [nameTooLong, countTooLarge, [], [0], [0, 0, 0]] {
                    do {
                        let reply = try #require(try client.negotiate(option, data).last)
                        #expect(
                            reply.type == NBD.OptionReply.invalid
                                || reply.type == NBD.OptionReply.tooBig,
                            "option \(option), \(data)")
                    } catch is ConnectionEnded {
                        break
                    }
                }
            }
        }
        try victim.expectUnharmed()
    }

    @Test func `CVE-2022-26496: a query longer than its option is refused`() throws {
        let victim = try Victim()
        let client = try victim.greeted()
        _ = try client.negotiate(NBD.Option.structuredReply)
        var data: [UInt8] = []
        data.append(big: UInt32(4))
        data += Array("disk".utf8)
        data.append(big: UInt32(1))
        data.append(big: UInt32.max - 3)
        data += Array("base:allocation".utf8)
        let reply = try #require(try client.negotiate(NBD.Option.setMetaContext, data).last)
        #expect(reply.type == NBD.OptionReply.invalid || reply.type == NBD.OptionReply.tooBig)
        try victim.expectUnharmed()
    }

    @Test func `CVE-2019-14851: options in any order are answered`() throws {
        var generator = SeededGenerator.announced("options in any order")
        let victim = try Victim()
        let go = NBDClient.goData("disk")
        let query = NBDClient.contextData("disk", ["base:allocation", "base:", "none:such", ""])
        let options: [(UInt32, [UInt8])] = [
            (NBD.Option.list, []), (NBD.Option.list, [1, 2, 3]),
            (NBD.Option.info, go), (NBD.Option.info, NBDClient.goData("none")),
            (NBD.Option.structuredReply, []), (NBD.Option.structuredReply, [1]),
            (NBD.Option.extendedHeaders, []), (NBD.Option.extendedHeaders, [0, 0]),
            (NBD.Option.listMetaContext, query), (NBD.Option.setMetaContext, query),
            (NBD.Option.setMetaContext, NBDClient.contextData("none", ["base:allocation"])),
            (NBD.Option.startTLS, []), (4, []), (99, [1, 2, 3, 4]), (0, []),
        ]
        for _ in 0..<100 {
            let client = try victim.greeted()
            for _ in 0..<12 {
                let (option, data) = options.randomElement(using: &generator)!
                let replies = try client.negotiate(option, data)
                #expect(!replies.isEmpty)
            }
            let last = try #require(try client.negotiate(NBD.Option.go, go).last)
            #expect(last.type == NBD.OptionReply.acknowledged)
        }
        try victim.expectUnharmed()
    }

    @Test func `CVE-2021-3716: STARTTLS without TLS changes nothing`() throws {
        let victim = try Victim()
        let client = try victim.greeted()
        for data in [[], [UInt8](repeating: 0, count: 8)] {
            let reply = try #require(try client.negotiate(NBD.Option.startTLS, data).last)
            #expect(reply.type & 0x8000_0000 != 0)
        }
        try client.open("disk", headers: .structured, contexts: ["base:allocation"])
        #expect(try client.read(0, 512).count == 512)
        #expect(!(try client.blockStatus(0, 65536)).isEmpty)
    }

    @Test func `a selection of contexts holds for its export only`() throws {
        let victim = try Victim()
        let client = try victim.greeted()
        _ = try client.negotiate(NBD.Option.structuredReply)
        let set = try client.negotiate(
            NBD.Option.setMetaContext, NBDClient.contextData("other", ["base:allocation"]))
        #expect(!set.isEmpty)
        try client.open("disk", headers: .simple)
        // Nothing is selected for `disk`: block status is an error, in whatever form.
        try client.send(NBDRequest(.blockStatus, cookie: 9, length: 512))
        let header = try client.receive(16)
        let magic: UInt32 = header.big(at: 0)
        if magic == NBD.structuredReplyMagic {
            let type: UInt16 = header.big(at: 6)
            #expect(type & 0x8000 != 0)
        } else {
            #expect(magic == NBD.simpleReplyMagic)
            let error: UInt32 = header.big(at: 4)
            #expect(error == NBD.ErrorNumber.invalid)
        }
        try victim.expectUnharmed()
    }

    @Test func `unknown flags of a client and a wrong magic end the connection`() throws {
        let victim = try Victim()
        for flags in [UInt32(4), 1 << 16, 0xffff_ffff] {
            let client = try victim.connect()
            try client.greet(clientFlags: flags)
            try client.drainUntilClosed()
        }
        let client = try victim.greeted()
        try client.send([UInt8](repeating: 0x41, count: 64))
        // A server may say something before it closes.
        try client.drainUntilClosed()
        try victim.expectUnharmed()
    }

    @Test func `names that look like paths, and bytes that are no text, are just unknown`() throws {
        let victim = try Victim()
        let names: [[UInt8]] = [
            Array("../../../etc/passwd".utf8), Array("/etc/passwd".utf8), Array("disk\0".utf8),
            Array("disk\u{1b}[31m\n".utf8), [0xff, 0xfe, 0x80], Array("disk@".utf8),
            Array("disk@none".utf8), Array("disk:rw".utf8), Array("DISK".utf8), [0],
            Array("%s%n".utf8),
        ]
        for name in names {
            let client = try victim.greeted()
            var data: [UInt8] = []
            data.append(big: UInt32(name.count))
            data += name
            data.append(big: UInt16(0))
            let reply = try #require(try client.negotiate(NBD.Option.go, data).last)
            #expect(reply.type & 0x8000_0000 != 0, "\(name)")
            #expect(reply.data.count <= 4096)
        }
        // What the client said reaches the log only in a form that does not steer a terminal.
        #expect(!victim.service.log.contains("\u{1b}[31m"))
        try victim.expectUnharmed()
    }

    @Test func `a flood of options costs no memory`() throws {
        let victim = try Victim()
        let before = try victim.peakKibibytes()
        let client = try victim.greeted()
        do {
            for _ in 0..<200 {
                var bytes: [UInt8] = []
                for _ in 0..<50 {
                    bytes.append(big: NBD.optionMagic)
                    bytes.append(big: NBD.Option.list)
                    bytes.append(big: UInt32(0))
                }
                try client.send(bytes)
                // Two replies each: the device, and the end of the list.
                for _ in 0..<100 { _ = try client.receiveOptionReply() }
            }
        } catch is ConnectionEnded {
            // A server may have enough at some point.
        }
        #expect(try victim.peakKibibytes() - before < 16 * 1024)
        try victim.expectUnharmed()
    }
}
