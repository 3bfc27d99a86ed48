import Foundation
import TestSupport
import Testing

/// By which names exports open over NBD.
@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Names of exports` {
    /// Opens an export; nil when the server does not know it.
    private func open(
        _ name: String, _ harness: ControlHarness, contexts: [String] = []
    ) throws -> NBDClient? {
        let client = try NBDClient(harness.service.address())
        try client.greet()
        let replies = try client.negotiate(NBD.Option.info, NBDClient.goData(name))
        guard replies.last?.type == NBD.OptionReply.acknowledged else {
            #expect(replies.last?.type == 0x8000_0006, "\(name)")
            return nil
        }
        let opened = try NBDClient(
            harness.service.address(), export: name, headers: .structured, contexts: contexts)
        return opened
    }

    private func isReadOnly(_ client: NBDClient) -> Bool { client.flags & 2 != 0 }

    @Test func `of images are also the snapshot's id and a beginning of it that is its own`()
        throws
    {
        let harness = try ControlHarness()
        try harness.attach("a")
        try harness.attach("b")
        let made = try harness.command("snapshot", "create", "--device", "a", "--name", "s1")
        let id = made.output.trimmingCharacters(in: .newlines)
        let first = try harness.object("snapshot", "create", "--device", "a", "--device", "b")
        let other = try #require(first["id"] as? String)
        for name in ["s1", id, id.uppercased(), String(id.prefix(13))] {
            let image = try #require(try open("a@\(name)", harness), "a@\(name)")
            #expect(isReadOnly(image))
            let writable = try #require(try open("a@\(name):rw", harness), "a@\(name):rw")
            #expect(!isReadOnly(writable))
            try writable.write(4096, [1, 2, 3])
            #expect(try image.read(4096, 3) == [0, 0, 0])
        }
        #expect(try open("b@\(other.prefix(13))", harness) != nil)
        for name in [
            "b@\(id)", "a@", "a@:rw", "a@\(id)0", "a@-", "@\(id)", "none@\(id)", "a@\(id):ro",
        ] {
            #expect(try open(name, harness) == nil, "\(name)")
        }
        // A name wins, even where it is that of another device's snapshot.
        try harness.done(
            "snapshot", "create", "--device", "b", "--name", String(id.prefix(13)))
        #expect(try open("a@\(id.prefix(13))", harness) == nil)
        #expect(try open("b@\(id.prefix(13))", harness) != nil)
        #expect(try open("a@\(id)", harness) != nil)
        try harness.done("snapshot", "destroy", "s1")
        #expect(try open("a@\(id)", harness) == nil)
    }

    @Test func `with a base tell the changes since that base and no other`() throws {
        let harness = try ControlHarness()
        try harness.attach("a")
        let whole = try NBDClient(harness.service.address(), export: "a", headers: .structured)
        try harness.done("checkpoint", "create", "sun", "--device", "a")
        try whole.write(0, [UInt8](repeating: 1, count: 4096))
        try harness.done("checkpoint", "create", "mon", "--device", "a")
        try whole.write(65536, [UInt8](repeating: 2, count: 4096))
        let made = try harness.command("snapshot", "create", "--device", "a", "--name", "tue")
        let id = made.output.trimmingCharacters(in: .newlines)
        func bitmaps(_ name: String) throws -> [String] {
            let client = try NBDClient(harness.service.address())
            try client.greet()
            _ = try client.negotiate(NBD.Option.structuredReply)
            let replies = try client.negotiate(
                NBD.Option.listMetaContext, NBDClient.contextData(name, []))
            return replies.dropLast().map {
                String(decoding: $0.data.dropFirst(4), as: UTF8.self)
            }
        }
        let context = "qemu:dirty-bitmap:mon"
        for name in ["a@tue:since=mon", "a@\(id.prefix(13)):since=mon", "a:since=mon"] {
            #expect(try bitmaps(name) == ["base:allocation", context])
            let client = try #require(
                try open(name, harness, contexts: ["base:allocation", context]))
            #expect(isReadOnly(client) == (name != "a:since=mon"))
            let extents = try client.blockStatus(0, 131_072, context: context)
            #expect(extents.map(\.length) == [65536, 4096, 61440], "\(name)")
            #expect(extents.map(\.flags) == [0, 1, 0])
        }
        for name in [
            "a@tue:since=tue", "a@tue:since=none", "a@tue:since=", "a@tue:rw:since=mon",
            "a@tue:since=mon:rw", "a@tue:since=mon:since=mon", ":since=mon", "a@none:since=mon",
        ] {
            #expect(try open(name, harness) == nil, "\(name)")
        }
        // Listed are the plain names, and what the image names ends before its own cut.
        #expect(try harness.exportNames() == ["a", "a@tue", "a@tue:rw"])
        #expect(
            try bitmaps("a@tue").filter { $0.hasPrefix("qemu:") }
                == [context, "qemu:dirty-bitmap:sun"])
    }
}
